"""Targets: what of each image's logits a heatmap explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camcli.config.schema import TargetsConfig
from camcli.errors import ConfigError
from camcli.models.classes import class_index


@dataclass(frozen=True, slots=True)
class Target:
    """A score of one image: the logit of a class, less that of the class that it is contrasted with.

    index: the class; None asks for no class, and so only for maps that need none. against: None: nothing.
    """

    index: int | None = None
    against: int | None = None

    @property
    def weights(self) -> dict[int, float]:
        """The score is the sum of weight times logit over these classes."""
        if self.index is None:
            return {}
        return {self.index: 1.0} if self.against is None else {self.index: 1.0, self.against: -1.0}


Chooser = Callable[[NDArray[np.float32]], list[Target]]


def chooser(config: TargetsConfig, labels: Sequence[str]) -> Chooser:
    """A function from one image's probabilities [K] to its targets, most probable first or as listed.

    Raises ConfigError for a class that the model does not have.
    """
    if config.contrast is not None:
        contrast = _contrast(config.contrast, labels)
        return lambda probabilities: [contrast]
    if config.classes is not None:
        listed = [Target(index) for index in dict.fromkeys(class_index(c, labels) for c in config.classes)]
        return lambda probabilities: listed
    if config.above is not None:
        threshold, fallback = config.above, 1 if config.otherwise else 0
        return lambda probabilities: _above(probabilities, threshold) or likeliest(probabilities, fallback)
    return lambda probabilities: likeliest(probabilities, config.top)


def likeliest(probabilities: NDArray[np.float32], most: int | None = 1) -> list[Target]:
    """The `most` most probable classes."""
    return [Target(index) for index in ranked(probabilities, most)]


def at_least_one(choose: Chooser) -> Chooser:
    """As `choose`, and where it chooses nothing the most probable class."""
    return lambda probabilities: choose(probabilities) or likeliest(probabilities)


def target_weights(targets: Sequence[Target | None], logits: Tensor) -> Tensor:
    """float32 [B,K], of which each row times the image's logits [K] is its target's score.

    None and rows beyond `targets` ask nothing: zeros.
    """
    rows = np.zeros(logits.shape, dtype=np.float32)
    for row, target in zip(rows, targets, strict=False):
        for index, weight in (target.weights if target else {}).items():
            row[index] += weight
    return torch.from_numpy(rows).to(logits.device)


def _contrast(classes: Sequence[int | str], labels: Sequence[str]) -> Target:
    """Why the first class rather than the second; raises ConfigError where they are the same."""
    first, second = (class_index(c, labels) for c in classes)
    if first == second:
        raise ConfigError(f"targets.contrast: {tuple(classes)} is twice the same class, {labels[first]!r}")
    return Target(first, second)


def _above(probabilities: NDArray[np.float32], threshold: float) -> list[Target]:
    """Most probable first; compared as Python's floats, as whoever reads the record compares them."""
    return [Target(i) for i in ranked(probabilities) if float(probabilities[i]) >= threshold]


def ranked(probabilities: NDArray[np.float32], most: int | None = None) -> list[int]:
    """The `most` first class indices, most probable first, ties in order of index."""
    candidates = np.arange(len(probabilities))
    if most is not None and most < len(probabilities):
        candidates = np.flatnonzero(probabilities >= np.partition(probabilities, -most)[-most])
    order: list[int] = candidates[np.argsort(-probabilities[candidates], kind="stable")][:most].tolist()
    return order
