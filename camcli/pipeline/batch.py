"""The second stage: images to batches, the next of which is put together while one is explained."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from camcli.pipeline.flow import Batch, Loaded
from camcli.pipeline.order import in_order
from camcli.records import Failure


def batch(loaded: Iterable[Loaded | Failure], size: int, pinned: bool) -> Generator[Batch]:
    """Runs that hold `size` images each, failures in between; failures wait for few images.

    pinned: the inputs are in memory that a GPU reads by itself.
    """
    return in_order(partial(_batch, pinned), _runs(loaded, size), 1, lambda: 1)


def _runs(loaded: Iterable[Loaded | Failure], size: int) -> Iterator[Sequence[Loaded | Failure]]:
    entries: list[Loaded | Failure] = []
    images = 0
    for entry in loaded:
        entries.append(entry)
        images += isinstance(entry, Loaded)
        if not 0 < images < size or len(entries) >= 4 * size:
            yield entries
            entries, images = [], 0
    if entries:
        yield entries


def _batch(pinned: bool, entries: Sequence[Loaded | Failure]) -> Batch:
    inputs = [entry.image.input for entry in entries if isinstance(entry, Loaded)]
    stacked = torch.from_numpy(np.stack(inputs)) if inputs else torch.empty(0)
    return Batch(entries, stacked.pin_memory() if pinned else stacked)
