"""The third stage: batches to what the model says of each image, on as many threads as there are engines."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Generic

from camcli.engine.engine import Explanation
from camcli.errors import ItemError
from camcli.pipeline.engines import A, Engines
from camcli.pipeline.flow import Batch, Explained, Loaded, failure
from camcli.pipeline.order import Phase, in_order
from camcli.pipeline.stopwatch import Stopwatch, Wait
from camcli.records import Failure, ImageResult

_WAITS: Mapping[Phase, Wait] = {"room": "wait for files", "thing": "wait for images", "work": "wait for the model"}


@dataclass(frozen=True, slots=True)
class Answered(Generic[A]):
    """An image, and what an engine answered."""

    loaded: Loaded
    answer: A | ItemError


def explain(batches: Iterable[Batch], engines: Engines[Explanation], stopwatch: Stopwatch) -> Generator[Explained]:
    """Each entry of each batch, in order, with what was found for it."""
    with closing(answered(batches, engines, stopwatch)) as found:
        yield from map(_explained, found)


def answered(batches: Iterable[Batch], engines: Engines[A], stopwatch: Stopwatch) -> Generator[Answered[A] | Failure]:
    """Each entry of each batch, in order, with the engines' answer.

    Each engine has at most one batch done that nobody has asked for yet.
    """
    count = len(engines.engines)

    def timing(phase: Phase) -> AbstractContextManager[None]:
        return stopwatch.timing(_WAITS[phase], 1 / count) if phase in _WAITS else nullcontext()

    with closing(in_order(partial(_answered, engines), batches, count, lambda: 2 * count, timing)) as found:
        for entries in found:
            yield from entries


def _answered(engines: Engines[A], batch: Batch) -> list[Answered[A] | Failure]:
    answers = iter(engines.answers(batch.inputs))
    return [e if isinstance(e, Failure) else Answered(e, next(answers)) for e in batch.entries]


def _explained(one: Answered[Explanation] | Failure) -> Explained:
    if isinstance(one, Failure):
        return Explained(one)
    loaded, answer, item, image = one.loaded, one.answer, one.loaded.item, one.loaded.image
    if isinstance(answer, ItemError):
        return Explained(failure(item, answer, loaded.file))
    found = item.id, str(item.path), image.size, image.seen, answer.predictions, answer.heatmaps, loaded.file
    return Explained(ImageResult(*found, answer.precision))
