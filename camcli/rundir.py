"""The run folder: run.json, results.jsonl, reports/, overlays/, maps/, and one run at a time.

A part of a run (`--shard 3/8`) has its own run-3-of-8.json, results-3-of-8.jsonl and lock, and shares the rest.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from camcli import storage
from camcli.errors import ItemError, LockedError, OutputError
from camcli.ledger import Ledger, entry_of, line_of, read_ledger

Manifest = dict[str, Any]


def results_file(path: Path, suffix: str = "") -> Path:
    """Where the records of a run, or of the part called `suffix`, are."""
    return path / f"results{suffix}.jsonl"


def manifest_file(path: Path, suffix: str = "") -> Path:
    """Where the manifest of a run, or of the part called `suffix`, is."""
    return path / f"run{suffix}.json"


def read_manifest(path: Path, suffix: str = "") -> Manifest | None:
    """The manifest in the run folder `path`, None where there is no readable one."""
    try:
        found = json.loads(manifest_file(path, suffix).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class RunDir:
    """A run folder, locked while inside `with`; what an earlier run left is kept until `start_over`.

    earlier: the manifest of the last run, if any. ledger: the records so far.
    """

    def __init__(self, path: Path, suffix: str = "") -> None:
        self.path = path
        self.suffix = suffix
        self._lock = FileLock(path / f".lock{suffix}")
        self._results: int | None = None

    def __enter__(self) -> RunDir:
        with _fatal(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            with _fatal(self.path):
                self.earlier = read_manifest(self.path, self.suffix)
                self.ledger = read_ledger(self._results_path)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._results is not None:
            os.close(self._results)
        self._lock.release()

    @property
    def _results_path(self) -> Path:
        return results_file(self.path, self.suffix)

    def _acquire(self) -> None:
        file = Path(self._lock.lock_file)
        holder = _holder(file)
        try:
            if file.is_symlink():
                raise OutputError(f"{file}: is a link, so it is not used as a lock")
            with _fatal(self.path):
                self._lock.acquire(timeout=0)
                file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        except Timeout:
            raise LockedError(
                f"{self.path}: another run writes there{holder}; wait for it, or choose another --out"
            ) from None

    def start_over(self) -> None:
        """Delete what the earlier records name, and the records; raises OutputError."""
        with _fatal(self.path):
            files = {name for entry in self.ledger.entries.values() for name in entry.files} | self.ledger.replaced
            storage.remove(self.path, [name for name in files if _is_product(name)])
            self._results_path.unlink(missing_ok=True)
        self.ledger = Ledger()

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Say that a run is on its way, tidy up after one that was killed, and open the records for more."""
        if self.earlier is not None and self.earlier.get("status") == "running":
            with _fatal(self.path):
                storage.sweep(self.path, self.suffix)
        self.write_manifest(manifest)
        with _fatal(self._results_path):
            flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            self._results = os.open(self._results_path, flags, 0o666)
            os.ftruncate(self._results, self.ledger.size)
            os.lseek(self._results, 0, os.SEEK_END)

    def write(self, name: str, data: bytes) -> None:
        """Write the file `name` (relative, forward slashes), nowhere but below this folder.

        Raises OutputError where the disk takes nothing more and ItemError where this one file cannot be written.
        """
        path = self.path / name
        if not storage.is_inside(self.path, path):
            raise ItemError("write", "OutsideRunFolder", f"{name}: leads out of the run folder, so nothing is written")
        try:
            storage.write_atomic(path, data, tag=self.suffix)
        except OSError as error:
            if storage.disk_is_gone(error):
                raise _fatal_error(path, error) from None
            raise ItemError("write", type(error).__name__, f"{path}: {error.strerror or error}") from None

    def append(self, line: str) -> None:
        """Add one record; raises OutputError and leaves whole lines only."""
        assert self._results is not None, "append is for a run that has begun"
        data = line.encode() + b"\n"
        with _fatal(self._results_path):
            try:
                storage.write_all(self._results, data)
            except OSError:
                os.ftruncate(self._results, self.ledger.size)
                raise
        self.ledger.add(entry_of(json.loads(line), self.ledger.size, len(data)))
        self.ledger.size += len(data)

    def settle(self, order: Sequence[str], drop: Iterable[str] = ()) -> None:
        """Bring the records into `order` (ids; others follow), one a line, and delete files of overtaken ones."""
        for name in drop:
            self.ledger.entries.pop(name)
            self.ledger.clean = False
        entries = self.ledger.entries
        wanted = list(dict.fromkeys([*(name for name in order if name in entries), *entries]))
        with _fatal(self._results_path):
            storage.remove(self.path, [name for name in self.ledger.replaced if _is_product(name)])
            if not self.ledger.clean or wanted != list(entries):
                self._rewrite(wanted)

    def _rewrite(self, order: Sequence[str]) -> None:
        with self._results_path.open("rb") as file:
            self.replace_results(line_of(file, self.ledger.entries[name]) for name in order)

    def replace_results(self, lines: Iterable[bytes]) -> None:
        """Put other records in the place of all there are; raises OutputError."""
        with _fatal(self._results_path):
            storage.write_atomic(self._results_path, lines, sync=True, tag=self.suffix)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write run.json so that it survives a power cut; raises OutputError."""
        text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
        path = manifest_file(self.path, self.suffix)
        with _fatal(path):
            storage.write_atomic(path, text.encode() + b"\n", sync=True, tag=self.suffix)


def _holder(lock: Path) -> str:
    """Who wrote into a lock file, for the message to whoever finds it taken."""
    try:
        return f" ({lock.read_text(errors='replace')[:200].strip()})"
    except OSError:
        return ""


def _is_product(name: str) -> bool:
    parts = name.split("/")
    return parts[0] in storage.PRODUCTS and ".." not in parts


@contextmanager
def _fatal(path: Path) -> Iterator[None]:
    """Inside, an OSError is an OutputError about `path`; that a lock is taken is none."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise _fatal_error(path, error) from None


def _fatal_error(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written: {error.strerror or error}; what is written is whole, "
        "and the same command goes on from there"
    )
