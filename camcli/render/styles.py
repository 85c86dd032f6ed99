"""The ways to show heat on an image; a style is one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camcli.config.schema import OverlayConfig
from camcli.images import geometry
from camcli.images.geometry import Heat, Region
from camcli.records import Box

SIGNED_GAIN = 1.6
# Heat below this is as good as none: noise there would look like islands.
FAINT = 0.1
# What black becomes below signed heat.
PALE = 0.4
# Of the heat's maximum, where contours run; the first is where a record's `box` ends.
LEVELS = (0.5, 0.8)
OPACITY = {"heat": 0.75, "blend": 0.5, "spotlight": 0.7, "contours": 1.0}
# Painted a strip at a time, so that what lies between two steps stays in the processor's cache.
STRIP_PIXELS = 1 << 18
# Of the line around what was seen.
FRAME_OPACITY = 0.6
# At most, along each side of what contours are drawn from; and how much finer than the image they are drawn.
SAMPLES, FINER = 256, 2


@dataclass(frozen=True, slots=True)
class Layer:
    """What is to be shown: heat [h,w] in 0..1, or in -1..1 where `signed`, over the box `seen` of an image.

    colormap: matplotlib's name; 0 is the middle of that of signed heat. alpha: opacity at full heat.
    """

    heat: Heat
    signed: bool
    seen: Box
    colormap: str
    alpha: float

    @property
    def places(self) -> Heat:
        """[h,w] 0..1 in the colour map.

        Those of signed heat follow its root and are at the ends from 0.4 of the largest value on, since maps of single
        pixels have few large values.
        """
        if not self.signed:
            return self.heat
        root = (SIGNED_GAIN * np.sign(self.heat) * np.sqrt(np.abs(self.heat))).clip(-1, 1)
        return np.asarray((root + 1) / 2, dtype=np.float32)

    @property
    def strength(self) -> NDArray[np.float64]:
        """How strong the heat is, 0..1, at each of 256 places in the colour map."""
        places = np.linspace(0, 1, 256)
        return np.abs(2 * places - 1) if self.signed else places

    @property
    def signs(self) -> tuple[int, ...]:
        """The sides of 0 that have heat."""
        return (1, -1) if self.signed else (1,)

    def line_colour(self, sign: int, level: float) -> tuple[int, int, int]:
        """RGB of the contour at `level` on one side of 0."""
        place = (1 + sign) / 2 if self.signed else level
        red, green, blue = palette(self.colormap)[round(255 * place)].tolist()
        return red, green, blue

    def strips(self, image: Image.Image) -> Iterator[tuple[Region, Image.Image]]:
        """The part of `image` that was seen, from top to bottom: regions, and places in the colour map as 0..255."""
        return geometry.strips(self.places, self.seen, image.width, image.height, STRIP_PIXELS)


def layer_of(heat: Heat, signed: bool, seen: Box, config: OverlayConfig) -> Layer:
    """`heat` [h,w] as `config` wants it shown."""
    alpha = OPACITY[config.style] if config.alpha is None else config.alpha
    return Layer(heat, signed, seen, config.signed_colormap if signed else config.colormap, alpha)


def on_grey(alpha: float) -> float:
    """The opacity above an image without its colours, of which more may be hidden."""
    return min(1.0, 1.5 * alpha)


@cache
def palette(colormap: str) -> NDArray[np.uint8]:
    """[256, RGB] of a matplotlib colour map."""
    from matplotlib import colormaps

    colours = np.asarray(colormaps[colormap](np.linspace(0, 1, 256)), dtype=np.float64)[:, :3]
    return np.rint(colours * 255).astype(np.uint8)


def _coloured(grey: Image.Image, colormap: str) -> Image.Image:
    """RGB of places in a colour map, 0..255, which are not grey any more afterwards."""
    grey.putpalette(palette(colormap).tobytes())
    return grey.convert("RGB")


def _lay(image: Image.Image, grey: Image.Image, place: tuple[int, int], colours: bytes) -> None:
    """Paint `grey` on `image` in 256 RGBA colours."""
    grey.putpalette(colours, "RGBA")
    above = grey.convert("RGBA")
    image.paste(above, place, above)


def _table(values: NDArray[np.float64]) -> list[int]:
    """For `Image.point`: values in 0..1 as 0..255."""
    found: list[int] = np.rint(255 * values).astype(int).tolist()
    return found


def heat(image: Image.Image, layer: Layer) -> Image.Image:
    """Opacity rises with the heat from FAINT on, so what is cold stays as it is; a line is around what was seen.

    Below signed heat the image is grey and pale: maps of single pixels are not to be found among other colours.
    """
    alpha = on_grey(layer.alpha) if layer.signed else layer.alpha
    opacity = _table(alpha * ((layer.strength - FAINT) / (1 - FAINT)).clip(0, 1))
    colours = np.column_stack([palette(layer.colormap), opacity]).astype(np.uint8).tobytes()
    pale = _table(np.linspace(PALE, 1, 256))
    for region, grey in layer.strips(image):
        if layer.signed:
            image.paste(image.crop(region).convert("L").point(pale).convert("RGB"), region[:2])
        _lay(image, grey, region[:2], colours)
    _frame(image, layer.seen)
    return image


def blend(image: Image.Image, layer: Layer) -> Image.Image:
    """The same opacity everywhere that the model saw; below signed heat the image is grey."""
    for region, grey in layer.strips(image):
        below = image.crop(region)
        if layer.signed:
            below = below.convert("L").convert("RGB")
        alpha = on_grey(layer.alpha) if layer.signed else layer.alpha
        image.paste(Image.blend(below, _coloured(grey, layer.colormap), alpha), region[:2])
    return image


def spotlight(image: Image.Image, layer: Layer) -> Image.Image:
    """What has no heat is grey, and by `alpha` darker; what has the first of LEVELS or more is as it was."""
    dark = image.convert("L").point(_table((1 - layer.alpha) * np.linspace(0, 1, 256))).convert("RGB")
    light = _table((layer.strength / LEVELS[0]).clip(0, 1))
    for region, grey in layer.strips(image):
        dark.paste(image.crop(region), region[:2], grey.point(light))
    return dark


def contours(image: Image.Image, layer: Layer) -> Image.Image:
    """Lines at LEVELS of full heat, the higher one thicker, with dark edges; of signed heat on both sides of 0."""
    thin = max(2.0, max(image.size) / 400)
    for sign in layer.signs:
        region, field = geometry.field(sign * layer.heat, layer.seen, image.width, image.height, SAMPLES)
        for level, width in zip(LEVELS, (thin, 2 * thin), strict=True):
            _draw(image, region, _contour(field, level), layer.line_colour(sign, level), width, layer.alpha)
    return image


STYLES: Mapping[str, Callable[[Image.Image, Layer], Image.Image]] = {
    "heat": heat,
    "blend": blend,
    "spotlight": spotlight,
    "contours": contours,
}
"""Each paints a layer that has heat on an RGB image, which it may change, and returns what is to be shown."""


def _frame(image: Image.Image, seen: Box) -> None:
    """A thin light line within the edge of what was seen, unless that is the whole image."""
    left, top, right, bottom = geometry.region(seen, image.width, image.height)
    if (left, top, right, bottom) == (0, 0, *image.size):
        return
    width = max(1, round(max(image.size) / 900))
    for edge in (
        (left, top, right, top + width),
        (left, bottom - width, right, bottom),
        (left, top + width, left + width, bottom - width),
        (right - width, top + width, right, bottom - width),
    ):
        if edge[0] < edge[2] and edge[1] < edge[3]:
            below = image.crop(edge)
            image.paste(Image.blend(below, Image.new("RGB", below.size, "white"), FRAME_OPACITY), edge[:2])


def _contour(field: NDArray[np.float32], level: float) -> list[NDArray[np.float64]]:
    """Lines [n, (x, y)] where `field` passes `level`, in its columns and rows."""
    from contourpy import contour_generator

    if min(field.shape) < 2:
        return []
    lines: list[NDArray[np.float64]] = contour_generator(z=field).lines(level)  # type: ignore[assignment]
    rows, columns = field.shape
    return [(line + 0.5) / (columns, rows) for line in lines]


def _draw(
    image: Image.Image,
    region: Region,
    lines: list[NDArray[np.float64]],
    colour: tuple[int, int, int],
    width: float,
    alpha: float,
) -> None:
    """Smooth lines, whose points are parts of the region, in a colour on a dark edge."""
    size = region[2] - region[0], region[3] - region[1]
    for ink, wide in (("black", 2 * width), (colour, width)):
        mask = Image.new("L", (size[0] * FINER, size[1] * FINER))
        draw = ImageDraw.Draw(mask)
        for line in lines:
            points = (line * mask.size).ravel().tolist()
            draw.line(points, fill=round(255 * alpha), width=max(1, round(FINER * wide)), joint="curve")
        image.paste(ink, region[:2], mask.reduce(FINER))
