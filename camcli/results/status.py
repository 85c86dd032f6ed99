"""How a run folder stands against the images it is about."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camcli.errors import CamcliError
from camcli.images.find import Check, Item, discover
from camcli.images.formats import EXTENSIONS
from camcli.results.claim import lock_file
from camcli.results.counts import failures, without_evidence
from camcli.results.ledger import Ledger
from camcli.results.lock import is_held
from camcli.results.manifest import NOTHING, Inputs
from camcli.results.merge import shards_in
from camcli.results.resume import vanished, verdict
from camcli.results.run import Run, refuse_no_run, refuse_strange, run_in


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run is.

    run: `finished`, `interrupted`, `stopped`, `running`, or which parts are not finished.
    done, failed, missing, changed (the input), damaged (the files written for it), vanished (the input is gone): ids.
    failures: by kind. without_evidence: how many of the done ones have little to see, by what they lack; above: the
    probability that classes had to reach. listed: whether the inputs could be listed again; otherwise only recorded
    images are known, and unknown counts the others. foreign: records that were made with another config than the last
    run's. versions: with how many explained images each set of libraries' versions was used.
    """

    out: str
    run: str
    done: tuple[str, ...]
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    damaged: tuple[str, ...]
    vanished: tuple[str, ...]
    failures: Mapping[str, int]
    without_evidence: Mapping[str, int]
    above: float | None
    listed: bool
    unknown: int
    foreign: int
    versions: Sequence[tuple[int, Mapping[str, str]]]

    @property
    def complete(self) -> bool:
        """Every image is explained, and nothing is out of date."""
        return not (self.failed or self.todo or self.vanished or self.unknown)

    @property
    def todo(self) -> int:
        """Images that the same command would explain."""
        return len(self.missing) + len(self.changed) + len(self.damaged)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "complete": self.complete}


def inspect(out: Path, check: Check) -> Status:
    """How the run folder `out` stands; raises ConfigError where it is none."""
    runs = _runs(out)
    ledger = Ledger()
    for run in runs:
        refuse_strange(run)
        for entry in run.ledger.entries.values():
            ledger.add(entry)
    told = runs[0].manifest
    current = {run.manifest.made_with for run in runs}
    items = _items(told.inputs, out)
    known = items if items is not None else [Item(e.id, Path(e.source)) for e in ledger.entries.values()]
    verdicts: dict[str, list[str]] = {}
    for item in known:
        verdicts.setdefault(verdict(item, ledger.entries.get(item.id), out, check), []).append(item.id)
    failed = verdicts.get("failed", [])
    return Status(
        out=str(out),
        run=_run_status(runs),
        done=tuple(verdicts.get("done", ())),
        failed=tuple(failed),
        missing=tuple(verdicts.get("missing", ())),
        changed=tuple(verdicts.get("changed", ())),
        damaged=tuple(verdicts.get("damaged", ())),
        vanished=vanished(known, ledger),
        failures=dict(sorted(failures(ledger.entries[name] for name in failed).items())),
        without_evidence=without_evidence(ledger.entries[name] for name in verdicts.get("done", ())),
        above=told.above,
        listed=items is not None,
        foreign=sum(e.made_with not in current for e in ledger.entries.values()),
        versions=_versions(ledger, runs),
        unknown=0 if items is not None else max(0, told.inputs.images - len(known)),
    )


def _versions(ledger: Ledger, runs: Sequence[Run]) -> list[tuple[int, Mapping[str, str]]]:
    """(how many images were explained, with which versions), the most first; no versions where nobody knows."""
    known: dict[str, Mapping[str, str]] = {}
    for run in runs:
        known.update(run.manifest.libraries)
    used = Counter(entry.versions for entry in ledger.entries.values() if entry.done)
    return [(count, known.get(key, {})) for key, count in used.most_common()]


def _runs(out: Path) -> list[Run]:
    """The whole run, else all its parts that have begun."""
    whole = run_in(out)
    if whole.manifest != NOTHING:
        return [whole]
    found = [run_in(out, shard.suffix) for shard in shards_in(out)]
    if not found:
        refuse_no_run(whole)
    return found


def _items(inputs: Inputs, out: Path) -> list[Item] | None:
    """The images that the run's own words name today, None where they cannot be listed again."""
    names = inputs.names
    if not names or any(name == "-" or (name.startswith("@") and not os.path.isfile(name[1:])) for name in names):
        return None
    try:
        return discover(names, inputs.ext or EXTENSIONS, inputs.limit, out, inputs.root, inputs.folder)
    except (CamcliError, OSError, ValueError):
        return None


def _ended(run: Run) -> str:
    """How a run or a part ended; one that was killed could not say so, but it no longer holds its lock."""
    status = run.manifest.status
    return "interrupted" if status == "running" and not is_held(lock_file(run.path, run.suffix)) else status


def _run_status(runs: Sequence[Run]) -> str:
    statuses, suffixes = [_ended(run) for run in runs], [run.suffix for run in runs]
    if suffixes == [""]:
        return statuses[0]
    unfinished = [suffix[1:] for suffix, status in zip(suffixes, statuses, strict=True) if status != "finished"]
    count = int(suffixes[0].rpartition("-")[2])
    if unfinished:
        return f"parts not finished: {', '.join(unfinished)}"
    return f"{len(suffixes)} of {count} parts finished; `camcli merge` joins them"
