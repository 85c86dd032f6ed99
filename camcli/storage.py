"""The only module that writes files: whole or not at all, below the run folder and nowhere else."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PRODUCTS = ("overlays", "reports", "maps")
NAME_BYTES = 255
_DISK_IS_GONE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE", "ENODEV", "ENXIO")
    if hasattr(errno, name)
}
_SHORTENED = re.compile(r"~[0-9a-f]{20}(\.[a-z0-9]{1,5})?$")


def disk_is_gone(error: OSError) -> bool:
    """Whether an error concerns the whole disk, so that no other file can be written either."""
    return error.errno in _DISK_IS_GONE


def write_atomic(path: Path, data: bytes | Iterable[bytes], sync: bool = False, tag: str = "") -> None:
    """Write beside `path` and rename, so that a reader never meets half a file; raises OSError.

    tag: whose temporary files these are, for `sweep`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{_temporary(tag)}{os.urandom(8).hex()}")
    try:
        with beside.open("xb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if sync:
        _sync_folder(path.parent)


def write_all(number: int, data: bytes) -> None:
    """Write all of `data` to an open file; raises OSError, and some of it may then be written."""
    while data:
        data = data[os.write(number, data) :]


def _temporary(tag: str) -> str:
    return f".camcli{tag}.tmp-"


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut once its folder is on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sweep(folder: Path, tag: str = "") -> None:
    """Remove what writers with this tag left half written when they were killed."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(_temporary(tag)):
                Path(place, name).unlink(missing_ok=True)


def remove(folder: Path, names: Iterable[str]) -> None:
    """Delete files below `folder` by their relative names, and the folders that this leaves empty."""
    for name in names:
        if not is_inside(folder, folder / name):
            continue
        path = folder / name
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        for parent in path.parents:
            if parent == folder or not _removed_if_empty(parent):
                break


def _removed_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def is_inside(folder: Path, path: Path) -> bool:
    """Whether the folder of `path`, links resolved, is `folder` or below it, and `path` names a file there."""
    root, parent = os.path.realpath(folder), os.path.realpath(path.parent)
    return path.name not in ("", "..") and (parent == root or parent.startswith(os.path.join(root, "")))


def fitted(name: str) -> str:
    """`name` with parts longer than file systems take cut short; two names never become the same one.

    A part that looks shortened already is shortened again, so nobody can name a file like another's short form.
    """
    return "/".join(_fitted(part) for part in name.split("/"))


def _fitted(part: str) -> str:
    raw = os.fsencode(part)
    if len(raw) <= NAME_BYTES and not _SHORTENED.search(part):
        return part
    extension = re.search(r"\.[a-z0-9]{1,5}$", part)
    end = f"~{hashlib.sha256(raw).hexdigest()[:20]}{extension.group() if extension else ''}"
    return raw[: NAME_BYTES - len(end)].decode(errors="ignore") + end
