"""Locks on files that die with the process that holds them: alone, or shared with others of its kind."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from camcli.results import storage

LOOK_AGAIN_SECONDS = 0.1


class Lock:
    """A lock on the file `path`; shared: others may share it.

    `filelock` has no shared locks, without which the parts of a run could not keep whole runs out of their folder.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        self.path = path
        self.shared = shared
        self._number: int | None = None

    def acquire(self) -> bool:
        """Whether the lock is now held; who holds it alone is named in the file. Raises OSError."""
        number = storage.open_regular(self.path, os.O_RDWR | os.O_CREAT)
        try:
            held = _locked(number, fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX)
            if held and not self.shared:
                _sign(number)
        except BaseException:
            os.close(number)
            raise
        if not held:
            os.close(number)
            return False
        self._number = number
        return True

    def release(self) -> None:
        """Give the lock back; the file stays, since another may be about to lock it."""
        if self._number is not None:
            os.close(self._number)
            self._number = None


def _locked(number: int, kind: int) -> bool:
    """`is_held` holds a lock for a moment, hence the second look."""
    for pause in (LOOK_AGAIN_SECONDS, 0):
        with suppress(BlockingIOError):
            fcntl.flock(number, kind | fcntl.LOCK_NB)
            return True
        time.sleep(pause)
    return False


def _sign(number: int) -> None:
    os.ftruncate(number, 0)
    storage.write_all(number, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def holder(path: Path) -> str:
    """Who took the lock at `path` last, in brackets, for the message to whoever finds it taken."""
    with suppress(OSError):
        number = storage.open_regular(path, os.O_RDONLY)
        with os.fdopen(number, errors="replace") as file:
            text = file.read(200).strip()
            return f" ({text})" if text else ""
    return ""


def is_held(path: Path) -> bool:
    """Whether a process holds the lock at `path`; where that cannot be found out, as on a read-only disk, it does."""
    try:
        number = storage.open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(number)
    return False
