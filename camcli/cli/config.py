"""`camcli config` and `camcli schema`: show, check and describe configs and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camcli.cli import console
from camcli.cli.options import AllowCodeOption, ConfigOptions, OfflineOption, SetOption, from_options, load


@from_options(ConfigOptions)
def show(options: ConfigOptions) -> None:
    """Print the whole config as YAML, and where each value came from."""
    from camcli.config.file import describe

    typer.echo(describe(options.load()))


def check(
    file: Annotated[Path, typer.Argument(help="YAML config.")],
    load_model: Annotated[bool, typer.Option("--load", help="Load the model, too: layer, targets, device.")] = False,
    overrides: SetOption = None,
    offline: OfflineOption = False,
    allow_code: AllowCodeOption = False,
) -> None:
    """Say whether a config is valid and what it names is there: exit code 0, or 2 with the place of every mistake."""
    from camcli.pipeline import preflight

    loaded = load(file, None, overrides)
    preflight.check(loaded)
    if load_model:
        from camcli.pipeline.prepare import rehearse

        rehearse(loaded.config, offline)
    console.say(f"{file}: valid")


def config_schema() -> None:
    """Print the JSON Schema of a config file."""
    from camcli.config.schema import json_schema

    console.print_json(json_schema())


def report_schema() -> None:
    """Print the JSON Schema of reports/<id>.json and of each line of results.jsonl."""
    from camcli.results.report import json_schema

    console.print_json(json_schema())
