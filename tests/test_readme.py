"""README and CHANGELOG say what is true: commands, configs, exit codes, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import camcli
from camcli import errors
from camcli.cli.app import app
from camcli.config.file import load_config
from tests.conftest import REPO

README = (REPO / "README.md").read_text()


def commands(group: typer.Typer, prefix: str = "") -> Iterator[str]:
    """Every command path, such as `config show`."""
    for command in group.registered_commands:
        yield prefix + str(command.name or getattr(command.callback, "__name__", ""))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{prefix}{inner.name} ")


def test_the_two_commands_stand_there_to_be_copied() -> None:
    assert "python -m pip install -e . && python -m camcli run sample_images/shapes --out out\n" in README
    assert 'python -m pip install -e ".[test]" && python -m pytest\n' in README


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    known = {name.replace("models list", "models") for name in commands(app)}
    words = {word for name in known for word in name.split()}
    flat = " ".join(README.split())
    for name in known:
        assert f"camcli {name}" in flat, name
    for first in re.findall(r"`(?:\$ )?camcli ([a-z]+)", flat):
        assert first in words, first


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL))
def test_yaml_in_the_readme_is_a_valid_config_or_workflow(tmp_path: Path, block: str) -> None:
    if "runs-on:" in block:
        return
    (tmp_path / "c.yaml").write_text(block)
    load_config(tmp_path / "c.yaml")


def test_every_exit_code_is_documented() -> None:
    codes = {getattr(error, "exit_code", 0) for error in vars(errors).values() if isinstance(error, type)}
    for code in codes | {0, 1}:
        assert re.search(rf"^\| {code} \|", README, flags=re.MULTILINE), code


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPO / target).exists(), target


def test_the_version_heads_the_changelog() -> None:
    first = re.search(r"^## (\S+)", (REPO / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first is not None
    assert first[1] == camcli.__version__
