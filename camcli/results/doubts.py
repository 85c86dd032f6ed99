"""The images that a model was least sure of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from camcli.results.report import ImageRecord
from camcli.results.run import Run

MOST = 5
BELOW = 0.5


@dataclass(frozen=True, slots=True)
class Doubt:
    """An image, its most probable class and that class's probability."""

    id: str
    label: str
    probability: float


def doubts(run: Run, ids: Collection[str]) -> list[Doubt]:
    """The MOST images of `ids` whose most probable class is least probable, if that is BELOW a half."""
    entries = run.ledger.entries
    unsure = [e for name in ids if (e := entries.get(name)) and e.done and e.likeliest < BELOW]
    worst = sorted(unsure, key=lambda entry: entry.likeliest)[:MOST]
    found = (record for record in run.read(worst) if isinstance(record, ImageRecord))
    return [Doubt(record.id, record.predictions[0].label, record.predictions[0].probability) for record in found]
