"""Records of outcomes in the run folder, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from camcli import report
from camcli.fingerprint import SHORT
from camcli.records import Failure
from camcli.rundir import RunDir


class Recorder:
    """Adds a record for each outcome, and counts.

    seen: ids of the pictures recorded so far. failures: how many of them failed, by kind.
    """

    def __init__(self, folder: RunDir, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint[:SHORT]
        self.seen: set[str] = set()
        self.failures: Counter[str] = Counter()

    def record(
        self, outcomes: Iterable[report.ImageRecord | Failure], advance: Callable[[Failure | None], None]
    ) -> None:
        """Record all; advance is told of each, with the failure if it is one."""
        for outcome in outcomes:
            self._append(outcome)
            advance(outcome if isinstance(outcome, Failure) else None)

    def _append(self, outcome: report.ImageRecord | Failure) -> None:
        self.seen.add(outcome.id)
        if isinstance(outcome, Failure):
            self.failures[outcome.kind] += 1
            self.folder.append(report.to_json(report.failure_record(outcome, self.fingerprint)))
        else:
            self.folder.append(report.to_json(outcome))
