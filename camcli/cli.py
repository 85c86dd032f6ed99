"""The command line: parse, call one use-case, print its report, exit. The only module that prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from camcli.errors import CamcliError

if TYPE_CHECKING:
    from camcli.config import RunConfig
    from camcli.configfile import LoadedConfig
    from camcli.inputs import Item
    from camcli.models import Entry
    from camcli.records import RunReport

EXIT_CODES = (
    "Exit codes: 0 all done · 1 finished, but images failed · 2 usage or config · 3 fatal (model, weights, disk) · "
    "5 no images found · 75 output folder in use · 130/143 interrupted."
)

app = typer.Typer(
    help="Where did the classifier look? Heatmap overlays and top-5 reports for folders of images.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
config_app = typer.Typer(help="Show, check and describe configs.", no_args_is_help=True)
schema_app = typer.Typer(help="JSON Schemas of what camcli writes.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(schema_app, name="schema")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML config; without one: the embedded demo model.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Override a field, e.g. model.name=resnet18."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Short for --set model=…, e.g. timm/resnet50.a1_in1k.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def main() -> None:
    """Entry point: errors that a user can act on become one message and an exit code."""
    try:
        app()
    except CamcliError as error:
        _say(f"camcli: {error}")
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from camcli import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command(
    epilog="Examples: [b]camcli run photos --out out[/b] · [b]camcli run @list.txt -c configs/vit_base.yaml "
    "--out out[/b] · [b]find . -name '*.jpg' | camcli run - --out out -s 'targets=[\"tabby\"]'[/b]\n\n" + EXIT_CODES
)
def run(
    inputs: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, @list.txt, or - for paths on standard input.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")],
    config: ConfigOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    ext: Annotated[
        list[str] | None, typer.Option("--ext", help="File extension to look for in folders; repeat for more.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first N images.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the images and stop.")] = False,
    offline: OfflineOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    json_: JsonOption = False,
) -> None:
    """Explain images: overlays, JSON reports and a manifest below --out."""
    from camcli.inputs import EXTENSIONS, discover

    loaded = _load(config, model, overrides)
    items = discover(inputs, ext or EXTENSIONS, limit)
    if dry_run:
        _print_plan([item.id for item in items], out, json_)
        return
    if not quiet:
        _announce(loaded.config, len(items))
    raise typer.Exit(_run(loaded.config, items, out, offline, quiet, json_))


def _run(config: RunConfig, items: list[Item], out: Path, offline: bool, quiet: bool, json_: bool) -> int:
    from camcli.interrupt import Interrupt
    from camcli.pipeline import run as run_pipeline
    from camcli.progress import Progress

    with Interrupt() as interrupt, Progress(len(items), None if quiet else sys.stderr) as progress:
        outcome = run_pipeline(config, items, out, progress.advance, interrupt, offline)
    if json_:
        _print_json(outcome.manifest)
    if not quiet:
        _print_summary(outcome.report)
    return outcome.report.exit_code


@app.command()
def layers(
    config: ConfigOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    offline: OfflineOption = False,
    json_: JsonOption = False,
) -> None:
    """List the layers that a map can be read from, and mark the one that a run would use."""
    from camcli.pipeline import candidates

    found = [asdict(candidate) for candidate in candidates(_load(config, model, overrides).config, offline)]
    if json_:
        _print_json(found)
    else:
        _print_layers(found)


class _ListByDefault(TyperGroup):
    """`camcli models PATTERN` is `camcli models list PATTERN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before what is no command."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


models_app = typer.Typer(help="Models that can be explained: `camcli models 'resnet*'`.", cls=_ListByDefault)
app.add_typer(models_app, name="models")


@models_app.command("list")
def models_list(
    pattern: Annotated[str | None, typer.Argument(help="Glob such as 'resnet*' or 'timm/vit_*'.")] = None,
    json_: JsonOption = False,
) -> None:
    """List models: weights to be had, weights in the local cache, input size and parameters (with a PATTERN)."""
    from camcli.models import list_models

    entries = list_models(pattern)
    if json_:
        _print_json([asdict(entry) for entry in entries])
    else:
        _print_models(entries)


@models_app.command("fetch")
def models_fetch(
    names: Annotated[list[str], typer.Argument(help="Such as timm/resnet50.a1_in1k.")],
    offline: OfflineOption = False,
) -> None:
    """Download weights ahead of time and print where they are."""
    from camcli.models import fetch

    for name in names:
        typer.echo(f"{name}\t{fetch(name, offline)}")


@config_app.command("show")
def config_show(config: ConfigOption = None, model: ModelOption = None, overrides: SetOption = None) -> None:
    """Print the whole config as YAML, and where each value came from."""
    from camcli.configfile import describe

    typer.echo(describe(_load(config, model, overrides)))


@config_app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="YAML config.")]) -> None:
    """Say whether a config is valid: exit code 0, or 2 with the place of every mistake."""
    _load(file, None, None)
    _say(f"{file}: valid")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a config file."""
    from camcli.config import json_schema

    _print_json(json_schema())


@schema_app.command("report")
def schema_report() -> None:
    """Print the JSON Schema of reports/<id>.json and of each line of results.jsonl."""
    from camcli.report import json_schema

    _print_json(json_schema())


def _load(config: Path | None, model: str | None, overrides: list[str] | None) -> LoadedConfig:
    from camcli.configfile import load_config

    return load_config(config, [*([f"model={model}"] if model else []), *(overrides or [])])


def _say(text: str) -> None:
    """A line on standard error, with control characters from file names made visible."""
    typer.echo("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text), err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, sort_keys=True))


def _announce(config: RunConfig, images: int) -> None:
    model = config.model
    _say(f"{images} images, model {model.source}/{model.name}, layer {', '.join(config.layer)}")
    if model.weights == "none":
        _say("warning: model.weights is none, so the weights are random and the heatmaps mean nothing")


def _print_plan(ids: list[str], out: Path, json_: bool) -> None:
    if json_:
        _print_json({"images": ids, "out": str(out)})
        return
    for name in ids:
        _say(name)
    _say(f"{len(ids)} images would be explained into {out}")


def _print_summary(report: RunReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    rate = f"{report.done / report.seconds:.1f} images/s" if report.seconds else ""
    table.add_row("explained", str(report.done), rate)
    table.add_row("failed", str(report.failed), ", ".join(f"{n} {kind}" for kind, n in report.failures.items()))
    if report.skipped:
        table.add_row("not reached", str(report.skipped), "interrupted")
    table.add_row("seconds", f"{report.seconds:.1f}", "")
    Console(stderr=True).print(table)
    _say(f"{report.out}: overlays/, reports/, results.jsonl, run.json")


def _print_layers(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree("layers with a spatial layout, in the order of the forward pass")
    for candidate in found:
        text = escape(f"{candidate['path']}  {candidate['type']}  {candidate['shape']}  {candidate['layout']}")
        tree.add(f"[bold green]{text}  <- chosen[/]" if candidate["chosen"] else text)
    Console().print(tree)


def _print_models(entries: Sequence[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "pretrained", "cached", "input", "parameters", box=None, pad_edge=False)
    for entry in entries:
        parameters = f"{entry.parameters / 1e6:.1f} M" if entry.parameters else ""
        height, width = entry.input_size
        yes = {True: "yes", False: "-"}
        name = f"{entry.source}/{entry.name}"
        table.add_row(name, yes[entry.pretrained], yes[entry.cached], f"{height}x{width}", parameters)
    Console().print(table)
