"""From results to files in the run folder, and to the records that name them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from PIL import Image

from camcli.config.schema import RunConfig
from camcli.engine.engine import Engine
from camcli.errors import CamcliError, ItemError
from camcli.images.decode import RGB_BYTES, LoadedImage, loading
from camcli.images.find import Item
from camcli.images.geometry import Heat
from camcli.images.memory import Budget
from camcli.pipeline.record import image_record
from camcli.pipeline.stopwatch import Stopwatch
from camcli.pipeline.stream import Stream, failure
from camcli.records import Failure, Heatmap, ImageResult
from camcli.render import maps
from camcli.render.grid import grid, grid_names
from camcli.render.overlay import encode, overlay_name, paint
from camcli.results import report
from camcli.results.fingerprint import SHORT
from camcli.results.rundir import RunDir
from camcli.results.storage import fitted

Outcome = report.ImageRecord | Failure
# At most, for each pixel: of the file, and of what encoding it takes.
_ENCODED_BYTES = {"jpg": 2, "png": 4, "webp": 2}
_ENCODER_BYTES = {"jpg": 2, "png": 4, "webp": 16}


class Painter:
    """Writes each result's files and makes its record; whole: it needs the images' own pixels for that."""

    def __init__(
        self, config: RunConfig, engine: Engine, folder: RunDir, fingerprint: str, stopwatch: Stopwatch
    ) -> None:
        self.config = config
        self.layer = engine.layer
        self.folder = folder
        self.fingerprint = fingerprint[:SHORT]
        model = engine.model
        self.preprocess = model.preprocess
        self.whole = config.overlay.size == "original"
        self._timing = stopwatch.timing
        self.model = report.ModelRecord(source=model.source, name=model.name, weights_sha256=model.weights_sha256)
        self.full_range: dict[str, float] = {}

    def outcomes(self, stream: Stream, items: Sequence[Item]) -> Generator[Outcome]:
        """Run the stream to its end, one outcome for each item."""
        if self.config.overlay.scale == "run":
            return self._in_one_range(stream, items)
        return stream.outcomes(items, self._write, self._cost)

    def _in_one_range(self, stream: Stream, items: Sequence[Item]) -> Generator[Outcome]:
        """Explain everything, find each method's largest value, then read the images again to paint them."""
        results: list[ImageResult] = []
        with closing(stream.outcomes(items, lambda result, image: result)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    yield outcome
                else:
                    results.append(outcome)
        if stream.stopped():
            return  # the range of all is not known, so the next run explains all of them again
        for heatmap in (heatmap for result in results for heatmap in result.heatmaps if not heatmap.empty):
            self.full_range[heatmap.method] = max(self.full_range.get(heatmap.method, 0.0), _top(heatmap))
        with ThreadPoolExecutor(stream.threads) as pool:
            for written in pool.map(lambda result: self._write_again(result, stream.budget), results):
                yield written
                if stream.stopped():
                    break

    def _write_again(self, result: ImageResult, budget: Budget) -> Outcome:
        item = Item(result.id, Path(result.source))
        try:
            with loading(item.path, self.preprocess, self.whole, budget, self._cost(result)) as image:
                return self._write(result, image)
        except CamcliError:
            raise
        except ItemError as error:
            return failure(item, error, result.file)
        except Exception as error:  # encoders raise many kinds
            return failure(item, ItemError("write", type(error).__name__, str(error)), result.file)

    def _write(self, result: ImageResult, image: LoadedImage) -> report.ImageRecord:
        files, record = self._painted(result, image)
        own = fitted(f"reports/{result.id}.json") if self.config.report else None
        sizes = {name: len(data) for name, data in files.items()}
        sealed, text = report.sealed(record, self.fingerprint, sizes, own)
        if own:
            files[own] = text
        with self._timing("write"):
            for name, data in files.items():
                self.folder.write(name, data)
        return sealed

    def _cost(self, result: ImageResult) -> int:
        """Bytes that painting an image of its own size takes beside it: copies of it, and the encoded files."""
        if not self.whole:
            return 0
        look, overlays = self.config.overlay, len(result.heatmaps)
        copies = overlays if look.grid else min(overlays - 1, 1)
        each = RGB_BYTES * max(copies, 0) + _ENCODED_BYTES[look.format] * overlays + _ENCODER_BYTES[look.format]
        return each * result.size[0] * result.size[1]

    def _painted(self, result: ImageResult, loaded: LoadedImage) -> tuple[dict[str, bytes], report.ImageRecord]:
        """The files of one image by name, and the record that names them."""
        look = self.config.overlay
        files = {fitted(name): data for name, data in maps.WRITERS[self.config.maps](result).items()}
        overlays = [fitted(overlay_name(result, heatmap, look)) for heatmap in result.heatmaps]
        grids = {fitted(name): members for name, members in grid_names(result, look).items()}
        record = image_record(result, self.model, self.layer, overlays, list(files), list(grids))
        painted: list[Image.Image] = []
        for name, heatmap in zip(overlays, result.heatmaps, strict=True):
            last = heatmap is result.heatmaps[-1] and not grids
            with self._timing("render"):
                image = paint(loaded, self._shown(heatmap), look, heatmap.signed, last)
            with self._timing("encode"):
                files[name] = encode(image, look)
            if grids:
                painted.append(image)
        for name, members in grids.items():
            tiles = [(result.heatmaps[i], painted[i]) for i in members]
            files[name] = encode(grid(loaded, tiles, look), look)
        return files, record

    def _shown(self, heatmap: Heatmap) -> Heat:
        """The heat that the colours stand for: scaled by the image's own range, or by that of the run."""
        top = self.full_range.get(heatmap.method, 0.0)
        if heatmap.empty or top <= 0:
            return heatmap.heat
        if heatmap.signed:
            return heatmap.heat * (_top(heatmap) / top)
        low = max(heatmap.raw_min, 0.0)
        return (heatmap.heat * (heatmap.raw_max - low) + low) / top


def _top(heatmap: Heatmap) -> float:
    """The raw value that heat 1 stands for; a signed map is scaled by its largest magnitude."""
    return max(heatmap.raw_max, -heatmap.raw_min) if heatmap.signed else heatmap.raw_max
