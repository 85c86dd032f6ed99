"""The options that several commands share, and options as one record instead of many parameters."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import typer

from camcli.cli import completion
from camcli.errors import ConfigError
from camcli.models.code import VARIABLE as ALLOW_CODE

if TYPE_CHECKING:
    from camcli.config.file import LoadedConfig, Override

Options = TypeVar("Options")


def _of_config(*names: str, **about: Any) -> Any:
    """An option that stands for a field of a config, or for a whole one."""
    return typer.Option(*names, rich_help_panel="Config", **about)


def _named(what: str, example: str) -> Callable[[str], Path]:
    """A parser that raises ConfigError for an empty name, as an unset shell variable gives it."""

    def parse(name: str) -> Path:
        if not name:
            raise ConfigError(f"the name of the {what} is empty; name one, such as {example} (is a variable not set?)")
        return Path(name)

    return parse


folder_name, junit_name = _named("output folder", "heatmaps"), _named("JUnit file", "junit.xml")


ConfigOption = Annotated[
    Path | None, _of_config("--config", "-c", metavar="FILE", help="YAML; without one: the embedded demo model.")
]
ModelOption = Annotated[
    str | None,
    _of_config(
        "--model", "-m", metavar="MODEL", help="Such as timm/resnet50.a1_in1k.", autocompletion=completion.models
    ),
]
SetOption = Annotated[
    list[str] | None,
    _of_config(
        "--set",
        "-s",
        metavar="FIELD=VALUE",
        help="Any field, e.g. overlay.grid=true.",
        autocompletion=completion.fields,
    ),
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
    typer.Option("--allow-code", envvar=ALLOW_CODE, help="Let a config run the Python that builds its model."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOptions:
    """The options that stand for fields of a config, each short for a --set."""

    config: ConfigOption = None
    model: ModelOption = None
    method: Annotated[
        list[str] | None,
        _of_config(
            "--method", metavar="NAME", help="Repeat, or put commas between.", autocompletion=completion.methods
        ),
    ] = None
    layer: Annotated[list[str] | None, _of_config("--layer", metavar="PATH", help="Such as layer4[-1].")] = None
    target: Annotated[
        list[str] | None, _of_config("--target", metavar="CLASS", help="By name or index; top1, top2, …")
    ] = None
    weights: Annotated[str | None, _of_config("--weights", metavar="FILE", help="Of your own; none: random.")] = None
    labels: Annotated[str | None, _of_config("--labels", metavar="FILE", help="One label a line.")] = None
    size: Annotated[
        str | None,
        _of_config("--size", metavar="SIZE", help="Of overlays: original, model, or pixels of the longest side."),
    ] = None
    alpha: Annotated[str | None, _of_config("--alpha", metavar="0..1", help="Opacity of the heat.")] = None
    overrides: SetOption = None

    def load(self) -> LoadedConfig:
        """The config that the options describe; raises ConfigError where it is not valid."""
        return load(self.config, self.model, [*self.short(), *(self.overrides or [])])

    def short(self) -> Iterator[Override]:
        """The short options but --model, each with its name."""
        lists = {"--method": ("methods", self.method), "--layer": ("layer", self.layer)}
        for option, (field, values) in lists.items():
            if values:
                yield option, f"{field}={json.dumps(several(values))}"
        if self.target:
            yield "--target", f"targets={json.dumps(targets(self.target))}"
        texts = {
            "--weights": ("model.weights", self.weights),
            "--labels": ("model.labels", self.labels),
            "--size": ("overlay.size", self.size),
            "--alpha": ("overlay.alpha", self.alpha),
        }
        for option, (field, value) in texts.items():
            if value is not None:
                yield option, f"{field}={value if option in ('--size', '--alpha') else json.dumps(value)}"


def several(values: list[str]) -> list[str]:
    """The values of an option that may be repeated or list them with commas; a label's own comma has a space behind."""
    marked = [value.replace(", ", "\0") for value in values]
    return [part.replace("\0", ", ") for value in marked for part in value.split(",")]


def targets(values: list[str]) -> Any:
    """What --target stands for in a config: a number of classes from the most probable one on, or a list of classes."""
    wanted = several(values)
    if len(wanted) == 1 and wanted[0].startswith("top") and wanted[0][3:].isdecimal():
        return {"top": int(wanted[0][3:])}
    return [int(value) if value.isdecimal() else value for value in wanted]


def load(config: Path | None, model: str | None, overrides: Sequence[Override] | None) -> LoadedConfig:
    """The config that --config, --model and overrides describe together; raises ConfigError where it is not valid."""
    from camcli.config.file import load_config

    named: list[Override] = [("--model", f"model={json.dumps(with_source(model))}")] if model else []
    return load_config(config, [*named, *(overrides or [])])


def with_source(model: str) -> str:
    """`resnet18d` with the library that has it; raises ConfigError where several have it, or none."""
    from camcli.config.model import Source

    if set("/:") & set(model) or model in get_args(Source):
        return model
    from camcli.models.names import qualified

    return qualified(model)


def from_options(record: Callable[..., Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Make a command of a function that takes one `record`, a dataclass whose fields are the command's options.

    Typer reads arguments, options, their defaults and their order from the fields.
    """

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            function(record(**given))

        command.__signature__ = _signature(record)  # type: ignore[attr-defined]
        return command

    return decorate


def _signature(record: Callable[..., object]) -> inspect.Signature:
    """Of the record, with types in place of their names, in whatever module a field was declared."""
    types = get_type_hints(record, include_extras=True)
    found = inspect.signature(record)
    return found.replace(parameters=[p.replace(annotation=types[name]) for name, p in found.parameters.items()])
