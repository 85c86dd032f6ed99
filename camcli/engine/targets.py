"""Which classes of each image are explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from camcli.config.schema import TargetsConfig
from camcli.errors import ConfigError
from camcli.models.classes import class_index

Chooser = Callable[[NDArray[np.float32]], list[int]]


def chooser(config: TargetsConfig, labels: Sequence[str]) -> Chooser:
    """A function from one image's probabilities [K] to class indices, most probable first or as listed.

    Raises ConfigError for a class that the model does not have.
    """
    if config.contrast is not None:
        wanted = class_index(config.contrast[0], labels)
        return lambda probabilities: [wanted]
    if config.classes is not None:
        listed = list(dict.fromkeys(class_index(c, labels) for c in config.classes))
        return lambda probabilities: listed
    if config.above is not None:
        threshold, fallback = config.above, 1 if config.otherwise else 0
        return lambda probabilities: _above(probabilities, threshold) or ranked(probabilities, fallback)
    return lambda probabilities: ranked(probabilities, config.top)


def _above(probabilities: NDArray[np.float32], threshold: float) -> list[int]:
    """Most probable first; compared as Python's floats, as whoever reads the record compares them."""
    return [i for i in ranked(probabilities) if float(probabilities[i]) >= threshold]


def against(config: TargetsConfig, labels: Sequence[str]) -> int | None:
    """The class that targets are contrasted with, if any; raises ConfigError for one that does not serve."""
    if config.contrast is None:
        return None
    first, second = (class_index(c, labels) for c in config.contrast)
    if first == second:
        raise ConfigError(f"targets.contrast: {config.contrast} is twice the same class, {labels[first]!r}")
    return second


def ranked(probabilities: NDArray[np.float32], most: int | None = None) -> list[int]:
    """The `most` first class indices, most probable first, ties in order of index."""
    candidates = np.arange(len(probabilities))
    if most is not None and most < len(probabilities):
        candidates = np.flatnonzero(probabilities >= np.partition(probabilities, -most)[-most])
    order: list[int] = candidates[np.argsort(-probabilities[candidates], kind="stable")][:most].tolist()
    return order
