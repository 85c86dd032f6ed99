"""What is counted over the records of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from camcli.results.ledger import Entry


def failures(entries: Iterable[Entry]) -> Counter[str]:
    """How many images failed, by kind."""
    return Counter(entry.kind for entry in entries if not entry.done)


def precisions(entries: Iterable[Entry]) -> dict[str, int]:
    """How many images were explained in which precision."""
    return dict(sorted(Counter(entry.precision for entry in entries if entry.precision).items()))


def redone(entries: Iterable[Entry], precision: str) -> int:
    """How many images of a run in `precision` were explained again in fp32."""
    return 0 if precision == "fp32" else precisions(entries).get("fp32", 0)


def without_evidence(entries: Iterable[Entry]) -> dict[str, int]:
    """How many images were explained with little to see, by what they lack: only kinds that there are."""
    return dict(sorted(Counter(entry.lack for entry in entries if entry.lack).items()))
