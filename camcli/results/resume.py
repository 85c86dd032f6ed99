"""What an earlier run into the same folder spares this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from camcli.errors import ConfigError
from camcli.images.find import Check, Item, common_root, root_of, roots_of, unchanged
from camcli.results.fingerprint import differences
from camcli.results.ledger import Entry, Ledger
from camcli.results.manifest import Manifest
from camcli.results.run import Run
from camcli.results.tolerance import Tolerance

Verdict = Literal["done", "failed", "missing", "changed", "damaged"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How to go about what is there.

    check: whether an input is the same by its size and time, or by its hash. max_errors: new failures after which the
    run stops, None for no limit. tolerance: which failures do not turn the exit code.
    """

    fresh: bool = False
    keep_going: bool = False
    retry_failed: bool = False
    check: Check = "stat"
    max_errors: int | None = None
    tolerance: Tolerance = Tolerance()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Plan:
    """kept: ids whose records stand; todo: what is to be explained; vanished: ids of records whose input is gone."""

    kept: tuple[str, ...]
    todo: tuple[Item, ...]
    vanished: tuple[str, ...]


def plan(items: Sequence[Item], ledger: Ledger, out: Path, policy: Policy, look: str = "") -> Plan:
    """What is left to do of `items`, given the records in `ledger`; look: that overlays must have, empty for any."""
    stands = ("done",) if policy.retry_failed else ("done", "failed")
    kept, todo = [], []
    for item in items:
        entry = ledger.entries.get(item.id)
        looks_so = not entry or not look or entry.look == look
        if looks_so and verdict(item, entry, out, policy.check) in stands:
            kept.append(item.id)
        else:
            todo.append(item)
    return Plan(tuple(kept), tuple(todo), vanished(items, ledger))


def vanished(items: Sequence[Item], ledger: Ledger) -> tuple[str, ...]:
    """Ids of records of other images than `items`, whose files are gone; one that is only not asked for stays."""
    asked = {item.id for item in items}
    return tuple(e.id for e in ledger.entries.values() if e.id not in asked and not os.path.lexists(e.source))


def verdict(item: Item, entry: Entry | None, out: Path, check: Check) -> Verdict:
    """How `item` stands: `changed` means its input, `damaged` the files that were written for it."""
    if entry is None:
        return "missing"
    if not unchanged(entry.file, item.path, check):
        return "changed"
    if not entry.done:
        return "failed"
    return "done" if all(_size(os.path.join(out, name)) == size for name, size in entry.files.items()) else "damaged"


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def refuse_other_names(out: Path, items: Sequence[Item], ledger: Ledger) -> None:
    """Raises ConfigError when a record of `ledger` would get another id, or its id another image; and for another root.

    Where the images of the records are gone, as after a move, the records are out of date and nothing is mixed.
    """
    ids = {e.source: e.id for e in ledger.entries.values()}
    renamed = [item for item in items if ids.get(str(item.path), item.id) != item.id]
    if renamed:
        item = renamed[0]
        change = f"{len(renamed)} of its images would get other ids: {ids[str(item.path)]} -> {item.id}"
        raise ConfigError(f"{out}: {change} ({item.path})\n{_advice(items, ledger)}")
    taken = next((item for item in items if _is_another(item, ledger.entries.get(item.id))), None)
    if taken:
        change = f"{taken.id} is {ledger.entries[taken.id].source} there, and would be {taken.path}"
        raise ConfigError(f"{out}: holds other images with the same ids: {change}\n{_advice(items, ledger)}")
    before = _roots(ledger)
    if before and not before & set(roots_of(items)) and any(map(os.path.exists, before)):
        there, here = ", ".join(sorted(before)), ", ".join(roots_of(items))
        raise ConfigError(f"{out}: holds images below {there}, and these are below {here}\n{_advice(items, ledger)}")


def _is_another(item: Item, entry: Entry | None) -> bool:
    """Whether the record of this id is about another file, which is still there."""
    if entry is None or entry.source == str(item.path) or not os.path.lexists(entry.source):
        return False
    try:
        return not os.path.samefile(entry.source, item.path)
    except OSError:
        return True


def _roots(ledger: Ledger) -> set[str]:
    return {root_of(e.id, e.source) for e in ledger.entries.values() if e.source.endswith(e.id)}


def _advice(items: Sequence[Item], ledger: Ledger) -> str:
    """How to keep the ids that are there, if one root does it, and what else there is."""
    before, paths = sorted(_roots(ledger)), [str(item.path) for item in items]
    if len(before) == 1 and all(path.startswith(os.path.join(before[0], "")) for path in paths):
        return f"--root {before[0]} keeps the ids that are there; --fresh starts over, another --out leaves them alone"
    everything = common_root([*paths, *(e.source for e in ledger.entries.values())])
    return (
        "another --out leaves them alone; to have all in one folder, start over with "
        f"--fresh --root {everything}, and keep to that --root"
    )


def refuse_another_config(earlier: Run, settings: Manifest, step: str) -> None:
    """Raises ConfigError when `earlier` has records of another fingerprint than those of `settings`.

    In a part of a run they may have no other look either, which all parts have in common; elsewhere that is no reason,
    since those images are painted or explained again. step: what to do about it.
    """
    counted = 2 if settings.shard else 1
    entries = earlier.ledger.entries.values()
    others = [e for e in entries if e.made_with[:counted] != settings.made_with[:counted]]
    if not others:
        return
    before = earlier.manifest.identity
    changes = differences(before, settings.identity) if before else []
    what = "".join(f"\n  {line}" for line in changes) or " another config"
    raise ConfigError(
        f"{earlier.path}: holds {len(others)} results that were made with{':' if changes else ''}{what}\n{step}"
    )
