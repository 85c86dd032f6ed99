"""Which classes of each image are explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from camcli.config.schema import TargetsConfig
from camcli.errors import ConfigError
from camcli.registry import did_you_mean

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


def class_index(wanted: int | str, labels: Sequence[str]) -> int:
    """The index of a class given by index, by label, or by one of the names that a label lists with commas."""
    if isinstance(wanted, int):
        if not 0 <= wanted < len(labels):
            raise ConfigError(f"targets: class {wanted} is not one of the model's 0..{len(labels) - 1}")
        return wanted
    found = _by_name(labels).get(wanted.casefold(), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"targets: {wanted!r} names the classes {found}; give the index")
    known = [name.strip() for label in labels for name in label.split(",")]
    raise ConfigError(f"targets: the model has no class {wanted!r}{did_you_mean(wanted, known)}")


def _by_name(labels: Sequence[str]) -> dict[str, list[int]]:
    """Whole labels first; a part of a label counts where no whole label has that name."""
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        whole.setdefault(label.casefold(), []).append(index)
        for part in label.split(","):
            parts.setdefault(part.strip().casefold(), []).append(index)
    return {**parts, **whole}
