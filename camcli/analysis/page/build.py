"""From a run folder to its page: index.html, and what it loads from report/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from camcli.analysis.page.chunks import Stamps, arranged, stamp
from camcli.analysis.page.shown import Shower, Shown, file_stem
from camcli.analysis.page.store import Store, chunk_name
from camcli.analysis.page.summary import Row, overview
from camcli.analysis.page.template import assets
from camcli.errors import ConfigError
from camcli.pipeline.limits import usable_cores
from camcli.results.run import Run, open_run

BUNDLE = 20
LAYOUT = 2
"""Counts up when what is written for an image changes, so that pages of earlier versions are built anew."""


@dataclass(frozen=True, slots=True)
class Built:
    """index: the page. images: how many it shows, of which `fresh` are new or have changed since it was built."""

    index: Path
    images: int
    fresh: int


def build(out: Path, linked: bool = False, advance: Callable[[int], None] = lambda count: None) -> Built:
    """Write the page of the run in `out`; what it shows already costs nothing.

    linked: images are shown from where they are, not from copies. advance: is told how many more images are done.
    Raises ConfigError where `out` holds no run, OutputError where the page cannot be written.
    """
    run, store = open_run(out), Store(out)
    before: list[Stamps] = _before(store)
    stamps = {name: stamp(entry, f"{LAYOUT} {linked}") for name, entry in run.ledger.entries.items()}
    if not stamps:
        raise ConfigError(f"{out}: no image was explained yet, so there is nothing to show; {run.command} first")
    chunks, stale = arranged(before, stamps)
    rows = _known_rows(store, len(chunks))
    lost = [place for place, chunk in enumerate(chunks) if _is_lost(store, place, len(rows[place]), len(chunk))]
    for place in (stale := sorted({*stale, *lost})):
        shown = _shown(Shower(run, store, linked), run, chunks[place])
        store.write_chunk("detail", place, [one.detail for one in shown])
        rows[place] = [one.row for one in shown]
        advance(len(shown))
    _write_rows(store, rows, stale)
    _write_page(store, run, rows)
    _tidy(store, chunks)
    store.write_state(chunks)
    known = {name: number for chunk in before for name, number in chunk.items()}
    return Built(out / "index.html", len(stamps), sum(known.get(name) != number for name, number in stamps.items()))


def pages(store: Store) -> list[list[Row]]:
    """The rows of each chunk of the page that is there."""
    return _known_rows(store, len(_before(store)))


def _before(store: Store) -> list[Stamps]:
    """The chunks of the page that is there."""
    found = store.read_state()
    return found if isinstance(found, list) else []


def _known_rows(store: Store, count: int) -> list[list[Row]]:
    """The rows of each chunk as the build before wrote them, empty where there are none."""
    found: list[list[Row]] = []
    for number in range(-(-count // BUNDLE)):
        chunks = store.read_chunk("rows", number) or []
        found += [*chunks, *[[]] * (BUNDLE - len(chunks))]
    return found[:count]


def _is_lost(store: Store, place: int, rows: int, images: int) -> bool:
    """Whether what the build before wrote of a chunk is not all there."""
    return rows != images or not store.has(chunk_name("detail", place))


def _shown(shower: Shower, run: Run, chunk: Stamps) -> list[Shown]:
    """What is shown of the images of a chunk, made on all cores."""
    records = list(run.read(run.ledger.entries[name] for name in chunk))
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(shower.show, records, chunk.values()))


def _write_rows(store: Store, rows: Sequence[Sequence[Row]], stale: Sequence[int]) -> None:
    for number in sorted({place // BUNDLE for place in stale}):
        store.write_chunk("rows", number, list(islice(rows, number * BUNDLE, (number + 1) * BUNDLE)))


def _write_page(store: Store, run: Run, rows: Sequence[Sequence[Row]]) -> None:
    everything = [row for chunk in rows for row in chunk]
    store.write_chunk("overview", 0, overview(run, everything, BUNDLE, -(-len(rows) // BUNDLE)))
    for name, data in assets(run.path.absolute().name).items():
        store.write(name, data)


def _tidy(store: Store, chunks: Sequence[Stamps]) -> None:
    """Delete what the page of an earlier build showed and this one does not."""
    bundles = range(-(-len(chunks) // BUNDLE))
    data = [chunk_name("overview", 0), *(chunk_name("rows", number) for number in bundles)]
    data += [chunk_name("detail", number) for number in range(len(chunks))]
    store.keep_only("data", {Path(name).name for name in data}, "")
    shown = {file_stem(name, number) for chunk in chunks for name, number in chunk.items()}
    for folder in ("thumbs", "images"):
        store.keep_only(folder, shown, ".")
