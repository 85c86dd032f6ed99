"""Who imports whom: a module imports only rows above its own, and the light commands never load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import camcli

PACKAGE = Path(camcli.__file__).parent
ROWS = (
    ("records", "events"),
    ("errors",),
    ("registry", "storage", "readback", "versions", "formats"),
    ("lock",),
    (
        *("geometry", "config", "claim", "progress", "interrupt", "demo"),
        *("shard", "fingerprint", "ledger", "labels", "libtiff", "memory", "limits", "stopwatch", "stdio"),
        *("faults", "offline"),
    ),
    ("configfile", "crash", "rundir", "inputs", "images", "layers", "methods", "report", "render", "targets"),
    ("models", "writers", "tap", "resume", "manifest"),
    ("engine",),
    ("batchsize", "precision", "folding"),
    ("stream",),
    ("tuning",),
    ("prepare", "preflight", "painter", "recorder", "job", "merge"),
    ("explain",),
    ("workers",),
    ("pipeline", "doctor", "junit", "status", "console"),
    ("concepts",),
    ("cli",),
    ("__main__",),
)
ROW_OF = {name: number for number, names in enumerate(ROWS) for name in names}


def imported(path: Path) -> set[str]:
    """Names of the camcli modules that a file imports at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "camcli":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


def room(path: Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_up(path: Path) -> None:
    here = room(path)
    if here == "__init__" or path.match("demo/evaluate.py") or path.match("demo/train.py"):
        return
    for name in imported(path) - {here}:
        assert ROW_OF[name] < ROW_OF[here], f"{here} imports {name}"


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["run", "--help"], ["config", "schema"], ["schema", "report"], ["config", "show"]),
        *(["status", "--help"], ["merge", "--help"], ["doctor", "--help"]),
    ],
    ids=" ".join,
)
def test_light_commands_do_not_import_torch(words: list[str]) -> None:
    code = (
        "import sys; from camcli.cli.app import main; sys.argv = ['camcli', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, timeout=60)
