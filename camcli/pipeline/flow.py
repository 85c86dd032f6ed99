"""What the stages of a run hand on to each other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from camcli.errors import ItemError
from camcli.images.decode import LoadedImage
from camcli.images.find import Item
from camcli.records import Failure, FileState, ImageResult
from camcli.results.ledger import Line

if TYPE_CHECKING:
    from torch import Tensor

Outcome = Line | Failure
"""What is recorded of an image: the line of its record once its files are there, or its failure."""
Record = Callable[[Iterator[Outcome]], None]
"""The last stage: takes outcomes until there are no more."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image on its way to the model, without its own pixels, which stay where it was read."""

    item: Item
    file: FileState | None
    image: LoadedImage


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and failures in order; inputs: uint8 [N,H,W,3] of the N images."""

    entries: Sequence[Loaded | Failure]
    inputs: Tensor


@dataclass(frozen=True, slots=True)
class Explained:
    """What was found for an image; tops: for each method, the raw value of the hottest colour, where a run has one."""

    found: ImageResult | Failure
    tops: Mapping[str, float] = field(default_factory=dict)


class Backend(Protocol):
    """A device of this process, or the processes of several: whatever turns items into outcomes."""

    def __call__(self, items: Sequence[Item], stopped: Callable[[], bool], record: Record) -> None:
        """Hand `record` one outcome for each of `items`; once `stopped` says so, no more batches are begun."""


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


def until(stop: Callable[[], bool], things: Iterable[T]) -> Generator[T]:
    """`things` as long as `stop` does not say so."""
    coming = iter(things)
    while not stop():
        thing = next(coming, None)
        if thing is None or stop():
            return
        yield thing
        del thing


def failure(item: Item, error: ItemError, file: FileState | None = None) -> Failure:
    """The record of an error on `item`."""
    return Failure(item.id, str(item.path), error.stage, error.kind, str(error), file)
