"""The second stage: images to batches, the next of which is put together while one is explained."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from camcli.pipeline.flow import Batch, Loaded
from camcli.records import Failure


def batch(loaded: Iterable[Loaded | Failure], size: int, pinned: bool) -> Generator[Batch]:
    """Runs that hold `size` images each, failures in between; failures wait for few images.

    pinned: the inputs are in memory that a GPU reads by itself.
    """
    batches = _batches(loaded, size, pinned)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (found := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield found
            del found


def _batches(loaded: Iterable[Loaded | Failure], size: int, pinned: bool) -> Iterator[Batch]:
    entries: list[Loaded | Failure] = []
    images = 0
    for entry in loaded:
        entries.append(entry)
        images += isinstance(entry, Loaded)
        if not 0 < images < size or len(entries) >= 4 * size:
            yield _batch(entries, pinned)
            entries, images = [], 0
    if entries:
        yield _batch(entries, pinned)


def _batch(entries: Sequence[Loaded | Failure], pinned: bool) -> Batch:
    inputs = [entry.image.input for entry in entries if isinstance(entry, Loaded)]
    stacked = torch.from_numpy(np.stack(inputs)) if inputs else torch.empty(0)
    return Batch(entries, stacked.pin_memory() if pinned else stacked)
