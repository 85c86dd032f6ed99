"""The files of a page: index.html and report/ in a run folder, each whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Container
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from camcli.errors import ConfigError
from camcli.results import storage

FOLDER = "report"
_STATE = "report/state.json"
_CALL = "camcli.chunk("


class Store:
    """Files below the run folder `out`, by their names with forward slashes."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def write(self, name: str, data: bytes) -> None:
        """Write the file; raises OutputError for a disk that does not take it, ConfigError for a place outside."""
        path = self.out / name
        if not storage.is_inside(self.out, path):
            raise ConfigError(f"{path}: leads out of {self.out}, so no page is written there; remove that link")
        with storage.fatal(path):
            storage.make_folders(self.out, path.parent)
            storage.write_atomic(path, data)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.out / name).is_file()

    def write_chunk(self, kind: str, number: int, value: Any) -> None:
        """Write data as a script, since pages that are opened from a disk can load nothing else."""
        self.write(chunk_name(kind, number), chunk_text(kind, number, value).encode())

    def read_chunk(self, kind: str, number: int) -> Any:
        """What `write_chunk` wrote, None where there is nothing to be read."""
        try:
            text = storage.read_regular(self.out / chunk_name(kind, number)).decode()
            return json.loads(f"[{text.strip().removeprefix(_CALL).removesuffix(')')}]")[2]
        except (OSError, ValueError, IndexError):
            return None

    def write_state(self, state: Any) -> None:
        """Remember for the next build what this one made."""
        self.write(_STATE, json.dumps(state).encode())

    def read_state(self) -> Any:
        """What the build before made, None where there was none."""
        try:
            return json.loads(storage.read_regular(self.out / _STATE))
        except (OSError, ValueError):
            return None

    def keep_only(self, folder: str, names: Container[str], end: str) -> None:
        """Delete the files in a folder of the page whose names, up to `end` if there is one, are not in `names`."""
        for place, _, files in os.walk(self.out / FOLDER / folder):
            inner = Path(place).relative_to(self.out).as_posix()
            gone = [file for file in files if (file.partition(end)[0] if end else file) not in names]
            storage.remove(self.out, [f"{inner}/{file}" for file in gone])


def chunk_text(kind: str, number: int, value: Any) -> str:
    """The script that brings a chunk of data; no text in it can end a script element."""
    data = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f"{_CALL}{json.dumps(kind)},{number},{data})\n"


def chunk_name(kind: str, number: int) -> str:
    """Where a chunk of data is."""
    return f"{FOLDER}/data/{kind}-{number}.js"


def link(name: str) -> str:
    """The address of a file, relative to the run folder, whatever bytes its name has."""
    return quote_from_bytes(os.fsencode(name))
