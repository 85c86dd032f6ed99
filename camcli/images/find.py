"""What the user named on the command line -> the list of images to explain, in a stable order."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from camcli.errors import ConfigError, NoInputsError
from camcli.images.formats import EXTENSIONS
from camcli.records import PRODUCTS, FileState

_RESULTS = re.compile(r"results(-\d+-of-\d+)?\.jsonl|concepts\.json")
MOST_NAMED = 6
Check = Literal["stat", "hash"]
"""How a file is known to be the same: by its size and time, or by its content."""
_MANIFEST = re.compile(r"run(-\d+-of-\d+)?\.json")


@dataclass(frozen=True, slots=True)
class Item:
    """One image to explain; id is where it is below its root, extension kept, with forward slashes."""

    id: str
    path: Path


@dataclass(frozen=True, slots=True)
class _Place:
    """What the user named, absolute and unresolved; name: the id of a file, or what ids below a folder begin with."""

    path: str
    name: str


def discover(
    names: Sequence[str],
    extensions: Iterable[str] = EXTENSIONS,
    limit: int | None = None,
    out: Path | None = None,
    root: str | None = None,
    folder: str | None = None,
    others: set[str] | None = None,
) -> list[Item]:
    """The images behind `names`: files, folders, globs, `@list.txt`, and `-` for paths on standard input.

    Folders are searched for `extensions`; hidden entries and what camcli wrote into a run folder are skipped.
    A file that is named is always taken, unless the run in `out` wrote it. Relative names are relative to `folder`, by
    default the current one.

    Ids: below the only input, a folder, the path below it; with several inputs that path after the folder's own name.
    What is named by its file, a glob or a list has the path that it is named by. With `root` each id is the path below
    that folder. Raises NoInputsError when nothing is found, and ConfigError for a name that does not exist, a path that
    is not below `root`, and two images with the same id. The files in searched folders that have other extensions are
    added to `others`.
    """
    wanted = tuple(e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions)
    places = _places(names, root, folder or os.getcwd())
    found: dict[str, str] = {}
    passed: set[str] = set()
    for place in places:
        paths = _walk(place.path, wanted, passed) if os.path.isdir(place.path) else [place.path]
        for path in paths:
            found.setdefault(path, _id(place, path))
    if out is not None:
        is_output = _produced(out)
        found = {path: name for path, name in found.items() if not is_output(os.path.dirname(path))}
        passed = {path for path in passed if not is_output(os.path.dirname(path))}
    passed -= found.keys()
    if not found:
        there = f" (there: {in_words(by_extension(passed))})" if passed else ""
        raise NoInputsError(f"no image in {', '.join(names)}: looked for {' '.join(wanted)}; --ext adds others{there}")
    if others is not None:
        others |= passed
    _refuse_equal_ids(found)
    return [Item(name, Path(path)) for path, name in list(found.items())[:limit]]


def by_extension(paths: Iterable[str]) -> dict[str, int]:
    """How many files have which extension, in lower case, the most frequent first."""
    counted = Counter(os.path.splitext(path)[1].lower() for path in paths)
    return dict(sorted(counted.items(), key=lambda one: (-one[1], one[0] == "", one[0])))


def in_words(counted: Mapping[str, int]) -> str:
    """The most frequent extensions, such as `21 .ico, 2 without`."""
    shown = [f"{number} {extension or 'without'}" for extension, number in list(counted.items())[:MOST_NAMED]]
    return ", ".join(shown) + ", …" * (len(counted) > MOST_NAMED)


def root_of(name: str, path: str) -> str:
    """The folder below which an image with the id `name` is at `path`."""
    return path if name == "." else path[: -len(name)].rstrip("/") or "/"


def roots_of(items: Iterable[Item]) -> list[str]:
    """Below which folders the ids are paths, in order: one folder where there is one rule for all."""
    return sorted({root_of(item.id, str(item.path)) for item in items})


def common_root(paths: Iterable[str]) -> str:
    """The deepest folder that holds all `paths`."""
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def asked(names: Sequence[str], ext: Sequence[str] | None, limit: int | None, root: str | None) -> dict[str, Any]:
    """What the user named, as `discover` needs it to look again from anywhere."""
    return {
        "names": [_from_anywhere(name) for name in names],
        "ext": list(ext) if ext else None,
        "limit": limit,
        "root": os.path.abspath(root) if root else None,
        "folder": None if all(_is_folder_word(name) or os.path.isabs(name) for name in names) else os.getcwd(),
    }


def _from_anywhere(word: str) -> str:
    """A folder and a list are the same by any name, but a file is called as it is named."""
    if word.startswith("@"):
        return f"@{os.path.abspath(word[1:])}"
    return os.path.abspath(word) if _is_folder_word(word) else word


def _id(place: _Place, path: str) -> str:
    """`.` where the only input is a folder that cannot be searched."""
    return _join(place, path) or "."


def _join(place: _Place, path: str) -> str:
    below = path[len(place.path) :].lstrip("/")
    return "/".join(filter(None, (place.name, below)))


def _refuse_equal_ids(found: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for path, name in found.items():
        other = first.setdefault(name, path)
        if other != path:
            raise ConfigError(
                f"{other} and {path} would have the same id, {name}; --root {common_root([other, path])} gives each "
                "the path below it"
            )


def _places(names: Sequence[str], root: str | None, here: str) -> list[_Place]:
    """What `names` stand for, each with its part of the ids."""
    words = list(
        {os.path.normpath(os.path.join(here, w)) if _is_folder_word(w, here) else w: w for w in names}.values()
    )
    places = [place for word in words for place in _expand(word, here)]
    if root is not None:
        return [_Place(place.path, _below(place.path, os.path.join(here, root))) for place in places]
    folders = {p.path: p for word in words if _is_folder_word(word, here) for p in _expand(word, here)}
    if len(words) > 1 or not folders:
        folders = {path: _Place(path, os.path.basename(path)) for path in folders}
    _refuse_equal_names(folders)
    return [_named_by_folder(place, folders) for place in places]


def _refuse_equal_names(folders: Mapping[str, _Place]) -> None:
    first: dict[str, str] = {}
    for path, place in folders.items():
        other = first.setdefault(place.name, path)
        if other != path:
            raise ConfigError(
                f"{other} and {path} have the same name, so their images would have the same ids; "
                f"--root {common_root([other, path])} gives each the path below it"
            )


def _named_by_folder(place: _Place, folders: Mapping[str, _Place]) -> _Place:
    """As the outermost of the named `folders` that holds it says, whatever else names it as well."""
    above = [place.path]
    while above[-1] != os.path.dirname(above[-1]):
        above.append(os.path.dirname(above[-1]))
    holder = next((folders[path] for path in reversed(above) if path in folders), None)
    return _Place(place.path, _join(holder, place.path)) if holder else place


def _below(path: str, root: str) -> str:
    below = os.path.relpath(path, root)
    if below == ".." or below.startswith("../"):
        raise ConfigError(f"{path}: is not below --root {os.path.normpath(root)}")
    return "" if below == "." else below


def state_of(path: Path, with_hash: bool = True) -> FileState | None:
    """The file as it is now, None where there is none; only regular files are ever opened."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    digest = _digest(path) if with_hash and stat.S_ISREG(status.st_mode) else None
    return FileState(status.st_size, status.st_mtime_ns, digest)


def unchanged(before: FileState | None, path: Path, check: Check = "stat") -> bool:
    """Whether the file at `path` is what it was, None standing for no file that could be read."""
    by_hash = check == "hash" and before is not None and before.sha256 is not None
    now = state_of(path, with_hash=by_hash)
    if before is None or now is None:
        return before is now
    if by_hash:
        return before.sha256 == now.sha256
    return (before.bytes, before.mtime_ns) == (now.bytes, now.mtime_ns)


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _is_folder_word(word: str, here: str = "") -> bool:
    """Whether a word of the command line is the name of a folder; a list or a glob that leads to one is none."""
    return word != "-" and not word.startswith("@") and os.path.isdir(os.path.join(here, word))


def _expand(word: str, here: str) -> list[_Place]:
    """What one word of the command line stands for; a folder has no name yet."""
    if word == "-":
        return [_as_named(name, here) for name in _listed(_standard_input())]
    if word.startswith("@"):
        return [_as_named(name, here) for name in _listed(_read_list(os.path.join(here, word[1:])))]
    if _is_folder_word(word, here):
        return [_Place(os.path.normpath(os.path.join(here, word)), "")]
    if os.path.lexists(os.path.join(here, word)):
        return [_as_named(word, here)]
    if glob.has_magic(word):
        return [_as_named(name, here) for name in sorted(glob.glob(word, root_dir=here, recursive=True))]
    raise ConfigError(f"{word}: no such file or folder")


def _as_named(name: str, here: str) -> _Place:
    """A path without leading slash is its own id; one that leaves the current folder is made absolute first."""
    path, plain = os.path.normpath(os.path.join(here, name)), os.path.normpath(name)
    if plain == ".." or plain.startswith("../"):
        plain = path
    return _Place(path, "" if plain == "." else plain.lstrip("/"))


def _standard_input() -> str:
    if sys.stdin is None:
        raise ConfigError("-: standard input is closed, so no paths can be read from it")
    binary = getattr(sys.stdin, "buffer", None)
    return decoded("-", binary.read()) if binary else sys.stdin.read()


def _read_list(name: str) -> str:
    try:
        return decoded(f"@{name}", Path(name).read_bytes())
    except OSError as error:
        raise ConfigError(f"@{name}: the list cannot be read: {error.strerror}") from None


def decoded(word: str, data: bytes) -> str:
    """File names are bytes of any kind; a byte order mark is none of them, and tells of UTF-16."""
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    try:
        return data.decode("utf-16")
    except ValueError:
        raise ConfigError(f"{word}: begins like UTF-16 and is not; save the list as UTF-8") from None


def _listed(text: str) -> list[str]:
    """A path a line; where the list has NUL characters (find -print0), they alone end a path."""
    lines = text.split("\0") if "\0" in text else text.replace("\r\n", "\n").split("\n")
    return [line for line in lines if line.strip()]


def _walk(top: str, extensions: tuple[str, ...], others: set[str]) -> Iterator[str]:
    """Files below `top` in order of name; links to folders are followed, but never in a circle.

    A folder that cannot be read is given out itself, so that the run has a record of it. Files of other extensions are
    added to `others`.
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
            else:
                others.add(path)
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
    own = _is_own if any(_RESULTS.fullmatch(n) for n in names) else _is_never
    return [(e.path, _is_folder(e)) for e in entries if not e.name.startswith(".") and not own(e.name)]


def _is_own(name: str) -> bool:
    """Whether camcli wrote what is called so in a run folder."""
    return name in PRODUCTS or bool(_RESULTS.fullmatch(name) or _MANIFEST.fullmatch(name))


def _is_never(name: str) -> bool:
    return False


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
