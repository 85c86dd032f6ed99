"""The records of a run as rows of a table: one for each image and heatmap, flat, under names that read alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from camcli.records import Prediction
from camcli.results.report import FailureRecord, HeatmapRecord, ImageRecord, Record

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known of one image and one of its heatmaps; None: there is no such thing.

    A failed image has one row, with its stage, kind and message; an explained one without heatmaps has one, too.
    margin: between the two most probable classes. concept: what the map is of instead of a class, and mean_heat how
    much of it there is. peak, box and seen: in pixels of the original image. overlay, map: paths below the run folder.
    """

    id: str
    source: str
    status: str
    top1: str | None = None
    top1_index: int | None = None
    top1_probability: float | None = None
    top1_logit: float | None = None
    top2: str | None = None
    top2_probability: float | None = None
    margin: float | None = None
    method: str | None = None
    target: str | None = None
    target_index: int | None = None
    target_probability: float | None = None
    target_logit: float | None = None
    against: str | None = None
    concept: int | None = None
    mean_heat: float | None = None
    peak_x: int | None = None
    peak_y: int | None = None
    box_x0: float | None = None
    box_y0: float | None = None
    box_x1: float | None = None
    box_y1: float | None = None
    raw_min: float | None = None
    raw_max: float | None = None
    signed: bool | None = None
    empty: bool | None = None
    reason: str | None = None
    without_evidence: str | None = None
    overlay: str | None = None
    map: str | None = None
    width: int | None = None
    height: int | None = None
    seen_x0: float | None = None
    seen_y0: float | None = None
    seen_x1: float | None = None
    seen_y1: float | None = None
    model: str | None = None
    weights_sha256: str | None = None
    layer: str | None = None
    precision: str | None = None
    stage: str | None = None
    kind: str | None = None
    message: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    fingerprint: str
    look: str
    versions: str

    def cells(self) -> dict[str, Cell]:
        """The values by the names of their columns, in order; text without characters that no encoding has."""
        return {name: _text(getattr(self, name)) for name in self.__slots__}


def columns() -> dict[str, type]:
    """The type of each column, in order."""
    hints = get_type_hints(Row)
    return {field.name: (get_args(hints[field.name]) or (hints[field.name],))[0] for field in fields(Row)}


def rows_of(records: Iterable[Record]) -> Iterator[Row]:
    """The rows of records, in their order."""
    for record in records:
        about = _about(record)
        if isinstance(record, FailureRecord):
            yield Row(**about, stage=record.stage, kind=record.kind, message=record.message)
            continue
        image = {**about, **_of_image(record)}
        if not record.heatmaps:
            yield Row(**image)
        for index, heatmap in enumerate(record.heatmaps):
            yield Row(**image, **_of_heatmap(heatmap), map=_map_of(record, index))


def _about(record: Record) -> dict[str, Any]:
    file = record.input
    return {
        **{name: getattr(record, name) for name in ("id", "source", "status", "fingerprint", "look", "versions")},
        "bytes": file.bytes if file else None,
        "sha256": file.sha256 if file else None,
    }


def _of_image(record: ImageRecord) -> dict[str, Any]:
    first, second = (*record.predictions, None, None)[:2]
    return {
        **_of_class("top1", first),
        "top2": second.label if second else None,
        "top2_probability": second.probability if second else None,
        "margin": round(first.probability - second.probability, 9) if first and second else None,
        **{name: getattr(record, name) for name in ("without_evidence", "width", "height", "layer", "precision")},
        **dict(zip(("seen_x0", "seen_y0", "seen_x1", "seen_y1"), record.seen, strict=True)),
        "model": f"{record.model.source}/{record.model.name}",
        "weights_sha256": record.model.weights_sha256,
    }


def _of_class(name: str, found: Prediction | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        name: found.label,
        f"{name}_index": found.index,
        f"{name}_probability": found.probability,
        f"{name}_logit": found.logit,
    }


def _of_heatmap(heatmap: HeatmapRecord) -> dict[str, Any]:
    return {
        **_of_class("target", heatmap.target),
        **{name: getattr(heatmap, name) for name in ("method", "raw_min", "raw_max", "signed", "empty", "overlay")},
        "against": heatmap.against.label if heatmap.against else None,
        "concept": heatmap.concept.index if heatmap.concept else None,
        "mean_heat": heatmap.concept.mean if heatmap.concept else None,
        "reason": heatmap.reason or None,
        **dict(zip(("peak_x", "peak_y"), heatmap.peak or (), strict=False)),
        **dict(zip(("box_x0", "box_y0", "box_x1", "box_y1"), heatmap.box or (), strict=False)),
    }


def _map_of(record: ImageRecord, index: int) -> str | None:
    """One .npz file holds all maps of an image, and there is a .png file for each."""
    if not record.maps:
        return None
    return record.maps[index] if len(record.maps) == len(record.heatmaps) else record.maps[0]


def _text(value: Cell) -> Cell:
    """Names of files may hold bytes that are no text; they are shown as Python does."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
