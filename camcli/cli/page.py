"""`camcli report`: the page of a run folder, without torch."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from camcli.cli import console
from camcli.cli.options import JsonOption, folder_name
from camcli.errors import ConfigError


def report(
    out: Annotated[Path, typer.Argument(parser=folder_name, metavar="OUT", help="Run folder.")],
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    link_originals: Annotated[
        bool, typer.Option("--link-originals", help="Show images from where they are, instead of copies.")
    ] = False,
    single_file: Annotated[
        Path | None, typer.Option("--single-file", metavar="FILE", help="Also write chosen images into one HTML file.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="CHOICE", help="For --single-file: failed, unsure, flagged, or ids.txt."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Build OUT/index.html, a page of the whole run that opens from the disk; what it shows already costs nothing."""
    from camcli.analysis.page.build import build
    from camcli.analysis.page.single import pack

    if only and not single_file:
        raise ConfigError("--only chooses what --single-file holds; name a FILE with --single-file")
    built = build(out, link_originals)
    packed = pack(out, single_file, only) if single_file else 0
    shown = single_file or built.index
    if json_:
        console.print_json({"page": str(shown), "images": packed or built.images, "fresh": built.fresh})
    else:
        console.say(f"{built.index}: {console.counted(built.images, 'image')}, {built.fresh} of them new or changed")
        if single_file:
            console.say(f"{single_file}: {console.counted(packed, 'image')}")
    if open_:
        webbrowser.open(shown.absolute().as_uri())
