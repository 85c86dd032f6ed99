"""The READMEs and the CHANGELOG say what is true: commands, sessions, configs, exit codes, links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

import camcli
from camcli import errors
from camcli.cli.app import app
from camcli.config.file import load_config
from camcli.config.schema import RunConfig
from tests.conftest import REPO

FOLDERS = (
    *(".", "configs", "camcli", "camcli/demo", "camcli/engine/methods", "camcli/results", "tests", "sample_images"),
)
READMES = {folder: (REPO / folder / "README.md").read_text() for folder in FOLDERS}
README = READMES["."]
YAML = [block for text in READMES.values() for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)]
TIMES = re.compile(r"\d+\.\d+")


def commands(group: typer.Typer, prefix: str = "") -> Iterator[str]:
    """Every command path, such as `config show`."""
    for command in group.registered_commands:
        yield prefix + str(command.name or getattr(command.callback, "__name__", ""))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{prefix}{inner.name} ")


def test_the_two_commands_stand_there_to_be_copied() -> None:
    assert "python -m pip install -e . && python -m camcli run sample_images/shapes --out out\n" in README
    assert 'python -m pip install -e ".[test]" && python -m pytest -n 2\n' in README


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    known = {name.replace("models list", "models") for name in commands(app)}
    words = {word for name in known for word in name.split()}
    flat = " ".join(" ".join(READMES.values()).split())
    for name in known:
        assert f"camcli {name}" in flat, name
    for first in re.findall(r"`(?:\$ )?camcli ([a-z]+)", flat):
        assert first in words, first


@pytest.mark.parametrize("block", YAML)
def test_yaml_in_a_readme_is_a_valid_config_or_workflow(tmp_path: Path, block: str) -> None:
    if "runs-on:" in block:
        return
    (tmp_path / "c.yaml").write_text(block)
    load_config(tmp_path / "c.yaml")


def test_every_exit_code_is_documented() -> None:
    codes = {getattr(error, "exit_code", 0) for error in vars(errors).values() if isinstance(error, type)}
    for code in codes | {0, 1}:
        assert re.search(rf"^\| {code} \|", README, flags=re.MULTILINE), code


@pytest.mark.parametrize("folder", FOLDERS)
def test_linked_files_exist(folder: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", READMES[folder]):
        assert (REPO / folder / target).exists(), target


def test_every_field_of_a_config_is_documented() -> None:
    for section, field in fields():
        assert re.search(rf"`[^|]*\b{field}\b[^|]*`", READMES["configs"]), f"{section}.{field}"


def fields() -> Iterator[tuple[str, str]]:
    """(section, field) of all values of a config."""
    for name, about in RunConfig.model_fields.items():
        inner = about.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from ((name, value.alias or field) for field, value in inner.model_fields.items())
        else:
            yield "", name


def test_every_test_behind_a_promise_exists() -> None:
    written = "".join(path.read_text() for path in (REPO / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", READMES["tests"]):
        assert f"def {name}(" in written, name


def test_the_session_can_be_repeated_as_printed(tmp_path: Path) -> None:
    session = re.search(r"## A session\n\n```\n(.*?)```", README, flags=re.DOTALL)
    assert session is not None
    (tmp_path / "sample_images").symlink_to(REPO / "sample_images")
    lines = [line for line in session[1].splitlines() if line.startswith("$ ")]
    script = [f"set -- \"$?\"; printf '%s\\n' {shlex.quote(line)}; (exit $1); {line[2:]}" for line in lines]
    camcli = f'camcli() {{ "{sys.executable}" -m camcli "$@"; }}; exec 2>&1'
    words = ["bash", "-c", "\n".join([camcli, *script])]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ)
    assert plain(ended.stdout) == plain(session[1])


def plain(text: str) -> list[str]:
    """Lines without figures that differ from run to run, whatever their columns."""
    return [" ".join(TIMES.sub("N", line).split()) for line in text.splitlines()]


def test_the_version_heads_the_changelog() -> None:
    first = re.search(r"^## (\S+)", (REPO / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first is not None
    assert first[1] == camcli.__version__
