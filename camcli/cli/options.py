"""The options that several commands share, and options as one record instead of many parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from camcli.errors import ConfigError

if TYPE_CHECKING:
    from camcli.config.file import LoadedConfig

Options = TypeVar("Options")


def folder_name(name: str) -> Path:
    """The parser of an output folder; raises ConfigError for an empty name, as an unset shell variable gives it."""
    if not name:
        raise ConfigError("the name of the output folder is empty; name one, such as heatmaps (is a variable not set?)")
    return Path(name)


def junit_name(name: str) -> Path:
    """The parser of a JUnit file; raises ConfigError for an empty name."""
    if not name:
        raise ConfigError("the name of the JUnit file is empty; name one, such as junit.xml (is a variable not set?)")
    return Path(name)


ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML config; without one: the embedded demo model.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Short for --set model=…, e.g. timm/resnet50.a1_in1k.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Override a field, e.g. model.name=resnet18."),
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="FOLDER", help="Images are called by their path below FOLDER, whatever is named."),
]
CheckOption = Annotated[
    Literal["stat", "hash"],
    typer.Option("--check", help="An input is unchanged by its size and time, or by its hash."),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
AllowCodeOption = Annotated[
    bool,
    typer.Option("--allow-code", envvar="CAMCLI_ALLOW_CODE", help="Let a config run the Python that builds its model."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def load(config: Path | None, model: str | None, overrides: list[str] | None) -> LoadedConfig:
    """The config that --config, --model and --set describe together; raises ConfigError where it is not valid."""
    from camcli.config.file import load_config

    return load_config(config, [*([f"model={model}"] if model else []), *(overrides or [])])


def from_options(record: Callable[..., Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Make a command of a function that takes one `record`, a dataclass whose fields are the command's options.

    Typer reads arguments, options, their defaults and their order from the fields.
    """

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            function(record(**given))

        command.__signature__ = inspect.signature(record, eval_str=True)  # type: ignore[attr-defined]
        return command

    return decorate
