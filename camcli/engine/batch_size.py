"""How many images share a forward pass."""

from __future__ import annotations

import math
import time

from camcli.engine.engine import Engine
from camcli.engine.targets import likeliest
from camcli.engine.tuning import blank

SMALLEST = 4
LARGEST = {"cpu": 32, "cuda": 512}
GAIN = 1.05
LOOKS = 3


def even_batches(images: int, batch_size: int, at_once: int = 1) -> int:
    """The size of at most `batch_size` with which `images` fill their batches best, `at_once` of them at a time.

    Sizes above 4 are multiples of 4: libraries compute the images of odd batches in different orders.
    """
    rounds = max(1, math.ceil(images / (batch_size * at_once)))
    even = max(1, math.ceil(images / (rounds * at_once)))
    return even if even <= 2 else min(batch_size, math.ceil(even / 4) * 4)


def find_batch_size(engine: Engine, images: int) -> int:
    """The smallest size that no doubling makes 5 % faster, at most what `images` need and what memory takes."""
    best, most = SMALLEST, LARGEST.get(engine.device.type, 64)
    fastest = math.inf
    for size in (SMALLEST * 2**i for i in range(16)):
        if size > max(SMALLEST, min(most, images)):
            break
        try:
            seconds = _seconds(engine, size) / size
        except (RuntimeError, MemoryError):  # out of memory; a real fault shows again in the run
            break
        if seconds * GAIN > fastest:
            break
        best, fastest = size, seconds
    return best


def _seconds(engine: Engine, size: int) -> float:
    """The shortest of a few times for a forward pass and a backward pass of the likeliest class."""
    pixels = blank(engine, size)
    taken = []
    for _ in range(LOOKS):
        start = time.perf_counter()
        engine.explain(pixels, likeliest)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
