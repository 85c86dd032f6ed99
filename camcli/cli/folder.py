"""`camcli status`, `merge` and `export`: what there is to know and to do about a run folder, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camcli.cli import console
from camcli.cli.options import CheckOption, JsonOption, folder_name


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

    console.say(f"{file}: {write(out, file)} rows")
