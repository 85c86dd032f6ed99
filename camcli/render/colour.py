"""A heatmap as colour on the image."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from camcli.images import geometry
from camcli.records import Box

SIGNED_GAIN = 1.6
# Painted a strip at a time, so that what lies between two steps stays in the processor's cache.
STRIP_PIXELS = 1 << 18


@cache
def palette(colormap: str) -> bytes:
    """256 RGB triples of a matplotlib colour map."""
    from matplotlib import colormaps

    colours = np.asarray(colormaps[colormap](np.linspace(0, 1, 256)), dtype=np.float64)[:, :3]
    return np.rint(colours * 255).astype(np.uint8).tobytes()


def paint(image: Image.Image, heat: geometry.Heat, seen: Box, colormap: str, alpha: float) -> None:
    """Blend `heat` [h,w] in 0..1 over exactly the box of the RGB `image` that the model saw."""
    for region, grey in geometry.strips(heat, seen, image.width, image.height, STRIP_PIXELS):
        grey.putpalette(palette(colormap))
        image.paste(Image.blend(image.crop(region), grey.convert("RGB"), alpha), region[:2])


def paint_signed(image: Image.Image, heat: geometry.Heat, seen: Box, colormap: str, alpha: float) -> None:
    """Blend `heat` [h,w] in -1..1 over a grey version of the box of the RGB `image` that the model saw.

    The middle of the colour map is 0. Colours follow the root of the heat and are full from 0.4 of the largest value
    on, since maps of single pixels have few large values.
    """
    root = (SIGNED_GAIN * np.sign(heat) * np.sqrt(np.abs(heat))).clip(-1, 1)
    unit = np.asarray((root + 1) / 2, dtype=np.float32)
    for region, grey in geometry.strips(unit, seen, image.width, image.height, STRIP_PIXELS):
        grey.putpalette(palette(colormap))
        below = image.crop(region).convert("L").convert("RGB")
        image.paste(Image.blend(below, grey.convert("RGB"), min(1.0, 1.5 * alpha)), region[:2])
