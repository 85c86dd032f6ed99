"""A record as the page lists it: what can be searched, filtered and sorted, and what deserves a look."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from camcli.results.report import FailureRecord, HeatmapRecord, ImageRecord

UNSURE = 0.5
CLOSE = 0.1
BORDER = 0.08
APART = 0.35

FLAGS = {
    "unsure": f"the most probable class has a probability below {UNSURE:.0%}",
    "close": f"the two most probable classes are less than {CLOSE:.0%} apart",
    "empty": "a heatmap shows no evidence",
    "border": "the heat peaks at the border of what the model saw",
    "methods-disagree": "two methods peak far apart for the same class",
}
"""What deserves a look, and why."""


def key_of(name: str) -> str:
    """What stands for an id in links and file names: 16 hex digits, whatever characters the id has."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def row_of(record: ImageRecord | FailureRecord, thumb: str, tiles: int) -> dict[str, Any]:
    """The fields of one line of the gallery; thumb: its thumbnail, of `tiles` tiles."""
    found = {"k": key_of(record.id), "id": record.id}
    if isinstance(record, FailureRecord):
        return {**found, "e": record.kind, "m": record.message}
    first, *others = record.predictions
    return {
        **found,
        "u": thumb,
        "t": tiles,
        "c": first.index,
        "l": first.label,
        "p": round(first.probability, 6),
        "g": round(first.probability - others[0].probability, 6) if others else 1,
        "f": flags_of(record),
        "w": record.width,
        "h": record.height,
        "x": [_heat_name(heatmap) for heatmap in record.heatmaps],
    }


def _heat_name(heatmap: HeatmapRecord) -> list[Any]:
    """[method, class or None, concept or None]."""
    target, concept = heatmap.target, heatmap.concept
    return [heatmap.method, target.index if target else None, concept.index if concept else None]


def flags_of(record: ImageRecord) -> list[str]:
    """The names of the flags, of `FLAGS`, that a record deserves."""
    first, *others = record.predictions
    said = {
        "unsure": first.probability < UNSURE,
        "close": bool(others) and first.probability - others[0].probability < CLOSE,
        "empty": _is_empty(record.heatmaps),
        "border": any(_at_border(heatmap, record.seen) for heatmap in record.heatmaps[:1] if not heatmap.concept),
        "methods-disagree": _disagree(record),
    }
    return [name for name, holds in said.items() if holds]


def _is_empty(heatmaps: Sequence[HeatmapRecord]) -> bool:
    """Of classes, any; an image need not have all the concepts of its folder."""
    empty = [heatmap.empty for heatmap in heatmaps]
    return bool(empty) and (all(empty) if heatmaps[0].concept else any(empty))


def _at_border(heatmap: HeatmapRecord, seen: Sequence[float]) -> bool:
    if heatmap.peak is None:
        return False
    x, y = _in_seen(heatmap.peak, seen)
    return not (BORDER <= x <= 1 - BORDER and BORDER <= y <= 1 - BORDER)


def _in_seen(place: Sequence[float], seen: Sequence[float]) -> tuple[float, float]:
    """Pixels of the image as shares of the box that the model saw."""
    x0, y0, x1, y1 = seen
    return (place[0] - x0) / (x1 - x0), (place[1] - y0) / (y1 - y0)


def _disagree(record: ImageRecord) -> bool:
    """Whether two methods have their peaks for one class further apart than `APART` of the seen box's side."""
    peaks = [(h.target.index if h.target else None, h.method, h.peak) for h in record.heatmaps if h.peak]
    return any(
        one[0] == two[0]
        and one[1] != two[1]
        and math.dist(_in_seen(one[2], record.seen), _in_seen(two[2], record.seen)) > APART
        for one, two in combinations(peaks, 2)
    )
