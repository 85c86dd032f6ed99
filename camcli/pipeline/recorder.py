"""Records of outcomes in the run folder, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from camcli.pipeline.record import failure_record
from camcli.records import Failure
from camcli.results.ledger import Line, line_for
from camcli.results.report import line_of_record
from camcli.results.rundir import RunDir


class Recorder:
    """Adds a record for each outcome, and counts; failures beyond the first one too many are left to the next run.

    made_with: fingerprint and look that failures bear.
    seen: ids of the images recorded so far. failures: how many of them failed, by kind, but for those whose failure is
    `known`. max_errors: how many may.
    """

    def __init__(
        self,
        folder: RunDir,
        made_with: tuple[str, str],
        max_errors: int | None = None,
        known: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self.made_with = made_with
        self.max_errors = max_errors
        self.known = known
        self.seen: set[str] = set()
        self.failures: Counter[str] = Counter()

    @property
    def too_many(self) -> bool:
        """Whether more images failed than may."""
        return self.max_errors is not None and self.failures.total() > self.max_errors

    def record(self, outcomes: Iterable[Line | Failure], advance: Callable[[Failure | None], None]) -> None:
        """Record all; advance is told of each, with the failure if it is one."""
        for outcome in outcomes:
            failure = outcome if isinstance(outcome, Failure) else None
            if failure and self.too_many:
                continue
            self._append(outcome)
            advance(failure)

    def _append(self, outcome: Line | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures[outcome.kind] += outcome.id not in self.known
            record = failure_record(outcome, *self.made_with)
            outcome = line_for(record, line_of_record(record))
        self.seen.add(outcome.entry.id)
        self.folder.append(outcome)
