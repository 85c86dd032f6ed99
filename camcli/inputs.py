"""What the user named on the command line -> the list of pictures to explain, in a stable order."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from camcli.errors import ConfigError, NoInputsError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture to explain; id is its path below the input root, extension kept, with forward slashes."""

    id: str
    path: Path


def discover(names: Sequence[str], extensions: Iterable[str] = EXTENSIONS, limit: int | None = None) -> list[Item]:
    """The pictures behind `names`: files, folders, globs, `@list.txt`, and `-` for paths on standard input.

    Folders are searched for `extensions`, hidden entries skipped; a file that is named is always taken.
    Ids are relative to the folder when one folder is named, else to the deepest folder that holds all.
    Raises NoInputsError when nothing is found and ConfigError for a name that does not exist.
    """
    wanted = tuple(e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions)
    roots = [root for name in names for root in _expand(name)]
    found: dict[str, None] = {}
    for root in roots:
        found.update(dict.fromkeys(_walk(root, wanted) if os.path.isdir(root) else [root]))
    if not found:
        raise NoInputsError(f"no picture in {', '.join(names)}: looked for {' '.join(wanted)}; --ext adds others")
    base = _base(roots)
    return [Item(Path(os.path.relpath(path, base)).as_posix(), Path(path)) for path in list(found)[:limit]]


def _expand(name: str) -> list[str]:
    """Absolute, unresolved paths of one command line word."""
    if name == "-":
        return _listed(sys.stdin.read())
    if name.startswith("@"):
        return _listed(_read_list(name[1:]))
    if os.path.lexists(name):
        return [os.path.abspath(name)]
    if glob.has_magic(name):
        return [os.path.abspath(path) for path in sorted(glob.glob(name, recursive=True))]
    raise ConfigError(f"{name}: no such file or folder")


def _read_list(name: str) -> str:
    try:
        return Path(name).read_text(errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"@{name}: the list cannot be read: {error.strerror}") from None


def _listed(text: str) -> list[str]:
    return [os.path.abspath(line) for line in text.splitlines() if line.strip()]


def _walk(folder: str, extensions: tuple[str, ...], above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Files below `folder` in order of name; links to folders are followed, but never in a circle."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in visible:
        if entry.is_dir():
            yield from _walk(entry.path, extensions, (*above, here))
        elif entry.name.lower().endswith(extensions):
            yield entry.path


def _base(roots: list[str]) -> str:
    folders = [root if os.path.isdir(root) else os.path.dirname(root) for root in roots]
    if len(roots) > 1:
        folders = [os.path.dirname(root) for root in roots]
    return os.path.commonpath(folders)
