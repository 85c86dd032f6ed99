"""What the user named on the command line -> the list of pictures to explain, in a stable order."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from camcli.errors import ConfigError, NoInputsError
from camcli.records import FileState
from camcli.storage import PRODUCTS

_RESULTS = re.compile(r"results(-\d+-of-\d+)?\.jsonl")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture to explain; id is its path below the input root, extension kept, with forward slashes."""

    id: str
    path: Path


def discover(
    names: Sequence[str],
    extensions: Iterable[str] = EXTENSIONS,
    limit: int | None = None,
    out: Path | None = None,
) -> list[Item]:
    """The pictures behind `names`: files, folders, globs, `@list.txt`, and `-` for paths on standard input.

    Folders are searched for `extensions`; hidden entries and what camcli wrote into a run folder are skipped.
    A file that is named is always taken, unless the run in `out` wrote it.
    Ids are relative to the folder when one folder is named, else to the deepest folder that holds all.
    Raises NoInputsError when nothing is found and ConfigError for a name that does not exist.
    """
    wanted = tuple(e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions)
    roots = [root for name in names for root in _expand(name)]
    found: dict[str, None] = {}
    for root in roots:
        found.update(dict.fromkeys(_walk(root, wanted) if os.path.isdir(root) else [root]))
    if out is not None:
        is_output = _produced(out)
        found = {path: None for path in found if not is_output(os.path.dirname(path))}
    if not found:
        raise NoInputsError(f"no picture in {', '.join(names)}: looked for {' '.join(wanted)}; --ext adds others")
    base = _base(roots)
    return [Item(Path(os.path.relpath(path, base)).as_posix(), Path(path)) for path in list(found)[:limit]]


def state_of(path: Path, with_hash: bool = True) -> FileState | None:
    """The file as it is now, None where there is none; only regular files are ever opened."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    digest = _digest(path) if with_hash and stat.S_ISREG(status.st_mode) else None
    return FileState(status.st_size, status.st_mtime_ns, digest)


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _expand(name: str) -> list[str]:
    """Absolute, unresolved paths of one command line word."""
    if name == "-":
        return _listed(_standard_input())
    if name.startswith("@"):
        return _listed(_read_list(name[1:]))
    if os.path.lexists(name):
        return [os.path.abspath(name)]
    if glob.has_magic(name):
        return [os.path.abspath(path) for path in sorted(glob.glob(name, recursive=True))]
    raise ConfigError(f"{name}: no such file or folder")


def _standard_input() -> str:
    if sys.stdin is None:
        raise ConfigError("-: standard input is closed, so no paths can be read from it")
    binary = getattr(sys.stdin, "buffer", None)
    return os.fsdecode(binary.read()) if binary else sys.stdin.read()


def _read_list(name: str) -> str:
    try:
        return os.fsdecode(Path(name).read_bytes())
    except OSError as error:
        raise ConfigError(f"@{name}: the list cannot be read: {error.strerror}") from None


def _listed(text: str) -> list[str]:
    """A path a line; where the list has NUL characters (find -print0), they alone end a path."""
    lines = text.split("\0") if "\0" in text else text.replace("\r\n", "\n").split("\n")
    return [os.path.abspath(line) for line in lines if line.strip()]


def _walk(top: str, extensions: tuple[str, ...]) -> Iterator[str]:
    """Files below `top` in order of name; links to folders are followed, but never in a circle.

    A folder that cannot be read is given out itself, so that the run has a record of it.
    """
    stack = [(iter([(top, True)]), frozenset[tuple[int, int]]())]
    while stack:
        entries, above = stack[-1]
        path, is_folder = next(entries, (None, False))
        if path is None:
            stack.pop()
        elif not is_folder:
            if path.lower().endswith(extensions):
                yield path
        elif (inner := _entries(path)) is None:
            yield path
        elif (here := _identity(path)) not in above:
            stack.append((iter(inner), above | {here}))


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(folder: str) -> list[tuple[str, bool]] | None:
    """(path, whether it is a folder) of what is to be searched, in order of name; None where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return None
    names = [entry.name for entry in entries]
    skipped = PRODUCTS if any(_RESULTS.fullmatch(n) for n in names) else ()
    return [(e.path, _is_folder(e)) for e in entries if not e.name.startswith(".") and e.name not in skipped]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _produced(out: Path) -> Callable[[str], bool]:
    """Whether a folder is one of those that a run in `out` fills, or in one, links resolved."""
    roots = tuple(os.path.join(os.path.realpath(out), name, "") for name in PRODUCTS)

    @cache
    def inside(folder: str) -> bool:
        return os.path.join(os.path.realpath(folder), "").startswith(roots)

    return inside


def _base(roots: list[str]) -> str:
    folders = [root if os.path.isdir(root) else os.path.dirname(root) for root in roots]
    if len(roots) > 1:
        folders = [os.path.dirname(root) for root in roots]
    return os.path.commonpath(folders)
