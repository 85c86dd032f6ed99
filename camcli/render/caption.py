"""A strip below an image: class and probability, method and layer, and what the colours stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from camcli.config.schema import OverlayConfig
from camcli.records import Box, Heatmap, Prediction
from camcli.render.styles import LEVELS, Layer, blend, layer_of, spotlight
from camcli.render.text import length, write_line

PAPER, INK, FAINT = "white", "#1b1f24", "#57606a"
# Text is this part of the image's width, within limits in pixels; lines are so much higher than the text.
TEXT_PART, TEXT_SIZES, LINE = 1 / 32, (12, 30), 1.5
# A strip is at least so many sizes of its text wide, and with so many it has the bar beside the text.
NARROW, WIDE = 18, 30
# In a colour bar, before it is made as wide as its place.
SHADES = 256
# Of a bar, where the style lets the image through.
GROUND = "#d8dee4"


class HasRange(Protocol):
    """A heatmap, or the record of one."""

    @property
    def raw_min(self) -> float:
        """Smallest value before scaling."""

    @property
    def raw_max(self) -> float:
        """Largest value before scaling."""

    @property
    def signed(self) -> bool:
        """Whether negative values speak against the target."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A colour bar [1, n, RGB] between the raw values that its ends stand for; None where there is no evidence."""

    colours: Image.Image | None = None
    low: str = ""
    high: str = ""


def captioned(image: Image.Image, heatmap: Heatmap, config: OverlayConfig, top: float = 0.0) -> Image.Image:
    """`image` on a caption of `heatmap`; top: the raw value of full heat where that is not the map's own."""
    name, share = named(heatmap)
    detail = f"{heatmap.method} · {heatmap.layer}"
    return on_strip(image, name, share, detail, bar_of(heatmap, config, top), text_size(image.width))


def text_size(width: int) -> int:
    """Of the text below an image of that width, in pixels."""
    return min(max(round(width * TEXT_PART), TEXT_SIZES[0]), TEXT_SIZES[1])


def on_strip(image: Image.Image, title: str, note: str, detail: str, bar: Bar | None, size: int) -> Image.Image:
    """`image` on a strip with a title and a note, a detail below them, and a colour bar; too long texts are cut."""
    width, pad, line = max(image.width, NARROW * size), size // 2, round(LINE * size)
    wide = width >= WIDE * size
    height = line * (2 if wide else 3) + 2 * pad
    sheet = Image.new("RGB", (width, image.height + height), PAPER)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    y, inner = image.height + pad, width - 2 * pad
    note_width = min(length(note, size), inner / 2)
    title_width = min(length(title, size), inner - note_width - size)
    write_line(draw, (pad, y), title, size, INK, title_width + 1)
    write_line(draw, (pad + title_width + size, y), note, size, FAINT, note_width + 1)
    bar_width = inner // 2 - size if wide else inner
    write_line(draw, (pad, y + line), detail, size, FAINT, inner - bar_width - size if wide else inner)
    if bar:
        _draw_bar(sheet, draw, bar, (pad + inner - bar_width, y + (1 if wide else 2) * line), bar_width, size)
    return sheet


def _draw_bar(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, bar: Bar, place: tuple[int, int], width: int, size: int
) -> None:
    x, y = place
    if bar.colours is None:
        write_line(draw, (x, y), "no evidence", size, FAINT, width)
        return
    gap, low, high = size // 2, length(bar.low, size), length(bar.high, size)
    left, right = round(x + low + gap), round(x + width - high - gap)
    write_line(draw, (x, y), bar.low, size, FAINT, low + 1)
    write_line(draw, (x + width - high, y), bar.high, size, FAINT, high + 1)
    if right - left > gap:
        sheet.paste(bar.colours.resize((right - left, size)), (left, y + size // 8))


def named(heatmap: Heatmap) -> tuple[str, str]:
    """The class of a heatmap, and its probability; and those of the class that it is contrasted with."""
    if heatmap.target is None:
        return "the same for every class", ""
    against = heatmap.against
    rather = f"  rather than  {_label(against)}  {against.probability:.1%}" if against else ""
    return _label(heatmap.target), f"{heatmap.target.probability:.1%}{rather}"


def _label(target: Prediction) -> str:
    """The first of several names, of which ImageNet's labels are made; an index where there is no name."""
    return target.label.split(",")[0].strip() or str(target.index)


def bar_of(heatmap: Heatmap, config: OverlayConfig, top: float = 0.0) -> Bar:
    """What the colours of `heatmap` stand for; top: the raw value of full heat where that is not the map's own."""
    if heatmap.empty:
        return Bar()
    high = top or top_of(heatmap)
    low = -high if heatmap.signed else 0.0 if top else max(heatmap.raw_min, 0.0)
    return Bar(_colours(config, heatmap.signed), _short(low), _short(high))


def top_of(heatmap: HasRange) -> float:
    """The raw value that heat 1 stands for; a signed map is scaled by its largest magnitude."""
    return max(heatmap.raw_max, -heatmap.raw_min) if heatmap.signed else heatmap.raw_max


def _colours(config: OverlayConfig, signed: bool) -> Image.Image:
    """[1, 256] from the lowest to the highest value, as the style paints them on GROUND; colours are opaque."""
    values = np.linspace(-1 if signed else 0, 1, SHADES, dtype=np.float32)[None]
    layer = layer_of(values, signed, Box(0, 0, SHADES, 1), config)
    if config.style == "contours":
        return _marks(layer)
    ground = Image.new("RGB", (SHADES, 1), GROUND)
    return spotlight(ground, layer) if config.style == "spotlight" else blend(ground, replace(layer, alpha=1.0))


def _marks(layer: Layer) -> Image.Image:
    """Only where contours run, the higher one thicker."""
    row = Image.new("RGB", (SHADES, 1), GROUND)
    for sign in layer.signs:
        for level, width in zip(LEVELS, (4, 8), strict=True):
            place = round((SHADES - 1) * ((1 + sign * level) / 2 if layer.signed else level))
            row.paste(layer.line_colour(sign, level), (place - width // 2, 0, place + width // 2, 1))
    return row


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}" if abs(value) < 1e6 else f"{value:.1e}"
