"""From the values of a heatmap to pixels of the original image, through the box that the model saw."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camcli.records import Box

_FINER = 8
_BILINEAR = Image.Resampling.BILINEAR

Heat = NDArray[np.float32]
Region = tuple[int, int, int, int]


def place(heat: Heat, seen: Box, width: int, height: int) -> tuple[Region, Image.Image]:
    """Where `heat` [h,w] lies on an image of `width` x `height` px, and how it looks there.

    Returns the pixel region (left, top, right, bottom), whose pixel centres lie in `seen`, and a grey image of
    its size: bilinear between the centres of locations, those at the edge continued, 0..1 as 0..255.
    """
    [placed] = strips(heat, seen, width, height, width * height)
    return placed


def strips(heat: Heat, seen: Box, width: int, height: int, pixels: int) -> Iterator[tuple[Region, Image.Image]]:
    """What `place` returns, from top to bottom in strips of whole rows with about `pixels` pixels."""
    left, top, right, bottom = found = region(seen, width, height)
    h = len(heat)
    values = Image.fromarray(np.rint(_bordered(heat) * 255).astype(np.uint8))
    u0, v0, u1, v1 = window = _window(heat, seen, found)
    if v1 - v0 > bottom - top:
        yield (left, top, right, bottom), values.resize((right - left, bottom - top), _BILINEAR, box=window)
        return
    across = np.asarray(values.resize((right - left, h + 2), _BILINEAR, box=(u0, 0, u1, h + 2)), dtype=np.float32)
    rows = max(1, pixels // (right - left))
    for y in range(top, bottom, rows):
        end = min(y + rows, bottom)
        centres = (np.arange(y, end) + 0.5 - seen.y0) / seen.height * h + 0.5
        yield (left, y, right, end), _between(across, centres.clip(0, h + 1))


def field(heat: Heat, seen: Box, width: int, height: int, most: int) -> tuple[Region, Heat]:
    """What `place` returns, but float32, and with at most `most` values along each side of the region."""
    left, top, right, bottom = found = region(seen, width, height)
    size = min(right - left, most), min(bottom - top, most)
    values = Image.fromarray(np.asarray(_bordered(heat), dtype=np.float32))
    return found, np.asarray(values.resize(size, _BILINEAR, box=_window(heat, seen, found)))


def region(seen: Box, width: int, height: int) -> Region:
    """The pixels (left, top, right, bottom) of an image of `width` x `height` px whose centres lie in `seen`."""
    left, right = _pixels(seen.x0, seen.x1, width)
    top, bottom = _pixels(seen.y0, seen.y1, height)
    return left, top, right, bottom


def _bordered(heat: Heat) -> Heat:
    """One more location at each side, as hot as the one beside it."""
    return np.pad(heat, 1, mode="edge")


def _window(heat: Heat, seen: Box, found: Region) -> tuple[float, float, float, float]:
    """Where a region of the image lies in the map with its border."""
    h, w = heat.shape
    left, top, right, bottom = found
    return *_locations(left, top, seen, w, h), *_locations(right, bottom, seen, w, h)


def _between(rows: NDArray[np.float32], at: NDArray[np.float64]) -> Image.Image:
    """A grey image [len(at), W] between neighbours of `rows` [n,W] 0..255, at rising places in 0..n-1.

    Several times faster than Pillow's resize, which does not know that a row is met with many weights.
    """
    grey = np.empty((len(at), rows.shape[1]), dtype=np.float32)
    below = np.minimum(at.astype(np.intp), len(rows) - 2)
    part = (at - below).astype(np.float32)[:, None]
    for i in range(below[0], below[-1] + 1):
        start, end = np.searchsorted(below, [i, i + 1])
        np.multiply(part[start:end], rows[i + 1] - rows[i], out=grey[start:end])
        grey[start:end] += rows[i]
    grey += 0.5
    return Image.fromarray(grey.astype(np.uint8))


def _pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    """First and last + 1 pixel whose centre lies in low..high, at least one, none outside 0..limit."""
    first = min(max(math.ceil(low - 0.5), 0), limit - 1)
    last = min(max(math.floor(high - 0.5) + 1, first + 1), limit)
    return first, last


def _locations(x: float, y: float, seen: Box, w: int, h: int) -> tuple[float, float]:
    """Image coordinates -> coordinates of the map with one location of border."""
    u = (x - seen.x0) / seen.width * w + 1
    v = (y - seen.y0) / seen.height * h + 1
    return min(max(u, 0.0), w + 2.0), min(max(v, 0.0), h + 2.0)


def peak(heat: Heat, seen: Box, width: int, height: int) -> tuple[int, int] | None:
    """The pixel [x, y] at the centre of the hottest location; None for a map without heat.

    Locations whose centre lies on the image come first; an image thinner than one may have none.
    """
    if not heat.any():
        return None
    h, w = heat.shape
    xs = seen.x0 + (np.arange(w) + 0.5) * seen.width / w
    ys = seen.y0 + (np.arange(h) + 0.5) * seen.height / h
    on_image = ((ys >= 0) & (ys < height))[:, None] & ((xs >= 0) & (xs < width))[None]
    visible = np.where(on_image, heat, 0)
    hottest = (visible if visible.any() else heat).argmax()
    row, column = np.unravel_index(int(hottest), heat.shape)
    return _inside(xs[column], width), _inside(ys[row], height)


def _inside(position: float, limit: int) -> int:
    return min(max(math.floor(position), 0), limit - 1)


def hot_box(heat: Heat, seen: Box, width: int, height: int) -> Box | None:
    """Bounds, in pixels of the image, of the region above half of the maximum; None without heat."""
    if not heat.any():
        return None
    h, w = (_FINER * n for n in heat.shape)
    fine = np.asarray(Image.fromarray(heat).resize((w, h), Image.Resampling.BILINEAR))
    hot = fine >= fine.max() / 2
    rows, columns = np.flatnonzero(hot.any(axis=1)), np.flatnonzero(hot.any(axis=0))
    per_x, per_y = seen.width / w, seen.height / h
    box = Box(
        seen.x0 + columns[0] * per_x,
        seen.y0 + rows[0] * per_y,
        seen.x0 + (columns[-1] + 1) * per_x,
        seen.y0 + (rows[-1] + 1) * per_y,
    ).clip(width, height)
    return box if box.width > 0 and box.height > 0 else None
