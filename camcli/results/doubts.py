"""The images that a model was least sure of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from camcli.results.ledger import line_of
from camcli.results.report import ImageRecord, parse
from camcli.results.run import Run, results_file

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
    if not worst:
        return []
    with results_file(run.path, run.suffix).open("rb") as file:
        found = [parse(line_of(file, entry)) for entry in worst]
    return [
        Doubt(r.id, r.predictions[0].label, r.predictions[0].probability) for r in found if isinstance(r, ImageRecord)
    ]
