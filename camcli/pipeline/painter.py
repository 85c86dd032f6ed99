"""From a result to files in the run folder, and to the record that names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from camcli.config.schema import RunConfig
from camcli.images.decode import LoadedImage
from camcli.pipeline.drawing import draw, drawing_cost, legend_of
from camcli.pipeline.record import image_record
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import ImageResult
from camcli.render import maps
from camcli.render.overlay import longest
from camcli.results import report
from camcli.results.concepts import Concept
from camcli.results.fingerprint import SHORT, look_of
from camcli.results.ledger import Line, line_for
from camcli.results.rundir import RunDir
from camcli.results.storage import fitted

if TYPE_CHECKING:
    from camcli.engine.engine import Engine


class Painter:
    """Writes each result's files and makes its record.

    keep: how many of the images' own pixels it needs along their longest side. one_range: it needs the range of all
        maps of the run. concepts: what the maps are of, if not of classes.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        folder: RunDir,
        fingerprint: str,
        stopwatch: Stopwatch,
        concepts: Sequence[Concept] = (),
    ) -> None:
        self.config = config
        self.layer = engine.layer
        self.folder = folder
        self.fingerprint = fingerprint[:SHORT]
        self.look = look_of(config.overlay.model_dump(mode="json"))[:SHORT]
        model = engine.model
        self.preprocess = model.preprocess
        self.keep = longest(config.overlay)
        self.one_range = config.in_one_range
        self.legend = legend_of(concepts)
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
        """Bytes that painting takes beside the image that is painted on."""
        return drawing_cost(len(result.heatmaps), result.size, self.config.overlay, self.legend)

    def _painted(
        self, result: ImageResult, loaded: LoadedImage, tops: Mapping[str, float]
    ) -> tuple[dict[str, bytes], report.ImageRecord]:
        """The files of one image by name, and the record that names them."""
        kept = {fitted(name): data for name, data in maps.WRITERS[self.config.maps](result).items()}
        drawn = draw(result, loaded, self.config.overlay, tops, self.stopwatch, self.legend)
        about = list(kept), drawn.grids, self.fingerprint, self.look, self.config.targets.above
        return {**kept, **drawn.files}, image_record(result, self.model, self.layer, drawn.overlays, *about)
