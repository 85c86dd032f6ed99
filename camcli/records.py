"""The frozen records that cross module lines; none of them imports anything heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA_VERSION: Literal[2] = 2
Stage = Literal["read", "decode", "forward", "write"]
Precision = Literal["fp32", "bf16", "fp16"]
BackendName = Literal["torch", "openvino", "compile"]
Lack = Literal["no_heatmap", "no_class", "below", "empty"]
"""What an explained image has too little of to see.

No class reached `targets.above`, and so, no_heatmap: there is none; no_class: only those that need no class; below: of
the most probable class. empty: no heatmap has any evidence.
"""
PRODUCTS = ("overlays", "reports", "maps")
"""The folders below a run folder that hold what was made from images."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the original image; it may leave the image when the input was padded."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        """Pixels from the left edge to the right edge."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Pixels from the top edge to the bottom edge."""
        return self.y1 - self.y0

    def clip(self, width: int, height: int) -> Box:
        """The part of this box that lies inside an image of `width` x `height` pixels."""
        return Box(max(self.x0, 0.0), max(self.y0, 0.0), min(self.x1, width), min(self.y1, height))


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells whether a file is still the same; sha256 is None where the file could not be read."""

    bytes: Annotated[int, Ge(0)]
    mtime_ns: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one class: probability 0..1, logit without unit."""

    index: Annotated[int, Ge(0)]
    label: str
    probability: Annotated[float, Interval(ge=0, le=1)]
    logit: float


@dataclass(frozen=True, slots=True)
class Heatmap:
    """One method's answer for one target, or for the image where it is the same for every class: then target is None.

    heat: float32 [h, w] at the resolution of the layer or of the model's input, scaled to 0..1, or to -1..1 if
        `signed`, where negative values speak against the target.
    raw_min, raw_max: range of the map before scaling, which the scaled map hides.
    empty: the map has nothing to show, so `heat` is zero everywhere; reason: why.
    against: the class that the target is contrasted with.
    concept: what the map is of instead of a class, by its number in concepts.json.
    """

    method: str
    layer: str
    target: Prediction | None
    heat: NDArray[np.float32]
    raw_min: float
    raw_max: float
    empty: bool
    signed: bool = False
    against: Prediction | None = None
    reason: str = ""
    concept: int | None = None


@dataclass(frozen=True, slots=True)
class ImageResult:
    """All that was found for one image; size is (width, height) in pixels after EXIF orientation.

    predictions: the most probable classes, most probable first.
    precision: of the forward pass that these numbers come from.
    """

    id: str
    source: str
    size: tuple[int, int]
    seen: Box
    predictions: tuple[Prediction, ...]
    heatmaps: tuple[Heatmap, ...]
    file: FileState | None = None
    precision: Precision = "fp32"


@dataclass(frozen=True, slots=True)
class Failure:
    """One image that could not be explained, and why; kind is the name of the error class."""

    id: str
    source: str
    stage: Stage
    kind: str
    message: str
    file: FileState | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended: done, failed and skipped add up to its images; kept of them are from an earlier run.

    vanished: images of an earlier run whose files are gone. foreign: records that were made with another config.
    without_evidence: how many of `done` have little to see, by what they lack.
    redone: images of a run in 16 bits that were explained again in fp32.
    skipped_files: files in the folders that were passed over, by their extension.
    explained: images that this run explained itself. known: failures that were expected; mended: ids of expected
    failures that did not fail.
    """

    done: int
    failed: int
    skipped: int
    seconds: float
    out: str
    exit_code: int
    failures: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    vanished: int = 0
    foreign: int = 0
    without_evidence: dict[str, int] = field(default_factory=dict)
    redone: int = 0
    skipped_files: dict[str, int] = field(default_factory=dict)
    explained: int = 0
    known: int = 0
    mended: tuple[str, ...] = ()
