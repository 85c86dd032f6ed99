"""What run.json says: settings and surroundings of a run, and how it ended."""

from __future__ import annotations

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from camcli.inputs import Item
from camcli.ledger import Entry
from camcli.records import RunReport
from camcli.shard import Shard

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
        "fingerprints": dict(sorted(Counter(entry.fingerprint for entry in entries.values()).items())),
        "resumed": {"kept": report.kept, "vanished": report.vanished},
    }


def listing(items: Sequence[Item], asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which pictures a run is about: what the user named, how many it came to, and a hash of their ids in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(os.fsencode(item.id) + b"\0")
    return {**(asked or {}), "images": len(items), "sha256": digest.hexdigest()}


def part(items: Sequence[Item], shard: Shard) -> dict[str, Any]:
    """Which of all pictures belong to a part, as positions in their order."""
    positions = [position for position, item in enumerate(items) if shard.has(item.id)]
    return {"index": shard.index, "count": shard.count, "positions": positions}


def failures(entries: Iterable[Entry]) -> Counter[str]:
    """How many pictures failed, by kind."""
    return Counter(entry.kind for entry in entries if not entry.done)
