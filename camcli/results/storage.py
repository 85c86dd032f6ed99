"""The only module that writes files: whole or not at all, below the run folder and nowhere else."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from camcli.errors import OutputError

NAME_BYTES = 255
_DISK_IS_GONE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE", "ENODEV", "ENXIO", "EMFILE", "ENFILE")
    if hasattr(errno, name)
}
_LIKE_A_FILE = re.compile(r"\.(jpg|png|webp|json|npz)~*$", re.IGNORECASE)
_SHORTENED = re.compile(r"~[0-9a-f]{20}(\.[a-z0-9]{1,5})?$")


@contextmanager
def fatal(path: Path, verb: str = "written") -> Iterator[None]:
    """Inside, an OSError is an OutputError about `path`, which cannot be `verb`."""
    try:
        yield
    except OSError as error:
        raise fatal_error(path, error, verb) from None


def fatal_error(path: Path, error: OSError, verb: str = "written") -> OutputError:
    """What to tell the user of an error at `path` that ends the run."""
    if isinstance(error, NotRegular):
        return OutputError(f"{error.filename}: {error.strerror}, so camcli does not use it; move it out of the way")
    reason = error.strerror or error
    if verb != "written":
        return OutputError(f"{path}: cannot be {verb}: {reason}")
    return OutputError(
        f"{path}: cannot be written: {reason}; what is written is whole, and the same command goes on from there"
    )


def disk_is_gone(error: OSError) -> bool:
    """Whether an error concerns the whole disk or process, so that no other file can be written either."""
    return error.errno in _DISK_IS_GONE


class NotRegular(OSError):
    """A link, a pipe or a device where camcli keeps a file of its own."""


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file that has no other name, so that nothing else is changed and nobody is waited for; OSError.

    To be read, a file may have other names.
    """
    try:
        number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if path.is_symlink() or error.errno == errno.EISDIR:
            what = "is a link" if path.is_symlink() else "is a folder"
            raise NotRegular(error.errno, what, str(path)) from None
        raise
    status = os.fstat(number)
    wrong = "is no regular file" if not stat.S_ISREG(status.st_mode) else ""
    if not wrong and status.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
        wrong = "has another name (a hard link)"
    if wrong:
        os.close(number)
        raise NotRegular(errno.EINVAL, wrong, str(path))
    return number


def read_regular(path: Path) -> bytes:
    """The content of a regular file; raises OSError."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()


def make_folders(root: Path, folder: Path) -> None:
    """Make `folder`, which is `root` or below it, but never `root` itself; raises OSError."""
    for inner in reversed([folder, *folder.parents][: len(folder.parts) - len(root.parts)]):
        with suppress(FileExistsError):
            inner.mkdir()


def write_atomic(path: Path, data: bytes | Iterable[bytes], sync: bool = False, tag: str = "") -> None:
    """Write beside `path` and rename, so that a reader never meets half a file; raises OSError.

    tag: whose temporary files these are, for `sweep`.
    """
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


def write_named(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file that the user named, and make its folder; raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None


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
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(number)


def sweep(folder: Path, tag: str = "") -> None:
    """Remove what writers with this tag left half written when they were killed."""
    for place, _, names in os.walk(folder):
        for name in names:
            if re.fullmatch(re.escape(_temporary(tag)) + "[0-9a-f]{16}", name):
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
    """`name` as file systems take it; two names never become the same one, nor one the folder of another.

    A folder whose name ends like a file that camcli writes gets a `~`. Parts longer than file systems take are cut
    short; one that looks shortened already is shortened again, so nobody can name a file like another's short form.
    """
    *folders, file = name.split("/")
    marked = [f"{folder}~" if _LIKE_A_FILE.search(folder) else folder for folder in folders]
    return "/".join(_fitted(part) for part in (*marked, file))


def _fitted(part: str) -> str:
    raw = os.fsencode(part)
    if len(raw) <= NAME_BYTES and not _SHORTENED.search(part):
        return part
    extension = re.search(r"\.[a-z0-9]{1,5}$", part)
    end = f"~{hashlib.sha256(raw).hexdigest()[:20]}{extension.group() if extension else ''}"
    return raw[: NAME_BYTES - len(end)].decode(errors="ignore") + end
