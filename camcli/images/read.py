"""A file's bytes, read once: for its hash and for its pixels."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from camcli.errors import ItemError
from camcli.images.memory import Budget
from camcli.records import FileState

HELD_PART = 8


class Source:
    """A file to read. state: what it was when it was read, as far as that is known yet; None where there is no file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: FileState | None = None

    @contextmanager
    def opened(self, budget: Budget) -> Iterator[BinaryIO]:
        """Its content, counted in `budget` while it is in memory; raises OSError, and ItemError for what is no file.

        A file larger than an eighth of the budget is not held: it is read once for its hash and once more from disk.
        """
        status = os.stat(self.path)
        self.state = FileState(status.st_size, status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode):
            self._refuse(status.st_mode)
        with self.path.open("rb") as file:
            if status.st_size > budget.size // HELD_PART:
                self._know(hashlib.file_digest(file, "sha256").hexdigest())
                file.seek(0)
                yield file
                return
            with budget.holding(status.st_size), io.BytesIO(file.read()) as held:
                file.close()
                self._know(hashlib.sha256(held.getbuffer()).hexdigest())
                yield held

    def _know(self, digest: str) -> None:
        assert self.state is not None, "it was looked at"
        self.state = FileState(self.state.bytes, self.state.mtime_ns, digest)
        if not self.state.bytes:
            raise ItemError("read", "EmptyFile", f"{self.path}: the file is empty")

    def _refuse(self, mode: int) -> None:
        """Before it is opened: a pipe would wait for ever. Raises OSError for a folder that cannot be searched."""
        if stat.S_ISDIR(mode):
            os.scandir(self.path).close()
        raise ItemError("read", "NotAFile", f"{self.path}: not a regular file")
