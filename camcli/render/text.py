"""Lines of text on an image, in any script that a font at hand has."""

from __future__ import annotations

import os
from bisect import bisect_left
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageDraw
from PIL.ImageFont import FreeTypeFont, truetype

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

LONGEST = 400
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_FONT_FILES = (".ttf", ".otf", ".ttc")


def write_line(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: str, width: float
) -> None:
    """Write `text` at its upper left corner, cut off at `width` pixels."""
    x, y = place[0], place[1] + _font(_ours(), size).getmetrics()[0]
    for part, font in _runs(cut(text, size, width), size):
        draw.text((x, y), part, colour, font, anchor="ls")
        x += font.getlength(part)


def cut(text: str, size: int, width: float) -> str:
    """As much of `text` as is at most `width` pixels long, on one line and without what no font draws."""
    whole = _plain(text)
    if length(whole, size) <= width:
        return whole
    most = bisect_left(range(len(whole)), True, key=lambda n: length(f"{whole[: n + 1]}…", size) > width)
    return f"{whole[: max(1, most)].rstrip()}…"


def length(text: str, size: int) -> float:
    """Of a line, in pixels."""
    return sum(font.getlength(part) for part, font in _runs(_plain(text), size))


def _plain(text: str) -> str:
    """On one line, without what no font draws."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST].encode(errors="replace").decode())


def _runs(text: str, size: int) -> list[tuple[str, FreeTypeFont]]:
    """Parts of a line that one font has."""
    return [("".join(part), _font(path, size)) for path, part in groupby(text, _font_file)]


@cache
def _font(path: str, size: int) -> FreeTypeFont:
    return truetype(path, size)


@cache
def _font_file(character: str) -> str:
    """DejaVu Sans, which comes with matplotlib, or the first installed font that has what DejaVu has not."""
    ours = _ours()
    if character.isascii() or _has(ours, character):
        return ours
    return next((path for path in _installed() if _has(path, character)), ours)


@cache
def _ours() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _has(path: str, character: str) -> bool:
    face = _face(path)
    return bool(face and face.get_char_index(ord(character)))


@cache
def _face(path: str) -> FT2Font | None:
    """The font, None for a file that is none."""
    from matplotlib.ft2font import FT2Font

    try:
        return FT2Font(path)
    except (OSError, RuntimeError):
        return None


@cache
def _installed() -> tuple[str, ...]:
    """Fonts of this machine, in a fixed order."""
    places = (place for folder in _FOLDERS for place in os.walk(os.path.expanduser(folder)))
    files = (os.path.join(folder, name) for folder, _, names in places for name in names)
    return tuple(sorted(path for path in files if path.lower().endswith(_FONT_FILES)))
