"""Thumbnails, and what is shown large: files below report/, made once for each image and state of it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from camcli.errors import ItemError
from camcli.images.decode import decode

SIDE = 224
LARGE = 1280
COPIED_BYTES = 400_000
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
SHOWN_BY_BROWSERS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
Sides = tuple[int, int]
LARGE_KINDS = tuple(SHOWN_BY_BROWSERS.values())


def strip(image: Image.Image | None, overlays: Sequence[Path], part: Sides, centred: bool) -> bytes:
    """A WebP with the image, if there is one, and its overlays side by side, each in a tile of the same size.

    part: how large the image is in its overlays, in the middle or on the left of what is written below it, which is
    left out. What cannot be read is a grey tile.
    """
    tiles = [*([image] if image else []), *(_opened(path, part, centred) for path in overlays)]
    size = next((tile.size for tile in tiles if tile), (SIDE, SIDE))
    sheet = Image.new("RGB", (size[0] * len(tiles), size[1]), "grey")
    for i, tile in enumerate(tiles):
        if tile:
            fitted = tile if tile.size == size else ImageOps.pad(tile, size, Image.Resampling.BILINEAR)
            sheet.paste(fitted, (i * size[0], 0))
    return webp(sheet, 70)


def webp(image: Image.Image, quality: int) -> bytes:
    """The encoded image."""
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=0)
    return buffer.getvalue()


def _opened(path: Path, part: Sides, centred: bool) -> Image.Image | None:
    try:
        with Image.open(path, formats=list(SHOWN_BY_BROWSERS)) as image:
            return _shrunk(_without_words(image, part, centred))
    except UNREADABLE:
        return None


def _without_words(overlay: Image.Image, part: Sides, centred: bool) -> Image.Image:
    """The image alone, of an overlay that has a caption or a legend."""
    if overlay.width < part[0] or overlay.height <= part[1]:
        return overlay
    left = (overlay.width - part[0]) // 2 if centred else 0
    return overlay.crop((left, 0, left + part[0], part[1]))


def small(path: Path) -> Image.Image | None:
    """The image at `path`, upright, at most `SIDE` pixels long; None where it cannot be read."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if image.mode in ("RGB", "L"):
                return ImageOps.exif_transpose(_shrunk(image))
    except UNREADABLE:
        pass
    whole = _decoded(path)
    return _shrunk(whole) if whole else None


def _shrunk(image: Image.Image) -> Image.Image:
    """RGB, at most `SIDE` pixels long; a JPEG is decoded at a fraction where that is enough."""
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return image.convert("RGB")


def large(path: Path) -> tuple[bytes, str] | None:
    """What is shown of the image at `path` at full size, and the extension of its format.

    A small file that browsers show is copied; others are encoded anew, at most `LARGE` pixels long.
    """
    kind = _copied(path)
    if kind:
        return path.read_bytes(), kind
    image = _decoded(path)
    if image is None:
        return None
    image.thumbnail((LARGE, LARGE), Image.Resampling.BILINEAR)
    return webp(image, 80), "webp"


def _copied(path: Path) -> str:
    try:
        with Image.open(path, formats=list(SHOWN_BY_BROWSERS)) as image:
            shown = path.stat().st_size <= COPIED_BYTES and image.mode in ("RGB", "RGBA", "L", "P")
            return SHOWN_BY_BROWSERS.get(image.format or "", "") if shown else ""
    except UNREADABLE:
        return ""


def _decoded(path: Path) -> Image.Image | None:
    try:
        return decode(path)
    except ItemError:
        return None
