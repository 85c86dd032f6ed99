"""The third stage: batches to what the model says of each image, on as many threads as there are engines."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Generic

from camcli.engine.engine import Explanation
from camcli.errors import ItemError
from camcli.pipeline.engines import A, Engines
from camcli.pipeline.flow import Batch, Explained, Loaded, Stop, failure, in_order
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Failure, ImageResult


@dataclass(frozen=True, slots=True)
class Answered(Generic[A]):
    """An image, and what an engine answered."""

    loaded: Loaded
    answer: A | ItemError


def explain(
    batches: Iterator[Batch], engines: Engines[Explanation], stop: Stop, stopwatch: Stopwatch
) -> Generator[Explained]:
    """Each entry of each batch, in order, with what was found for it."""
    with closing(answered(batches, engines, stop, stopwatch)) as found:
        yield from map(_explained, found)  # unlike a loop, holds on to no image that was passed on


def answered(
    batches: Iterator[Batch], engines: Engines[A], stop: Stop, stopwatch: Stopwatch
) -> Generator[Answered[A] | Failure]:
    """Each entry of each batch, in order, with the engines' answer.

    Once `stop` says so, the batches that engines are at are finished, at most one each, and none is begun.
    """

    def coming() -> Batch | None:
        with stopwatch.timing("wait for images"):
            batch = next(batches, None)
        return None if stop() else batch

    def work(batch: Batch) -> deque[Answered[A] | Failure]:
        return deque() if stop() else _answered(batch, engines)

    count, waiting = len(engines.engines), partial(stopwatch.timing, "wait for the model")
    with closing(in_order(work, iter(coming, None), count, lambda: count, waiting)) as found:
        for batch in found:
            while batch:
                yield batch.popleft()  # nothing here holds on to an image that was passed on


def _answered(batch: Batch, engines: Engines[A]) -> deque[Answered[A] | Failure]:
    answers = iter(engines.answers(batch.inputs))
    return deque(e if isinstance(e, Failure) else Answered(e, next(answers)) for e in batch.entries)


def _explained(one: Answered[Explanation] | Failure) -> Explained:
    if isinstance(one, Failure):
        return Explained(one, None)
    loaded, answer, item, image = one.loaded, one.answer, one.loaded.item, one.loaded.image
    if isinstance(answer, ItemError):
        return Explained(failure(item, answer, loaded.file), loaded)
    found = item.id, str(item.path), image.size, image.seen, answer.predictions, answer.heatmaps, loaded.file
    return Explained(ImageResult(*found, answer.precision), loaded)
