"""The fourth stage: what was found for images to files and records, on threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

from camcli.pipeline.drawing import tops_of
from camcli.pipeline.flow import Explained, Outcome
from camcli.pipeline.order import Phase, in_order
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Failure, ImageResult


def paint(
    explained: Iterable[Explained], write: Callable[[Explained], Outcome], threads: int, stopwatch: Stopwatch
) -> Generator[Outcome]:
    """One outcome for each image, in order."""

    def timing(phase: Phase) -> AbstractContextManager[None]:
        return stopwatch.timing("wait for files") if phase == "rest" else nullcontext()

    return in_order(write, explained, threads, lambda: 3 * threads, timing)


def in_one_range(explained: Iterable[Explained]) -> Iterator[Explained]:
    """The same with the largest raw value of each method, hence once all are there; failures wait for nothing."""
    results: list[ImageResult] = []
    for one in explained:
        if isinstance(one.found, Failure):
            yield one
        else:
            results.append(one.found)
    tops = tops_of(results)
    yield from (Explained(result, tops) for result in results)
