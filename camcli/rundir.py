"""The run folder: run.json, results.jsonl, reports/, overlays/, maps/, and one run at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from camcli.errors import LockedError, OutputError
from camcli.storage import write_atomic

RESULTS = "results.jsonl"
MANIFEST = "run.json"


class RunDir:
    """An output folder, locked while inside `with`; results of an earlier run are replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> RunDir:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            (self.path / MANIFEST).unlink(missing_ok=True)
            self._results = (self.path / RESULTS).open("w", encoding="ascii")
        except Timeout:
            raise LockedError(f"{self.path}: another run writes there; wait for it, or choose another --out") from None
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._results.close()
        self._lock.release()

    def write(self, name: str, data: bytes) -> None:
        """Write the file `name` (relative, forward slashes); raises OSError."""
        write_atomic(self.path / name, data)

    def append(self, line: str) -> None:
        """Add one record to results.jsonl; raises OutputError."""
        try:
            self._results.write(line + "\n")
            self._results.flush()
        except OSError as error:
            raise OutputError(f"{self.path / RESULTS}: cannot be written: {error.strerror}") from None

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write run.json so that it survives a power cut; raises OutputError."""
        text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
        try:
            write_atomic(self.path / MANIFEST, text.encode() + b"\n", sync=True)
        except OSError as error:
            raise OutputError(f"{self.path / MANIFEST}: cannot be written: {error.strerror}") from None
