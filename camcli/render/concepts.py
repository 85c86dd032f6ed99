"""overlays/<id>.dff.<format>: each place in the colour of its strongest concept, with a legend below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from camcli.config.schema import OverlayConfig
from camcli.images import geometry
from camcli.images.decode import LoadedImage
from camcli.records import Box
from camcli.render.caption import INK, PAPER
from camcli.render.overlay import canvas
from camcli.render.styles import OPACITY, on_grey
from camcli.render.text import write_line

SWATCH, MARGIN, LINE = 16, 12, 28
LEAST_WIDTH = 320


def colours(count: int) -> list[str]:
    """`count` colours as #rrggbb, far apart around the colour wheel."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if count <= 10:
        return [to_hex(colormaps["tab10"](i)) for i in range(count)]
    return [to_hex(colormaps["hsv"](i / count)) for i in range(count)]


def concept_overlay(
    loaded: LoadedImage, heat: NDArray[np.float32], legend: Sequence[tuple[str, str]], config: OverlayConfig
) -> Image.Image:
    """`heat` [k,h,w] in 0..1 on the image; opacity is that of the strongest concept. legend: colour and label.

    Without heat the image is left as it is.
    """
    image, seen = canvas(loaded, config)
    alpha = OPACITY["blend"] if config.alpha is None else config.alpha
    painted = _painted(image, heat, seen, [colour for colour, _ in legend], alpha) if heat.any() else image
    width = max(painted.width, LEAST_WIDTH)
    sheet = Image.new("RGB", (width, painted.height + MARGIN + len(legend) * LINE), PAPER)
    sheet.paste(painted)
    draw = ImageDraw.Draw(sheet)
    for i, (colour, label) in enumerate(legend):
        y = painted.height + MARGIN // 2 + i * LINE
        draw.rectangle((MARGIN, y + 4, MARGIN + SWATCH, y + 4 + SWATCH), colour)
        write_line(draw, (2 * MARGIN + SWATCH, y), label, 16, INK, width - 3 * MARGIN - SWATCH)
    return sheet


def _painted(
    image: Image.Image, heat: NDArray[np.float32], seen: Box, palette: Sequence[str], alpha: float
) -> Image.Image:
    placed = [geometry.place(one, seen, image.width, image.height) for one in heat]
    layers = np.stack([np.asarray(grey) for _, grey in placed])
    colour = np.asarray([ImageColor.getrgb(name) for name in palette], dtype=np.uint8)[layers.argmax(axis=0)]
    opacity = np.rint(layers.max(axis=0) * on_grey(alpha)).astype(np.uint8)
    region = placed[0][0]
    below = image.crop(region).convert("L").convert("RGB")
    result = image.copy()
    result.paste(Image.composite(Image.fromarray(colour), below, Image.fromarray(opacity)), region[:2])
    return result
