"""A file's bytes, read once: for its hash and for its pixels."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from camcli.errors import InputError, ItemError
from camcli.images.memory import Budget
from camcli.records import FileState

HELD_PART = 8
Identity = tuple[int, int]
_NEXT = "no image is recorded as failed for it, and the same command goes on from there"


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


class Roots:
    """The folders that hold the images of a run, watched: an image cannot be read, or its whole folder is gone."""

    def __init__(self) -> None:
        self._known: dict[str, Identity | None] = {}

    def watch(self, root: str) -> None:
        """Note what the folder is, before the first of its images is read."""
        if root not in self._known:
            self._known[root] = _identity(root)

    def refuse_gone(self, root: str) -> None:
        """Raises InputError once the folder is not what it was: removed, unmounted, or on a server that is away."""
        before = self._known.get(root)
        if before is None:
            return
        if _identity(root) != before:
            raise InputError(f"{root}: the folder of the images was removed, renamed or unmounted; {_NEXT}")
        try:
            os.scandir(root).close()
        except OSError as error:
            refuse_exhausted(Path(root), error)
            raise InputError(f"{root}: the folder of the images cannot be read: {error.strerror}; {_NEXT}") from None


def refuse_exhausted(path: Path, error: OSError) -> None:
    """Raises InputError where the error is about this process or machine, and any other file would meet it."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise InputError(
            f"{path}: {error.strerror}: raise the limit (ulimit -n), or set a smaller runtime.threads; {_NEXT}"
        ) from None


def _identity(folder: str) -> Identity | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
