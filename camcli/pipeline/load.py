"""The first stage: items to decoded images, on threads."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import takewhile

from camcli.errors import ItemError
from camcli.images.decode import Preprocess, loading
from camcli.images.find import Item, state_of
from camcli.images.memory import Budget
from camcli.pipeline.flow import Loaded, Stop, failure, in_order
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Failure


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads files as a model takes them.

    whole: the images' own pixels are needed, not only what the model sees.
    budget: what decoded images may take; shared with the painting, because memory is one.
    """

    preprocess: Preprocess
    whole: bool
    budget: Budget
    stopwatch: Stopwatch

    def read(self, item: Item) -> Loaded | Failure:
        """The image of `item`, without its own pixels where the budget does not let them stay."""
        file = state_of(item.path)
        try:
            with (
                self.stopwatch.timing("decode"),
                loading(item.path, self.preprocess, self.whole, self.budget) as image,
            ):
                if self.budget.keep(image.bytes):
                    return Loaded(item, file, image)
                return Loaded(item, file, replace(image, image=None), without_pixels=True)
        except ItemError as error:
            return failure(item, error, file)


def load(items: Iterable[Item], reader: Reader, threads: int, ahead: int, stop: Stop) -> Generator[Loaded | Failure]:
    """Each of `items`, read; ahead: how many are read before they are asked for where memory is not scarce."""
    wanted = takewhile(lambda item: not stop(), items)

    def most() -> int:
        return threads + (0 if reader.budget.is_scarce else ahead)

    with closing(in_order(reader.read, wanted, threads, most)) as loaded:
        for image in loaded:
            yield image
            del image
            if stop():
                return
