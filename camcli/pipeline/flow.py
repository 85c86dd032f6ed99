"""What the stages of a run hand on to each other, and how each of them works on several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from camcli.errors import ItemError
from camcli.images.decode import LoadedImage
from camcli.images.find import Item
from camcli.records import Failure, FileState, ImageResult
from camcli.results.ledger import Line

Outcome = Line | Failure
"""What is recorded of an image: the line of its record once its files are there, or its failure."""
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image on its way; where memory is short it left its pixels behind and is decoded again to be painted."""

    item: Item
    file: FileState | None
    image: LoadedImage
    without_pixels: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and failures in order; inputs: uint8 [N,H,W,3] of the N images."""

    entries: Sequence[Loaded | Failure]
    inputs: Tensor


@dataclass(frozen=True, slots=True)
class Explained:
    """What was found for an image, and the image itself where it was read and is still in memory."""

    found: ImageResult | Failure
    loaded: Loaded | None


class Backend(Protocol):
    """A device of this process, or the processes of several: whatever turns items into outcomes."""

    def __call__(self, items: Sequence[Item], stopped: Callable[[], bool]) -> Generator[Outcome]:
        """One outcome for each of `items` as they come; once `stopped` says so, no more batches are begun."""


class Stop:
    """Whether nothing more is to be begun: because `asked` says so, or because the stages are being closed."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked
        self._closing = False

    def __call__(self) -> bool:
        """Ask on any thread."""
        return self._closing or self._asked()

    def close(self) -> None:
        """From now on, yes."""
        self._closing = True


def in_order(
    work: Callable[[T], R],
    things: Iterable[T],
    threads: int,
    ahead: Callable[[], int],
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[R]:
    """`work` of each thing, on threads, in the order of `things`; they have ended when this is closed.

    ahead: how many more may be begun or done than were taken. waiting: measures how long results are waited for.
    """
    under_way: deque[Future[R]] = deque()

    def oldest() -> R:
        with waiting():
            return under_way.popleft().result()

    with ThreadPoolExecutor(threads) as pool:
        try:
            for thing in things:
                under_way.append(pool.submit(work, thing))
                del thing  # the only other hold on its image
                while len(under_way) > ahead():
                    yield oldest()
            while under_way:
                yield oldest()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def failure(item: Item, error: ItemError, file: FileState | None = None) -> Failure:
    """The record of an error on `item`."""
    return Failure(item.id, str(item.path), error.stage, error.kind, str(error), file)
