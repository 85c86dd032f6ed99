"""What run.json says: settings and surroundings of a run, and how it ended."""

from __future__ import annotations

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from camcli.images.find import Item, roots_of
from camcli.records import RunReport
from camcli.results import versions
from camcli.results.ledger import Entry
from camcli.results.shard import Shard

VERSION = 1

Manifest = dict[str, Any]


def opening(settings: Mapping[str, Any]) -> Manifest:
    """The manifest while the run is on its way."""
    return {**settings, "status": "running", "process": {"pid": os.getpid(), "host": socket.gethostname()}}


def closing(
    settings: Mapping[str, Any], report: RunReport, entries: Mapping[str, Entry], interrupted: bool
) -> Manifest:
    """The manifest at the end; `entries` are all the records in the folder."""
    unfinished = "interrupted" if interrupted else "stopped"
    return {
        **settings,
        "status": unfinished if report.skipped else "finished",
        "seconds": report.seconds,
        "exit_code": report.exit_code,
        "counts": {"done": report.done, "failed": report.failed, "skipped": report.skipped},
        "failures": report.failures,
        "without_evidence": report.without_evidence,
        "skipped_files": report.skipped_files,
        "fingerprints": dict(sorted(Counter(entry.fingerprint for entry in entries.values()).items())),
        "precisions": precisions(entries.values()),
        "resumed": {"kept": report.kept, "vanished": report.vanished},
    }


def listing(items: Sequence[Item], asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which images a run is about: what the user named, how many, a hash of their ids in order, and their roots."""
    found = {"images": len(items), "sha256": ids_hash(item.id for item in items), "roots": roots_of(items)}
    return {**(asked or {}), **found}


def ids_hash(ids: Iterable[str]) -> str:
    """Hex SHA-256 of ids in their order."""
    digest = hashlib.sha256()
    for name in ids:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()


def part(items: Sequence[Item], shard: Shard) -> dict[str, Any]:
    """Which of all images belong to a part, as positions in their order."""
    positions = [position for position, item in enumerate(items) if shard.has(item.id)]
    return {"index": shard.index, "count": shard.count, "positions": positions}


def libraries(entries: Iterable[Entry], earlier: Manifest | None, current: Mapping[str, str]) -> dict[str, Any]:
    """The versions that made `entries`, by their key; earlier: the manifest of the run before, if there is one.

    Records of a camcli that kept no versions with each have the key ``, and are of the run before.
    """
    known: dict[str, Any] = {versions.key(): dict(current)}
    if earlier:
        known = {"": earlier["versions"], **earlier.get("libraries", {}), **known}
    return {key: known.get(key, {}) for key in sorted({entry.versions for entry in entries})}


def precisions(entries: Iterable[Entry]) -> dict[str, int]:
    """How many images were explained in which precision."""
    return dict(sorted(Counter(entry.precision for entry in entries if entry.precision).items()))


def redone(entries: Iterable[Entry], precision: str) -> int:
    """How many images of a run in `precision` were explained again in fp32."""
    return 0 if precision == "fp32" else precisions(entries).get("fp32", 0)


def failures(entries: Iterable[Entry]) -> Counter[str]:
    """How many images failed, by kind."""
    return Counter(entry.kind for entry in entries if not entry.done)


def without_evidence(entries: Iterable[Entry], above: float | None) -> dict[str, int]:
    """How many images were explained with little to see: only kinds that there are.

    No class reached `above`, and so, no_heatmap: there is none; no_class: only those that need no class; below: of the
    most probable class. empty: no heatmap has any evidence.
    """
    found = Counter(kind for entry in entries if entry.done and (kind := _lack(entry, above)))
    return dict(sorted(found.items()))


def _lack(entry: Entry, above: float | None) -> str:
    if not entry.heatmaps:
        return "no_heatmap"
    if entry.heatmaps == entry.empty:
        return "empty"
    if above is None or entry.likeliest >= above:
        return ""
    return "below" if entry.classes else "no_class"


def threshold(found: Manifest) -> float | None:
    """What `targets.above` was in the run of a manifest, whatever else stands in it."""
    try:
        above = found["config"]["targets"]["above"]
    except (KeyError, TypeError):
        return None
    return above if isinstance(above, float) else None
