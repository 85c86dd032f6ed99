"""What the page shows of one image: its row in the gallery, its thumbnail, and the details of its own view."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from camcli.analysis.page import thumbs
from camcli.analysis.page.heat import packed
from camcli.analysis.page.rows import key_of, row_of
from camcli.analysis.page.store import FOLDER, Store, link
from camcli.errors import CamcliError
from camcli.images.decode import WHOLE, shrunk_size
from camcli.images.find import unchanged
from camcli.results.report import FailureRecord, ImageRecord
from camcli.results.run import Run


@dataclass(frozen=True, slots=True)
class Shown:
    """row: what is searched, filtered and sorted. detail: what is shown when the image is opened."""

    row: dict[str, Any]
    detail: dict[str, Any]


def file_stem(name: str, number: int) -> str:
    """What the files for an image are called up to the first dot, by its id and stamp."""
    return f"{key_of(name)}-{number:08x}"


class Shower:
    """Makes what is shown of each image, and the files for it.

    linked: images are shown from where they are; otherwise from copies in the page's folder.
    """

    def __init__(self, run: Run, store: Store, linked: bool) -> None:
        self.run = run
        self.store = store
        self.linked = linked

    def show(self, record: ImageRecord | FailureRecord, stamp: int) -> Shown:
        """The row and details of a record; files that are there for this `stamp` are kept."""
        name = file_stem(record.id, stamp)
        source = self._source(record)
        detail: dict[str, Any] = {"record": asdict(record)}
        if isinstance(record, FailureRecord):
            return Shown(row_of(record, "", 0), detail)
        thumb, tiles = self._thumb(record, name, source)
        detail["image"] = self._large(name, source)
        detail["overlays"] = [link(heatmap.overlay) for heatmap in record.heatmaps]
        detail["heat"] = [self._heat(record, i) for i in range(len(record.heatmaps))]
        return Shown(row_of(record, thumb, tiles), detail)

    def _source(self, record: ImageRecord | FailureRecord) -> Path | None:
        """The file that was explained; None where it is another one by now."""
        path = Path(record.source)
        return path if record.input and path.is_file() and unchanged(record.input, path) else None

    def _thumb(self, record: ImageRecord, name: str, source: Path | None) -> tuple[str, int]:
        """The name of the thumbnail and how many tiles it has; the first is the image, where it can be had."""
        overlays = [self.run.path / heatmap.overlay for heatmap in record.heatmaps]
        tiles = len(overlays) + bool(source)
        thumb = f"{FOLDER}/thumbs/{name[:2]}/{name}.{tiles}.webp"
        if tiles and not self.store.has(thumb):
            image = thumbs.small(source) if source else None
            self.store.write(thumb, thumbs.strip(image, overlays, self._part(record), not self.run.finds_concepts))
        return thumb, tiles

    def _part(self, record: ImageRecord) -> tuple[int, int]:
        """Width and height of the image in its overlays, without what is written below it."""
        told = self.run.manifest
        size = told.config.get("overlay", {}).get("size")
        if size == "model" and told.input.get("size"):
            height, width = told.input["size"]
            return width, height
        return shrunk_size((record.width, record.height), size if isinstance(size, int) else WHOLE)

    def _large(self, name: str, source: Path | None) -> str | None:
        """The address of the image at full size, None where it cannot be had."""
        if source is None:
            return None
        if self.linked:
            return source.absolute().as_uri()
        for kind in thumbs.LARGE_KINDS:
            if self.store.has(large := f"{FOLDER}/images/{name[:2]}/{name}.{kind}"):
                return large
        found = thumbs.large(source)
        if found is None:
            return None
        data, kind = found
        self.store.write(large := f"{FOLDER}/images/{name[:2]}/{name}.{kind}", data)
        return large

    def _heat(self, record: ImageRecord, index: int) -> dict[str, Any] | None:
        """One heatmap as bytes, None where maps were not kept or are gone."""
        if not record.maps:
            return None
        try:
            return packed(self.run.heat(record, index), record.heatmaps[index].signed)
        except CamcliError:
            return None
