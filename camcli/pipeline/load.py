"""The first stage: items to decoded images, on threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from camcli.images.find import Item
from camcli.pipeline.flow import Loaded
from camcli.pipeline.order import in_order
from camcli.records import Failure


def load(
    items: Iterable[Item], read: Callable[[Item], Loaded | Failure], threads: int, ahead: Callable[[], int]
) -> Generator[Loaded | Failure]:
    """Each of `items`, read; ahead: how many more than there are threads are read before they are asked for."""
    return in_order(read, items, threads, lambda: threads + ahead())
