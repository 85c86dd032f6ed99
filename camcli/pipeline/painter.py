"""From a result to files in the run folder, and to the record that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from PIL import Image

from camcli.config.schema import RunConfig
from camcli.engine.engine import Engine
from camcli.images.decode import RGB_BYTES, LoadedImage, shrunk_size
from camcli.images.geometry import Heat
from camcli.pipeline.record import image_record
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Heatmap, ImageResult
from camcli.render import maps
from camcli.render.caption import captioned, top_of
from camcli.render.grid import grid, grid_name, tile
from camcli.render.overlay import canvas, encode, longest, overlay_name, paint
from camcli.results import report
from camcli.results.fingerprint import SHORT, look_of
from camcli.results.ledger import Line, line_for
from camcli.results.rundir import RunDir
from camcli.results.storage import fitted

# At most, for each pixel: of the file, and of what encoding it takes.
_ENCODED_BYTES = {"jpg": 2, "png": 4, "webp": 2}
_ENCODER_BYTES = {"jpg": 2, "png": 4, "webp": 16}


class Painter:
    """Writes each result's files and makes its record.

    keep: how many of the images' own pixels it needs along their longest side. one_range: it needs the range of all
        maps of the run.
    """

    def __init__(
        self, config: RunConfig, engine: Engine, folder: RunDir, fingerprint: str, stopwatch: Stopwatch
    ) -> None:
        self.config = config
        self.layer = engine.layer
        self.folder = folder
        self.fingerprint = fingerprint[:SHORT]
        self.look = look_of(config.overlay.model_dump(mode="json"))[:SHORT]
        model = engine.model
        self.preprocess = model.preprocess
        self.keep = longest(config.overlay)
        self.one_range = config.overlay.scale == "run"
        self.stopwatch = stopwatch
        self.model = report.ModelRecord(source=model.source, name=model.name, weights_sha256=model.weights_sha256)

    def write(self, result: ImageResult, image: LoadedImage, tops: Mapping[str, float]) -> Line:
        """The line of its record, once the files are there; tops: for each method, what its hottest colour stands for.

        Methods without one are scaled image by image. Raises ItemError, and OutputError where the run has to end.
        """
        files, record = self._painted(result, image, tops)
        own = fitted(f"reports/{result.id}.json") if self.config.report else None
        record = replace(record, files={name: len(data) for name, data in files.items()})
        record, line, text = report.sealed(record, own)
        if own:
            files[own] = text
        with self.stopwatch.timing("write"):
            for name, data in files.items():
                self.folder.write(name, data)
        return line_for(record, line)

    def cost(self, result: ImageResult) -> int:
        """Bytes that painting takes beside the image that is painted on: copies of it, and the encoded files."""
        width, height = shrunk_size(result.size, self.keep)
        look, overlays = self.config.overlay, len(result.heatmaps)
        copies = min(overlays - (not look.grid), 1) + bool(look.caption)
        each = RGB_BYTES * max(copies, 0) + _ENCODED_BYTES[look.format] * overlays + _ENCODER_BYTES[look.format]
        return each * width * height if self.keep else 0

    def _painted(
        self, result: ImageResult, loaded: LoadedImage, tops: Mapping[str, float]
    ) -> tuple[dict[str, bytes], report.ImageRecord]:
        """The files of one image by name, and the record that names them."""
        look = self.config.overlay
        files = {fitted(name): data for name, data in maps.WRITERS[self.config.maps](result).items()}
        overlays = [fitted(overlay_name(result, heatmap, look)) for heatmap in result.heatmaps]
        sheet = grid_name(result, look)
        grids = [fitted(sheet)] if sheet else []
        about = list(files), grids, self.fingerprint, self.look, self.config.targets.above
        record = image_record(result, self.model, self.layer, overlays, *about)
        tiles: list[Image.Image] = []
        for name, heatmap in zip(overlays, result.heatmaps, strict=True):
            last = heatmap is result.heatmaps[-1] and not grids
            with self.stopwatch.timing("render"):
                image = paint(loaded, _shown(heatmap, tops), look, heatmap.signed, last)
                if grids:
                    tiles.append(tile(image, result.heatmaps))
                if look.caption:
                    image = captioned(image, heatmap, look, tops.get(heatmap.method, 0.0))
            with self.stopwatch.timing("encode"):
                files[name] = encode(image, look)
        for name in grids:
            plain = tile(canvas(loaded, look)[0], result.heatmaps)
            files[name] = encode(grid(plain, result.heatmaps, tiles, look, tops), look)
        return files, record


def _shown(heatmap: Heatmap, tops: Mapping[str, float]) -> Heat:
    """The heat that the colours stand for: scaled by the image's own range, or by that of the run."""
    top = tops.get(heatmap.method, 0.0)
    if heatmap.empty or top <= 0:
        return heatmap.heat
    if heatmap.signed:
        return heatmap.heat * (top_of(heatmap) / top)
    low = max(heatmap.raw_min, 0.0)
    return (heatmap.heat * (heatmap.raw_max - low) + low) / top
