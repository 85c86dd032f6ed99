"""What is different between two runs over the same images, and whether that is too much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camcli.analysis.baseline import Baseline, Grid, Place
from camcli.errors import ConfigError
from camcli.results.fingerprint import differences

WORST = 20
NOTICEABLE = 0.99
WINDOW = 7
"""Rows and columns of the windows of SSIM."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may differ: shares of the images, and the least similarity of heat that did not move."""

    top1_changed: float = 0.01
    moved: float = 0.05
    removed: float = 0.0
    similarity: float = 0.9


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two places of heat are.

    similarity: Pearson's correlation of the grids, or the overlap of the boxes where maps are missing. spearman, ssim:
    of the grids. overlap: of the regions above half of the maximum, intersection over union. shift: of the peak, in
    diagonals of the image.
    """

    similarity: float
    overlap: float
    shift: float
    spearman: float | None = None
    ssim: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """One image in both runs: (first class, its probability) before and after, and the heatmaps that both have."""

    id: str
    before: tuple[str, float]
    after: tuple[str, float]
    heat: dict[str, Agreement]
    unpaired: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """The first class is another one."""
        return self.before[0] != self.after[0]

    @property
    def similarity(self) -> float:
        """Of its heat that is least alike; 1 where there is none to compare."""
        return min((one.similarity for one in self.heat.values()), default=1.0)


@dataclass(frozen=True)
class Difference:
    """pairs: images in both; added, removed: ids of images that only the candidate or only the baseline explains."""

    baseline: str
    candidate: str
    pairs: Sequence[Pair]
    added: Sequence[str]
    removed: Sequence[str]
    without_maps: bool
    limits: Limits

    @cached_property
    def shares(self) -> dict[str, float]:
        """By what differs: of the images that both have, or of the baseline's."""
        known = max(1, len(self.pairs))
        return {
            "top1_changed": sum(pair.changed for pair in self.pairs) / known,
            "moved": sum(pair.similarity < self.limits.similarity for pair in self.pairs) / known,
            "removed": len(self.removed) / max(1, len(self.pairs) + len(self.removed)),
        }

    @property
    def exceeded(self) -> dict[str, float]:
        """Those of the shares that are larger than they may be."""
        return {name: share for name, share in self.shares.items() if share > getattr(self.limits, name)}

    @property
    def tripped(self) -> list[str]:
        """What differs more than it may, in words."""
        return [
            f"{name.replace('_', ' ')}: {share:.1%} of the images, more than {getattr(self.limits, name):.1%}"
            for name, share in self.exceeded.items()
        ]

    @property
    def worst(self) -> list[Pair]:
        """The pairs that differ most: other classes first, then the least similar heat."""
        different = [pair for pair in self.pairs if pair.changed or pair.similarity < NOTICEABLE]
        return sorted(different, key=lambda pair: (not pair.changed, pair.similarity))[:WORST]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        moves = [abs(pair.after[1] - pair.before[1]) for pair in self.pairs if not pair.changed]
        return {
            "baseline": self.baseline,
            "candidate": self.candidate,
            "images": len(self.pairs),
            "shares": {name: round(share, 6) for name, share in self.shares.items()},
            "limits": asdict(self.limits),
            "tripped": self.tripped,
            "probability_moved": round(sum(moves) / len(moves), 6) if moves else 0.0,
            "without_maps": self.without_maps,
            "added": list(self.added),
            "removed": list(self.removed),
            "worst": [{**asdict(pair), "similarity": pair.similarity} for pair in self.worst],
        }


def diff(before: Baseline, after: Baseline, limits: Limits) -> Difference:
    """Compare the answers of two runs by id; raises ConfigError for other labels or another preprocessing."""
    if before.labels_sha256 != after.labels_sha256:
        raise ConfigError(f"{before.name} and {after.name}: their models have other labels, so classes do not compare")
    if changes := differences(dict(before.input), dict(after.input)):
        raise ConfigError(f"{before.name} and {after.name}: preprocessed otherwise: input.{', input.'.join(changes)}")
    pairs = [_pair(name, before, after) for name in before.answers if name in after.answers]
    kept = [p for one in (before, after) for a in one.answers.values() for p in a.places.values()]
    return Difference(
        before.name,
        after.name,
        pairs,
        [name for name in after.answers if name not in before.answers],
        [name for name in before.answers if name not in after.answers],
        any(place.grid is None for place in kept),
        limits,
    )


def _pair(name: str, before: Baseline, after: Baseline) -> Pair:
    one, other = before.answers[name], after.answers[name]
    heat = {key: agreement(place, other.places[key]) for key, place in one.places.items() if key in other.places}
    unpaired = tuple(sorted(set(one.places) ^ set(other.places)))
    return Pair(name, (one.label, one.probability), (other.label, other.probability), heat, unpaired)


def agreement(one: Place, other: Place) -> Agreement:
    """How alike two places are; two empty ones are the same, and one empty one is nowhere near the other."""
    if one.peak is None or other.peak is None:
        same = float(one.peak is other.peak)
        return Agreement(same, same, 1 - same)
    shift = math.dist(one.peak, other.peak) / math.sqrt(2)
    boxes = _overlap_of_boxes(one.box or (0, 0, 1, 1), other.box or (0, 0, 1, 1))
    if one.grid is None or other.grid is None:
        return Agreement(boxes, boxes, shift)
    a, b = one.grid.astype(np.float64).ravel(), other.grid.astype(np.float64).ravel()
    found = correlation(a, b), overlap(one.grid, other.grid), shift, correlation(ranks(a), ranks(b))
    return Agreement(*(round(value, 6) for value in (*found, ssim(one.grid, other.grid))))


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; of constants, 1 if they are equal and 0 otherwise."""
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else float(np.array_equal(a, b))


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places in rising order, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return means


def overlap(one: Grid, other: Grid) -> float:
    """Intersection over union of the regions of at least half of the maximum."""
    a, b = one >= max(one.max(), 1) / 2, other >= max(other.max(), 1) / 2
    return float((a & b).sum() / max((a | b).sum(), 1))


def ssim(one: Grid, other: Grid) -> float:
    """Mean structural similarity over windows of WINDOW x WINDOW locations (Wang et al. 2004, uniform window)."""
    a, b = (np.lib.stride_tricks.sliding_window_view(x / 255, (WINDOW, WINDOW)) for x in (one, other))
    axes, unbiased = (-2, -1), WINDOW**2 / (WINDOW**2 - 1)
    ma, mb = a.mean(axes), b.mean(axes)
    va, vb = unbiased * ((a * a).mean(axes) - ma**2), unbiased * ((b * b).mean(axes) - mb**2)
    both = unbiased * ((a * b).mean(axes) - ma * mb)
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def _overlap_of_boxes(one: Sequence[float], other: Sequence[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - width * height
    return width * height / areas if areas > 0 else 1.0
