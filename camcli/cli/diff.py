"""`camcli diff` and `camcli baseline`: the gate between two runs, without torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from camcli.cli import console
from camcli.cli.options import JsonOption, folder_name
from camcli.errors import ConfigError


def _share(text: str) -> float:
    """`1%` or `0.01`; raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else 2.0
    if value > 1:
        raise ConfigError(f"{text!r} is no share: write 5% or 0.05")
    return value


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="Run folder, or a file of `camcli baseline`.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Run folder to be held against it.")],
    max_top1_changed: Annotated[
        str, typer.Option("--max-top1-changed", metavar="SHARE", help="Images with another first class.")
    ] = "1%",
    max_moved: Annotated[
        str, typer.Option("--max-moved", metavar="SHARE", help="Images whose heat is less alike than that.")
    ] = "5%",
    min_similarity: Annotated[
        str, typer.Option("--min-similarity", metavar="SHARE", help="Correlation of heat that did not move.")
    ] = "0.9",
    max_removed: Annotated[
        str, typer.Option("--max-removed", metavar="SHARE", help="Images of A that B does not explain.")
    ] = "0%",
    json_: JsonOption = False,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Also write Markdown, for $GITHUB_STEP_SUMMARY."),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write a JUnit file.")] = None,
) -> None:
    """Compare two runs over the same images: exit code 1 where more differs than may."""
    from camcli.analysis import verdict
    from camcli.analysis.baseline import baseline
    from camcli.analysis.diff import Limits
    from camcli.analysis.diff import diff as compare
    from camcli.results.storage import write_named

    limits = Limits(*map(_share, (max_top1_changed, max_moved, max_removed, min_similarity)))
    found = compare(baseline(before), baseline(after), limits)
    for file, text in ((markdown, verdict.markdown(found).encode()), (junit, verdict.junit(found))):
        if file:
            write_named(file, text)
    if json_:
        console.print_json(found.as_dict())
    else:
        for line in verdict.lines(found):
            typer.echo(console.visible(line))
    raise typer.Exit(1 if found.tripped else 0)


def baseline(
    out: Annotated[Path, typer.Argument(parser=folder_name, metavar="OUT", help="Run folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as base.json.gz.")],
) -> None:
    """Keep what `camcli diff` compares in a small file that can be committed."""
    from camcli.analysis.baseline import write_baseline

    found = write_baseline(out, file)
    console.say(
        f"{file}: {console.counted(len(found.answers), 'image')}, {console.counted(file.stat().st_size, 'byte')}"
    )
