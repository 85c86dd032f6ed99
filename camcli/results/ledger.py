"""results.jsonl as its readers need it: the last line of each image, however the run that wrote it ended."""

from __future__ import annotations

import codecs
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from camcli.records import SCHEMA_VERSION, FileState
from camcli.results import storage
from camcli.results.report import FailureRecord, Record

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image's line: where it is in the file (bytes), and what resuming needs of it.

    files: size in bytes by path below the run folder. stage, kind, message: empty when the image was explained.
    precision: in which it was, lack: what there is too little of to see; empty when it was not. likeliest: the
    probability of its most probable class.
    """

    id: str
    source: str
    done: bool
    fingerprint: str
    look: str
    versions: str
    file: FileState | None
    files: dict[str, int]
    stage: str
    kind: str
    message: str
    precision: str
    offset: int
    length: int
    lack: str = ""
    likeliest: float = 1.0

    @property
    def made_with(self) -> tuple[str, str]:
        """Fingerprint and look: of what decides about its numbers, and about how its overlays look."""
        return self.fingerprint, self.look


@dataclass(frozen=True, slots=True)
class Line:
    """A record on its way into results.jsonl: its text, and the entry that it will have."""

    entry: Entry
    text: bytes


@dataclass(slots=True)
class Ledger:
    """What a results file holds.

    entries: by id, in order of the lines that count. replaced: files that only superseded lines name.
    size: bytes up to the end of the last whole line. clean: every line is whole, counts, and is as camcli writes it.
    strange: what there is that this camcli cannot read and a run would lose; empty: nothing.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    size: int = 0
    clean: bool = True
    strange: str = ""

    def add(self, entry: Entry) -> None:
        """Put a line behind the others; it supersedes an earlier one of the same image."""
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
                ledger.clean = False
                break
            _read(ledger, line)
            ledger.size += len(line)
    return ledger


def _read(ledger: Ledger, line: bytes) -> None:
    if not ledger.size and line.startswith(_UTF_16):
        ledger.strange = "text in UTF-16, where camcli writes UTF-8"
    record = _parsed(line)
    version = record.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        ledger.strange = strange_schema("records", version)
    try:
        if type(version) is not int:
            raise ValueError(f"no record of any version: {version}")
        ledger.add(entry_of(record, ledger.size, len(line)))
    except (ValueError, KeyError, TypeError, AttributeError):
        ledger.clean = False
    ledger.clean &= _is_canonical(line)


def strange_schema(what: str, version: int) -> str:
    """What to say of something of another schema, empty for this camcli's own."""
    if version == SCHEMA_VERSION:
        return ""
    return f"{what} of schema {version}, which {'a newer' if version > SCHEMA_VERSION else 'an older'} camcli wrote"


def _parsed(line: bytes) -> dict[str, Any]:
    """The JSON object on a line, empty where there is none."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_canonical(line: bytes) -> bool:
    """ASCII without byte order mark and carriage return, as `report` writes."""
    return line.startswith(b"{") and line.endswith(b"}\n") and line.isascii()


def line_of(file: BinaryIO, entry: Entry) -> bytes:
    """The line of `entry` in the open results file, as camcli writes it, end included."""
    file.seek(entry.offset)
    line = file.read(entry.length)
    if _is_canonical(line):
        return line
    return json.dumps(json.loads(line.decode("utf-8-sig"))).encode() + b"\n"


def line_for(record: Record, text: bytes) -> Line:
    """The line of a record that camcli made."""
    failed, explained = (record, None) if isinstance(record, FailureRecord) else (None, record)
    entry = Entry(
        id=record.id,
        source=record.source,
        done=explained is not None,
        fingerprint=record.fingerprint,
        look=record.look,
        versions=record.versions,
        file=record.input,
        files=explained.files if explained else {},
        stage=failed.stage if failed else "",
        kind=failed.kind if failed else "",
        message=failed.message if failed else "",
        precision=explained.precision if explained else "",
        offset=0,
        length=len(text),
        lack=(explained.without_evidence or "") if explained else "",
        likeliest=explained.predictions[0].probability if explained and explained.predictions else 1.0,
    )
    return Line(entry, text)


def entry_of(record: dict[str, Any], offset: int, length: int) -> Entry:
    """The entry of a parsed line; raises KeyError, TypeError or ValueError for what camcli did not write."""
    status = record["status"]
    if status not in ("done", "failed"):
        raise ValueError(f"no status: {status}")
    done = status == "done"
    return Entry(
        _path(record["id"]),
        _path(record["source"]),
        done,
        _text(record.get("fingerprint", "")),
        _text(record.get("look", "")),
        _text(record.get("versions", "")),
        _file_state(record.get("input")),
        _sizes(record.get("files", {})),
        "" if done else _text(record["stage"]),
        "" if done else _text(record["kind"]),
        "" if done else _text(record["message"]),
        _text(record.get("precision") or "") if done else "",
        offset,
        length,
        _text(record.get("without_evidence") or ""),
        float(record["predictions"][0]["probability"]) if record.get("predictions") else 1.0,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"no text: {value}")
    return value


def _path(value: Any) -> str:
    """A name that a file can have."""
    if not _text(value) or "\0" in value or not (value.isascii() or os.fsencode(value)):
        raise ValueError(f"no path: {value!r}")
    return str(value)


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"no number: {value}")
    return value


def _sizes(value: Any) -> dict[str, int]:
    return {_path(name): _number(size) for name, size in value.items()}


def _file_state(value: Any) -> FileState | None:
    if value is None:
        return None
    digest = value["sha256"]
    return FileState(_number(value["bytes"]), _number(value["mtime_ns"]), None if digest is None else _text(digest))
