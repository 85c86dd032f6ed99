"""results.jsonl as its readers need it: the last line of each picture, however the run that wrote it ended."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from camcli import storage
from camcli.records import FileState


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture's line: where it is in the file (bytes), and what resuming needs of it.

    files: size in bytes by path below the run folder. stage, kind, message: empty when the picture was explained.
    """

    id: str
    source: str
    done: bool
    fingerprint: str
    file: FileState | None
    files: dict[str, int]
    stage: str
    kind: str
    message: str
    offset: int
    length: int


@dataclass(slots=True)
class Ledger:
    """What a results file holds.

    entries: by id, in order of the lines that count. replaced: files that only overtaken lines name.
    size: bytes up to the end of the last whole line. clean: every line is whole, readable and counts.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    size: int = 0
    clean: bool = True

    def add(self, entry: Entry) -> None:
        """Put a line behind the others; it overtakes an earlier one of the same picture."""
        before = self.entries.pop(entry.id, None)
        if before is not None:
            self.replaced |= before.files.keys()
            self.clean = False
        self.replaced -= entry.files.keys()
        self.entries[entry.id] = entry


def read_ledger(path: Path) -> Ledger:
    """The results at `path`, empty when there is no such file; a torn or unreadable line is passed over.

    Raises OutputError for a file that cannot be read.
    """
    ledger = Ledger()
    if not os.path.lexists(path):
        return ledger
    with storage.fatal(path, "read"), os.fdopen(storage.open_regular(path, os.O_RDONLY), "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            entry = _entry(line, ledger.size)
            ledger.size += len(line)
            if entry is None:
                ledger.clean = False
            else:
                ledger.add(entry)
    return ledger


def line_of(file: BinaryIO, entry: Entry) -> bytes:
    """The line of `entry` in the open results file, end included."""
    file.seek(entry.offset)
    return file.read(entry.length)


def _entry(line: bytes, offset: int) -> Entry | None:
    try:
        return entry_of(json.loads(line), offset, len(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def entry_of(record: dict[str, Any], offset: int, length: int) -> Entry:
    """The entry of a parsed line; raises KeyError or TypeError for what camcli did not write."""
    done = record["status"] == "done"
    file = record.get("input")
    return Entry(
        str(record["id"]),
        str(record["source"]),
        done,
        str(record.get("fingerprint", "")),
        FileState(**file) if file else None,
        dict(record.get("files", {})),
        "" if done else str(record["stage"]),
        "" if done else str(record["kind"]),
        "" if done else str(record["message"]),
        offset,
        length,
    )
