"""Which failures a run may have and still end with exit code 0."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from camcli.errors import ConfigError
from camcli.images.find import decoded
from camcli.results.ledger import Entry


@dataclass(frozen=True, slots=True)
class Tolerance:
    """allowed: how many failures. known: ids of images whose failure counts neither here nor against --max-errors."""

    allowed: int = 0
    known: frozenset[str] = frozenset()

    def exit_code(self, entries: Iterable[Entry], left_out: int) -> int:
        """1 where more images failed than may, or where some were not reached; else 0."""
        return int(left_out > 0 or sum(not e.done and e.id not in self.known for e in entries) > self.allowed)

    def expected(self, entries: Iterable[Entry]) -> int:
        """How many of the failures are known ones."""
        return sum(not entry.done and entry.id in self.known for entry in entries)

    def mended(self, entries: Iterable[Entry]) -> tuple[str, ...]:
        """The ids of known failures that did not fail this time."""
        return tuple(entry.id for entry in entries if entry.done and entry.id in self.known)


def read_ids(file: Path, option: str) -> frozenset[str]:
    """The ids in a text file, one a line as records have them, beside empty lines and comments (#).

    option: that named it, for the message of ConfigError.
    """
    try:
        lines = decoded(f"{option} {file}", file.read_bytes()).splitlines()
    except OSError as error:
        raise ConfigError(f"{option} {file}: cannot be read: {error.strerror}") from None
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
