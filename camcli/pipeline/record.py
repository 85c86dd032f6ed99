"""From what was found for an image to the record that says it; the schema is in `results.report`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camcli.images import geometry
from camcli.records import Box, Failure, Heatmap, ImageResult, Lack, Prediction
from camcli.results import versions
from camcli.results.report import ConceptHeat, Corners, FailureRecord, HeatmapRecord, ImageRecord, ModelRecord


def image_record(
    result: ImageResult,
    model: ModelRecord,
    layer: str,
    overlays: Sequence[str],
    maps: Sequence[str] = (),
    grids: Sequence[str] = (),
    fingerprint: str = "",
    look: str = "",
    above: float | None = None,
) -> ImageRecord:
    """The record of one image; `overlays` has one path for each of its heatmaps, `above` is the targets' threshold."""
    width, height = result.size
    return ImageRecord(
        id=result.id,
        source=result.source,
        predictions=tuple(map(_short, result.predictions)),
        heatmaps=tuple(_heatmap(h, o, result) for h, o in zip(result.heatmaps, overlays, strict=True)),
        without_evidence=lack(result, above),
        width=width,
        height=height,
        seen=_corners(result.seen),
        model=model,
        layer=layer,
        precision=result.precision,
        maps=tuple(maps),
        grids=tuple(grids),
        input=result.file,
        fingerprint=fingerprint,
        look=look,
        versions=versions.key(),
    )


def failure_record(failure: Failure, fingerprint: str = "", look: str = "") -> FailureRecord:
    """The record of one image that failed."""
    return FailureRecord(
        id=failure.id,
        source=failure.source,
        stage=failure.stage,
        kind=failure.kind,
        message=failure.message,
        input=failure.file,
        fingerprint=fingerprint,
        look=look,
        versions=versions.key(),
    )


def lack(result: ImageResult, above: float | None) -> Lack | None:
    """What there is too little of to see, given the probability that classes had to reach."""
    if not result.heatmaps:
        return "no_heatmap"
    if all(heatmap.empty for heatmap in result.heatmaps):
        return "empty"
    if above is None or not result.predictions or result.predictions[0].probability >= above:
        return None
    return "below" if any(heatmap.target for heatmap in result.heatmaps) else "no_class"


def shortest(value: float) -> float:
    """The decimal with the fewest digits that is the same number in float32."""
    return float(str(np.float32(value)))


def _short(prediction: Prediction) -> Prediction:
    probability, logit = shortest(prediction.probability), shortest(prediction.logit)
    return Prediction(prediction.index, prediction.label, probability, logit)


def _heatmap(heatmap: Heatmap, overlay: str, result: ImageResult) -> HeatmapRecord:
    evidence = heatmap.heat.clip(min=0)
    box = geometry.hot_box(evidence, result.seen, *result.size)
    return HeatmapRecord(
        method=heatmap.method,
        target=_short(heatmap.target) if heatmap.target else None,
        against=_short(heatmap.against) if heatmap.against else None,
        concept=_concept(heatmap),
        peak=geometry.peak(evidence, result.seen, *result.size),
        box=_corners(box) if box else None,
        raw_min=shortest(heatmap.raw_min),
        raw_max=shortest(heatmap.raw_max),
        signed=heatmap.signed,
        empty=heatmap.empty,
        reason=heatmap.reason,
        overlay=overlay,
    )


def _concept(heatmap: Heatmap) -> ConceptHeat | None:
    if heatmap.concept is None:
        return None
    return ConceptHeat(index=heatmap.concept, mean=round(float(heatmap.heat.mean()), 4))


def _corners(box: Box) -> Corners:
    return (round(box.x0, 2), round(box.y0, 2), round(box.x1, 2), round(box.y1, 2))
