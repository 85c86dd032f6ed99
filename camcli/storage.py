"""The only module that writes files."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes, sync: bool = False) -> None:
    """Write beside `path` and rename, so that a reader never meets half a file; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}-{os.urandom(6).hex()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
