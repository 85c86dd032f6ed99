"""A heatmap as colour on the picture."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from camcli import geometry
from camcli.records import Box


@cache
def palette(colormap: str) -> bytes:
    """256 RGB triples of a matplotlib colour map."""
    from matplotlib import colormaps

    colours = np.asarray(colormaps[colormap](np.linspace(0, 1, 256)), dtype=np.float64)[:, :3]
    return np.rint(colours * 255).astype(np.uint8).tobytes()


def overlay(image: Image.Image, heat: geometry.Heat, seen: Box, colormap: str, alpha: float) -> Image.Image:
    """A copy of the RGB `image` with `heat` [h,w] blended over exactly the box that the model saw."""
    region, grey = geometry.place(heat, seen, image.width, image.height)
    grey.putpalette(palette(colormap))
    painted = Image.blend(image.crop(region), grey.convert("RGB"), alpha)
    result = image.copy()
    result.paste(painted, region[:2])
    return result
