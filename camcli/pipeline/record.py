"""From what was found for an image to the record that says it; the schema is in `results.report`."""

from __future__ import annotations

from typing import Any

from camcli.images import geometry
from camcli.records import Box, Failure, FileState, Heatmap, ImageResult, Prediction
from camcli.results import versions
from camcli.results.report import (
    Corners,
    FailureRecord,
    FileRecord,
    HeatmapRecord,
    ImageRecord,
    ModelRecord,
    RankedRecord,
    TargetRecord,
)


def image_record(
    result: ImageResult, model: ModelRecord, layer: str, overlays: list[str], maps: list[str], grids: list[str]
) -> ImageRecord:
    """The record of one image; `overlays` has one path for each of its heatmaps."""
    width, height = result.size
    return ImageRecord(
        id=result.id,
        source=result.source,
        input=_file(result.file),
        versions=versions.key(),
        width=width,
        height=height,
        seen=_corners(result.seen),
        model=model,
        layer=layer,
        precision=result.precision,
        top=[RankedRecord(rank=i, **_target(p)) for i, p in enumerate(result.top, start=1)],
        heatmaps=[_heatmap(h, o, result) for h, o in zip(result.heatmaps, overlays, strict=True)],
        maps=maps,
        grids=grids,
    )


def failure_record(failure: Failure, fingerprint: str = "") -> FailureRecord:
    """The record of one image that failed."""
    return FailureRecord(
        id=failure.id,
        source=failure.source,
        input=_file(failure.file),
        fingerprint=fingerprint,
        versions=versions.key(),
        stage=failure.stage,
        kind=failure.kind,
        message=failure.message,
    )


def _heatmap(heatmap: Heatmap, overlay: str, result: ImageResult) -> HeatmapRecord:
    evidence = heatmap.heat.clip(min=0)
    box = geometry.hot_box(evidence, result.seen, *result.size)
    return HeatmapRecord(
        method=heatmap.method,
        target=TargetRecord(**_target(heatmap.target)) if heatmap.target else None,
        against=TargetRecord(**_target(heatmap.against)) if heatmap.against else None,
        signed=heatmap.signed,
        overlay=overlay,
        raw_min=heatmap.raw_min,
        raw_max=heatmap.raw_max,
        empty=heatmap.empty,
        reason=heatmap.reason,
        peak=geometry.peak(evidence, result.seen, *result.size),
        box=_corners(box) if box else None,
    )


def _file(state: FileState | None) -> FileRecord | None:
    return FileRecord(bytes=state.bytes, mtime_ns=state.mtime_ns, sha256=state.sha256) if state else None


def _target(prediction: Prediction) -> dict[str, Any]:
    return {
        "index": prediction.index,
        "label": prediction.label,
        "probability": prediction.probability,
        "logit": prediction.logit,
    }


def _corners(box: Box) -> Corners:
    return (round(box.x0, 2), round(box.y0, 2), round(box.x1, 2), round(box.y1, 2))
