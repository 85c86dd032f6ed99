"""Who imports whom: a room imports only rooms before it, and the light rooms and commands never load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import camcli

PACKAGE = Path(camcli.__file__).parent
ROOMS = (
    *("records", "errors", "registry"),
    *("config", "images", "models", "engine", "render", "results", "pipeline", "analysis", "demo", "cli", "__main__"),
)
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The rooms of camcli that a file imports anywhere, but for the type checker alone."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "camcli":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return found & set(ROOMS)


def room(path: Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    here = room(path)
    before = ROOMS if here == "__init__" else ROOMS[: ROOMS.index(here) + 1]
    assert imported(path) <= set(before), f"{here} imports {imported(path) - set(before)}"


@pytest.mark.parametrize(
    ("name", "heavy"),
    [("config", ["torch"]), ("images", ["torch"]), ("results", ["torch", "numpy", "PIL"])],
)
def test_light_rooms_stay_light(name: str, heavy: list[str]) -> None:
    modules = [".".join(("camcli", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in FILES if room(p) == name]
    code = f"import sys, {', '.join(modules)}; assert not set(sys.modules) & {set(heavy)}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["run", "--help"], ["config", "schema"], ["schema", "report"], ["config", "show"]),
        *(["status", "--help"], ["merge", "--help"], ["export", "--help"], ["diff", "--help"], ["doctor", "--help"]),
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
