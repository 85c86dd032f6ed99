"""`camcli status`, `merge`, `export` and `paint`: what there is to know and to do about a run folder, without torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from camcli.cli import console, summary
from camcli.cli.options import CheckOption, JsonOption, SetOption, folder_name, load
from camcli.errors import ConfigError

if TYPE_CHECKING:
    from camcli.config.schema import OverlayConfig


def status(
    out: Annotated[Path, typer.Argument(parser=folder_name, metavar="OUT", help="Run folder.")],
    check: CheckOption = "stat",
    json_: JsonOption = False,
) -> None:
    """Say what is done, failed, missing and out of date in a run folder, and how to go on: exit code 0 or 1."""
    from camcli.results.status import inspect

    found = inspect(out, check)
    if json_:
        console.print_json(found.as_dict())
    else:
        console.print_status(found)
    raise typer.Exit(0 if found.complete else 1)


def merge(
    out: Annotated[
        Path, typer.Argument(parser=folder_name, metavar="OUT", help="Run folder whose parts were made with --shard.")
    ],
    json_: JsonOption = False,
) -> None:
    """Join the parts of a run into results.jsonl and run.json; exit code 1 where parts are missing."""
    from camcli.results.merge import merge as join

    manifest = join(out)
    if json_:
        console.print_json(manifest.as_json())
    else:
        counts = manifest.counts
        console.say(
            f"{out}: {console.counted(counts.done, 'image')} explained, {counts.failed} failed, in one results.jsonl"
        )
        for line in console.evidence_lines(manifest.without_evidence, manifest.above):
            console.say(line)
    raise typer.Exit(manifest.exit_code)


def export(
    out: Annotated[Path, typer.Argument(parser=folder_name, metavar="OUT", help="Run folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="results.csv, results.jsonl or results.parquet.")],
) -> None:
    """Write a run as a table, with a row for each image and heatmap, for pandas, DuckDB and spreadsheets."""
    from camcli.analysis.export import export as write

    console.say(f"{file}: {console.counted(write(out, file), 'row')}")


def paint(
    out: Annotated[Path, typer.Argument(parser=folder_name, metavar="OUT", help="Run folder with kept maps.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", rich_help_panel="Config", metavar="FILE", help="YAML; without one: the look of the run."
        ),
    ] = None,
    overrides: SetOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing unless something is left.")] = False,
    json_: JsonOption = False,
) -> None:
    """Draw the overlays of a run anew, from its maps and images: another style, colour map, size, caption or grid."""
    from camcli.cli.progress import Progress
    from camcli.pipeline.interrupt import Interrupt
    from camcli.pipeline.repaint import repaint

    look = _look(out, config, overrides or [])
    with Progress(sys.stderr, quiet=quiet) as progress, Interrupt(progress.tell_now) as interrupt:
        found = repaint(out, look, progress, interrupt)
    if json_:
        console.print_json({**asdict(found), "left": {failure.id: str(failure.message) for failure in found.left}})
    for line in summary.left(found):
        console.say(f"left as it is: {line}")
    if not quiet or found.left:
        console.say(summary.repainted(found))
    raise typer.Exit(found.exit_code)


def _look(out: Path, config: Path | None, overrides: list[str]) -> OverlayConfig:
    """The look of the run in `out`, or of a config, with --set; raises ConfigError for other fields than overlays'."""
    from camcli.results.run import open_run

    wrong = next((text for text in overrides if not text.startswith(("overlay.", "overlay="))), None)
    if wrong:
        raise ConfigError(f"--set {wrong}: paint changes how overlays look, so it takes fields of overlay only")
    now = open_run(out).manifest.config.get("overlay", {})
    before = [] if config else [f"overlay={json.dumps(now)}"]
    return load(config, None, [*before, *overrides]).config.overlay
