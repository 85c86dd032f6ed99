"""The third stage: batches to what the model says of each image, on as many threads as there are engines."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial

from camcli.engine.engine import Explanation
from camcli.errors import ItemError
from camcli.pipeline.engines import Engines
from camcli.pipeline.flow import Batch, Explained, Loaded, Stop, failure, in_order
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Failure, ImageResult


def explain(batches: Iterator[Batch], engines: Engines, stop: Stop, stopwatch: Stopwatch) -> Generator[Explained]:
    """Each entry of each batch, in order.

    Once `stop` says so, the batches that engines are at are finished, at most one each, and none is begun.
    """

    def coming() -> Batch | None:
        with stopwatch.timing("wait for images"):
            batch = next(batches, None)
        return None if stop() else batch

    def work(batch: Batch) -> deque[Explained]:
        return deque() if stop() else _explained(batch, engines)

    count, waiting = len(engines.engines), partial(stopwatch.timing, "wait for the model")
    with closing(in_order(work, iter(coming, None), count, lambda: count, waiting)) as found:
        for batch in found:
            while batch:
                yield batch.popleft()  # nothing here holds on to an image that was passed on


def _explained(batch: Batch, engines: Engines) -> deque[Explained]:
    answers = iter(engines.answers(batch.inputs))
    return deque(Explained(e, None) if isinstance(e, Failure) else _result(e, next(answers)) for e in batch.entries)


def _result(loaded: Loaded, answer: Explanation | ItemError) -> Explained:
    item, image = loaded.item, loaded.image
    if isinstance(answer, ItemError):
        return Explained(failure(item, answer, loaded.file), loaded)
    found = item.id, str(item.path), image.size, image.seen, answer.top, answer.heatmaps, loaded.file
    return Explained(ImageResult(*found, answer.precision), loaded)
