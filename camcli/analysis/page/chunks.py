"""What stands where in the page's data: images in chunks that keep their places from one build to the next."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from camcli.results.ledger import Entry

SIZE = 100

Stamps = dict[str, int]
"""Of the images of a chunk by id: what tells whether a record is still the same."""


def stamp(entry: Entry, built_as: str) -> int:
    """A number that changes with what the page shows of an image; built_as: whatever else decides about that."""
    shown = entry.source, entry.done, entry.fingerprint, entry.look, entry.versions, entry.file, entry.message
    written = sorted(entry.files.items())
    return zlib.crc32(repr((shown, written, built_as)).encode(errors="surrogatepass"))


def arranged(before: Sequence[Stamps], stamps: Mapping[str, int]) -> tuple[list[Stamps], list[int]]:
    """The chunks of all images that there are, and the places of those that must be built anew.

    An image stays in the chunk where it was. New ones fill the last chunk and then others behind it.
    """
    chunks = [{name: stamps[name] for name in chunk if name in stamps} for chunk in before]
    placed = {name for chunk in chunks for name in chunk}
    for name in stamps:
        if name in placed:
            continue
        if not chunks or len(chunks[-1]) >= SIZE:
            chunks.append({})
        chunks[-1][name] = stamps[name]
    old = [*before, *[{}] * len(chunks)]
    return chunks, [place for place, chunk in enumerate(chunks) if list(chunk.items()) != list(old[place].items())]
