"""Some images of a page in one file that can be sent by mail."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from PIL import Image

from camcli.analysis.page.build import BUNDLE, pages
from camcli.analysis.page.store import Store, chunk_text
from camcli.analysis.page.summary import Row, overview
from camcli.analysis.page.template import single
from camcli.analysis.page.thumbs import UNREADABLE, webp
from camcli.errors import ConfigError
from camcli.results import storage
from camcli.results.run import open_run
from camcli.results.tolerance import read_ids

MOST = 500
SIDE = 720

CHOICES: Mapping[str, Callable[[Row], bool]] = {
    "failed": lambda row: "e" in row,
    "unsure": lambda row: "unsure" in row.get("f", []),
    "flagged": lambda row: bool(row.get("f")),
}


def pack(out: Path, file: Path, only: str | None) -> int:
    """Write the page of chosen images of the run in `out`, which has a page already, to `file`; how many they are.

    only: failed, unsure, flagged, or a text file with an id on each line; None: all. Raises ConfigError for
    no image or for more than 500, OutputError where the file cannot be written.
    """
    run, store = open_run(out), Store(out)
    chosen = _chosen(store, only)
    if not chosen:
        raise ConfigError(f"{out}: no image is {only}, so there is no page to write")
    if len(chosen) > MOST:
        raise ConfigError(
            f"{out}: a single file holds at most {MOST} images, not {len(chosen)}; choose with --only "
            f"{', '.join(CHOICES)} or a file of ids"
        )
    rows = [{**row, "u": _embedded(out, row["u"], None)} if row.get("u") else row for row, _ in chosen]
    details = [_with_images(out, detail) for _, detail in chosen]
    data = {"overview": overview(run, rows, BUNDLE, 1), "rows": [rows], "detail": details}
    page = single(run.path.absolute().name, [chunk_text(kind, 0, value) for kind, value in data.items()])
    storage.write_named(file, page)
    return len(chosen)


def _chosen(store: Store, only: str | None) -> list[tuple[Row, dict[str, Any]]]:
    """The rows and details of the images that `only` names, in the order of the page."""
    wanted = _wanted(only)
    found: list[tuple[Row, dict[str, Any]]] = []
    for place, rows in enumerate(pages(store)):
        if any(map(wanted, rows)):
            details = store.read_chunk("detail", place) or []
            found += [pair for pair in zip(rows, details, strict=True) if wanted(pair[0])]
    return found


def _wanted(only: str | None) -> Callable[[Row], bool]:
    if only is None:
        return lambda row: True
    if only in CHOICES:
        return CHOICES[only]
    if not Path(only).is_file():
        raise ConfigError(f"--only {only}: neither one of {', '.join(CHOICES)} nor a file of ids")
    names = read_ids(Path(only), "--only")
    return lambda row: row["id"] in names


def _with_images(out: Path, detail: dict[str, Any]) -> dict[str, Any]:
    """The details with their images in them; overlays only where the page cannot paint the heat itself."""
    if "heat" not in detail:
        return detail
    image = _embedded(out, detail["image"], SIDE) if detail["image"] else None
    overlays = [
        None if heat and image else _embedded(out, address, SIDE)
        for address, heat in zip(detail["overlays"], detail["heat"], strict=True)
    ]
    return {**detail, "image": image, "overlays": overlays}


def _embedded(out: Path, address: str, side: int | None) -> str | None:
    """A file as a data: address, at most `side` pixels long; None where it cannot be read."""
    path = out / Path(unquote_to_bytes(urlsplit(address).path).decode(errors="surrogateescape"))
    try:
        if side is None:
            data = path.read_bytes()
        else:
            with Image.open(path) as image:
                image.thumbnail((side, side))
                data = webp(image.convert("RGB"), 75)
    except UNREADABLE:
        return None
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
