"""`camcli models`, `layers`, `methods` and `doctor`: what there is to explain with, and whether it works here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from camcli.cli import console
from camcli.cli.options import (
    AllowCodeOption,
    ConfigOption,
    JsonOption,
    ModelOption,
    OfflineOption,
    SetOption,
    load,
    with_source,
)
from camcli.errors import ConfigError


def list_models(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a glob such as 'timm/vit_*'.")] = None,
    json_: JsonOption = False,
) -> None:
    """List models: weights in the local cache, input size, parameters (with a PATTERN), and published weights."""
    from camcli.models import source

    entries = source.list_models(pattern)
    if json_:
        console.print_json([asdict(entry) for entry in entries])
    else:
        console.print_models(entries)


def fetch(
    names: Annotated[list[str], typer.Argument(help="Such as timm/resnet50.a1_in1k.")],
    offline: OfflineOption = False,
) -> None:
    """Download weights ahead of time and print where they are."""
    from camcli.models import source

    for name in map(with_source, names):
        typer.echo(f"{name}\t{source.fetch(name, offline)}")


def layers(
    config: ConfigOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    offline: OfflineOption = False,
    allow_code: AllowCodeOption = False,
    json_: JsonOption = False,
) -> None:
    """List the layers that a map can be read from, and mark the one that a run would use."""
    from camcli.pipeline.prepare import candidates

    found = [asdict(candidate) for candidate in candidates(load(config, model, overrides).config, offline)]
    if json_:
        console.print_json(found)
    else:
        console.print_layers(found)


def labels(
    pattern: Annotated[str | None, typer.Argument(help="A word of the labels, or a part of one.")] = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    offline: OfflineOption = False,
    allow_code: AllowCodeOption = False,
    json_: JsonOption = False,
) -> None:
    """List the classes of a model that targets can name: index, label, and WordNet id where it is known."""
    from camcli.models.classes import matching, wordnet_ids
    from camcli.models.source import labels_of

    known = labels_of(load(config, model, overrides).config.model, offline)
    ids = wordnet_ids(known) or [None] * len(known)
    found = [{"index": i, "label": known[i], "wordnet": ids[i]} for i in matching(pattern, known)]
    if not known:
        raise ConfigError("model.labels: there are none; name a file with one label a line, or leave it out")
    if not found:
        raise ConfigError(f"none of the {len(known)} labels has {pattern!r} in it; `camcli labels` lists them all")
    if json_:
        console.print_json(found)
    else:
        console.print_labels(found)


def methods(json_: JsonOption = False) -> None:
    """List the methods: what each one is good for, what it costs beside the forward pass, and its paper."""
    from camcli.engine.methods import table

    if json_:
        console.print_json(table.described())
    else:
        console.print_methods(table.listed())


def doctor(json_: JsonOption = False) -> None:
    """Print versions, devices and caches, and test the embedded model on drawn scenes: exit code 0 or 1."""
    from camcli.cli.doctor import examine

    found = examine()
    if json_:
        console.print_json(asdict(found))
    else:
        console.print_diagnosis(found)
    raise typer.Exit(0 if found.healthy else 1)
