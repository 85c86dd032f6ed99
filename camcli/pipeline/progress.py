"""Who is told how far a run is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from tqdm.auto import tqdm

from camcli.records import Failure


class Progress(Protocol):
    """Told of each image as it is recorded."""

    def begin(self, total: int, kept: int, what: str = "") -> None:
        """`total` images, of which `kept` are there from an earlier run; what: a pass before that of the records."""

    def advance(self, failure: Failure | None) -> None:
        """One more record."""


@runtime_checkable
class CountsPasses(Protocol):
    """Told of each forward pass as well, which tells that work goes on where a method needs hundreds for a batch."""

    def passed(self) -> None:
        """One more, on any thread."""


class Silent:
    """Says nothing."""

    def begin(self, total: int, kept: int, what: str = "") -> None:
        """Nothing."""

    def advance(self, failure: Failure | None) -> None:
        """Nothing."""


class Bar:
    """A bar in a notebook or a terminal."""

    def begin(self, total: int, kept: int, what: str = "") -> None:
        """Show the bar."""
        self._bar: Any = tqdm(total=total, initial=kept, unit="image", desc=what or None)

    def advance(self, failure: Failure | None) -> None:
        """Move it; close it at its end."""
        self._bar.update()
        if self._bar.n >= (self._bar.total or 0):
            self._bar.close()
