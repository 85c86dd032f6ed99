"""A named collection with an error that helps."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from camcli.errors import ConfigError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """', did you mean ...?' with the nearest known names, or an empty string when none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f", did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


class Registry(Generic[T]):
    """Maps names to things of one kind, in the order in which they were registered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> None:
        """Register `item`; a name may be taken once."""
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = item

    def get(self, name: str) -> T:
        """The item called `name`; raises ConfigError with the nearest names."""
        if name not in self._items:
            hint = did_you_mean(name, self._items)
            raise ConfigError(f"unknown {self.kind} {name!r}{hint} (known: {', '.join(self._items)})")
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def items(self) -> Iterable[tuple[str, T]]:
        """(name, item) pairs in order of registration."""
        return self._items.items()
