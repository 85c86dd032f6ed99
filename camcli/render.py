"""A heatmap as colour on the picture."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from camcli import geometry
from camcli.records import Box

SIGNED_GAIN = 1.6


@cache
def palette(colormap: str) -> bytes:
    """256 RGB triples of a matplotlib colour map."""
    from matplotlib import colormaps

    colours = np.asarray(colormaps[colormap](np.linspace(0, 1, 256)), dtype=np.float64)[:, :3]
    return np.rint(colours * 255).astype(np.uint8).tobytes()


def overlay(image: Image.Image, heat: geometry.Heat, seen: Box, colormap: str, alpha: float) -> Image.Image:
    """A copy of the RGB `image` with `heat` [h,w] in 0..1 blended over exactly the box that the model saw."""
    region, grey = geometry.place(heat, seen, image.width, image.height)
    grey.putpalette(palette(colormap))
    return _pasted(image, Image.blend(image.crop(region), grey.convert("RGB"), alpha), region)


def signed_overlay(image: Image.Image, heat: geometry.Heat, seen: Box, colormap: str, alpha: float) -> Image.Image:
    """A copy of the RGB `image` with `heat` [h,w] in -1..1 over a grey copy of the box that the model saw.

    The middle of the colour map is 0. Colours follow the root of the heat and are full from 0.4 of the largest value
    on, since maps of single pixels have few large values.
    """
    root = (SIGNED_GAIN * np.sign(heat) * np.sqrt(np.abs(heat))).clip(-1, 1)
    unit = np.asarray((root + 1) / 2, dtype=np.float32)
    region, grey = geometry.place(unit, seen, image.width, image.height)
    grey.putpalette(palette(colormap))
    below = image.crop(region).convert("L").convert("RGB")
    return _pasted(image, Image.blend(below, grey.convert("RGB"), min(1.0, 1.5 * alpha)), region)


def _pasted(image: Image.Image, painted: Image.Image, region: geometry.Region) -> Image.Image:
    result = image.copy()
    result.paste(painted, region[:2])
    return result
