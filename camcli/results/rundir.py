"""The run folder: run.json, results.jsonl, reports/, overlays/, maps/, and one run at a time.

A part of a run (`--shard 3/8`) has its own run-3-of-8.json, results-3-of-8.jsonl and lock, and shares the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from camcli.errors import ItemError, OutputError
from camcli.records import PRODUCTS
from camcli.results import storage
from camcli.results.claim import Kind, claimed, refuse_another_job
from camcli.results.ledger import Ledger, Line, line_of
from camcli.results.manifest import Manifest, manifest_file
from camcli.results.run import results_file, run_in


class RunDir:
    """A run folder, claimed and locked while inside `with`; what an earlier run left is kept until `start_over`.

    earlier: what was there when it was entered. ledger: the records so far.
    """

    def __init__(self, path: Path, suffix: str = "", kind: Kind = "run") -> None:
        self.path = path
        self.suffix = suffix
        self.kind = kind
        self._results: int | None = None
        self._home: tuple[int, int] | None = None

    def __enter__(self) -> RunDir:
        """Raises ConfigError where the folder is another job's, LockedError where another process writes there."""
        with ExitStack() as stack, storage.fatal(self.path):
            refuse_another_job(self.path, self.kind, self.suffix)
            with storage.fatal(self.path, "made"):
                self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claimed(self.path, self.kind, self.suffix))
            self._home = _identity(self.path)
            self.earlier = run_in(self.path, self.suffix)
            self.ledger = self.earlier.ledger
            self._claim = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._results is not None:
            os.close(self._results)
        self._claim.close()

    @property
    def _results_path(self) -> Path:
        return results_file(self.path, self.suffix)

    def start_over(self) -> None:
        """Delete what the earlier records name, and the records; raises OutputError."""
        with storage.fatal(self.path):
            files = {name for entry in self.ledger.entries.values() for name in entry.files} | self.ledger.replaced
            storage.remove(self.path, [name for name in files if _is_product(name)])
            self._results_path.unlink(missing_ok=True)
        self.ledger = Ledger()

    def begin(self, manifest: Manifest) -> None:
        """Say that a run is on its way, tidy up after one that was killed, and open the records for more."""
        if self.earlier.manifest.status == "running":
            with storage.fatal(self.path):
                storage.sweep(self.path, self.suffix)
        self.write_manifest(manifest)
        with storage.fatal(self._results_path):
            self._unlink_from_copies()
            self._results = storage.open_regular(self._results_path, os.O_WRONLY | os.O_CREAT)
            os.ftruncate(self._results, self.ledger.size)
            os.lseek(self._results, 0, os.SEEK_END)

    def _unlink_from_copies(self) -> None:
        """A copy of the run folder made of hard links keeps its records as they are."""
        path = self._results_path
        if not path.is_symlink() and path.exists() and path.stat().st_nlink > 1:
            storage.write_atomic(path, path.read_bytes(), sync=True, tag=self.suffix)

    def write(self, name: str, data: bytes) -> None:
        """Write the file `name` (relative, forward slashes), nowhere but below this folder.

        Raises OutputError where the disk takes nothing more and ItemError where this one file cannot be written.
        """
        path = self.path / name
        if not storage.is_inside(self.path, path):
            raise ItemError("write", "OutsideRunFolder", f"{name}: leads out of the run folder, so nothing is written")
        self._check_home()
        try:
            storage.make_folders(self.path, path.parent)
            storage.write_atomic(path, data, tag=self.suffix)
        except OSError as error:
            self._check_home()
            if storage.disk_is_gone(error):
                raise storage.fatal_error(path, error) from None
            raise ItemError("write", type(error).__name__, f"{path}: {error.strerror or error}") from None

    def _check_home(self) -> None:
        """Raises OutputError once the folder is not where it was when the run began."""
        if self._home is None:
            self._home = _identity(self.path)
        if _identity(self.path) != self._home:
            raise OutputError(f"{self.path}: was removed or renamed during the run, which therefore ends here")

    def append(self, line: Line) -> None:
        """Add one record; raises OutputError and leaves whole lines only."""
        assert self._results is not None, "append is for a run that has begun"
        self._check_results(self._results)
        with storage.fatal(self._results_path):
            try:
                storage.write_all(self._results, line.text)
            except OSError:
                os.ftruncate(self._results, self.ledger.size)
                raise
        self.ledger.add(replace(line.entry, offset=self.ledger.size))
        self.ledger.size += len(line.text)

    def _check_results(self, number: int) -> None:
        """Raises OutputError once the records in the folder are not those that this run writes."""
        self._check_home()
        ours = os.fstat(number)
        if _identity(self._results_path) != (ours.st_dev, ours.st_ino) or ours.st_size != self.ledger.size:
            raise OutputError(
                f"{self._results_path}: was changed, removed or renamed by another program during the run, which "
                "therefore ends here; the same command goes on from what is there"
            )

    def settle(self, order: Sequence[str], drop: Iterable[str] = ()) -> None:
        """Bring the records into `order` (ids; others follow), one a line, and delete files of superseded ones."""
        for name in drop:
            self.ledger.entries.pop(name)
            self.ledger.clean = False
        entries = self.ledger.entries
        wanted = list(dict.fromkeys([*(name for name in order if name in entries), *entries]))
        with storage.fatal(self._results_path):
            storage.remove(self.path, [name for name in self.ledger.replaced if _is_product(name)])
            if self._results is not None:
                self._check_results(self._results)
            if not self.ledger.clean or wanted != list(entries):
                self._rewrite(wanted)

    def _rewrite(self, order: Sequence[str]) -> None:
        with self._results_path.open("rb") as file:
            self.replace_results(line_of(file, self.ledger.entries[name]) for name in order)

    def replace_results(self, lines: Iterable[bytes]) -> None:
        """Put other records in the place of all there are; raises OutputError."""
        with storage.fatal(self._results_path):
            storage.write_atomic(self._results_path, lines, sync=True, tag=self.suffix)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write run.json so that it survives a power cut; raises OutputError."""
        self.write_json(manifest_file(self.path, self.suffix).name, manifest.as_json())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write what is about the folder as a whole so that it survives a power cut; raises OutputError."""
        text = json.dumps(value, indent=2, allow_nan=False)
        self.write_whole(name, text.encode() + b"\n")

    def write_whole(self, name: str, data: bytes) -> None:
        """Write a file about the folder as a whole so that it survives a power cut; raises OutputError."""
        self._check_home()
        with storage.fatal(self.path / name):
            storage.write_atomic(self.path / name, data, sync=True, tag=self.suffix)


def _identity(path: Path) -> tuple[int, int] | None:
    """What stays with a file or folder when it is renamed, None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_product(name: str) -> bool:
    parts = name.split("/")
    return parts[0] in PRODUCTS and ".." not in parts
