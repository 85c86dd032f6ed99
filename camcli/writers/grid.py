"""overlays/<id>.grid.<class>.<format>: picture | method | method …, under the class and its probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from PIL import Image, ImageDraw, ImageFont

from camcli.config import OverlayConfig
from camcli.images import Picture
from camcli.records import Heatmap, ImageResult, Prediction
from camcli.writers.overlay import canvas, target_name

TILE = 320
MARGIN = 12
LINE = 28
COLUMNS = 5
PAPER, INK, FAINT = "white", "#1b1f24", "#6a737d"


def grid_names(result: ImageResult, config: OverlayConfig) -> Mapping[str, list[int]]:
    """Path below the run folder -> the heatmaps of one target, by their place in the result; empty unless asked for."""
    grids: dict[str, list[int]] = {}
    for i, heatmap in enumerate(result.heatmaps if config.grid else ()):
        grids.setdefault(f"overlays/{result.id}.grid.{target_name(heatmap)}.{config.format}", []).append(i)
    return grids


def grid(
    picture: Picture, tiles: Sequence[tuple[str, Image.Image]], heatmap: Heatmap, config: OverlayConfig
) -> Image.Image:
    """The picture and the named `tiles`, five a row, under the class of `heatmap`."""
    shown = [("picture", canvas(picture, config)[0]), *tiles]
    width, height = _tile_size(shown[0][1])
    columns = min(len(shown), COLUMNS)
    rows = ceil(len(shown) / columns)
    size = MARGIN + columns * (width + MARGIN), MARGIN + LINE + rows * (height + LINE + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    write_line(draw, (MARGIN, MARGIN), caption(heatmap), 20, INK, size[0] - 2 * MARGIN)
    for i, (name, image) in enumerate(shown):
        x = MARGIN + i % columns * (width + MARGIN)
        y = MARGIN + LINE + MARGIN // 2 + i // columns * (height + LINE + MARGIN)
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (x, y))
        write_line(draw, (x, y + height + 4), name, 16, FAINT, width)
    return sheet


def caption(heatmap: Heatmap) -> str:
    """Class and probability, and those of the class that it is contrasted with."""
    against = f"  rather than  {_named(heatmap.against)}" if heatmap.against else ""
    return _named(heatmap.target) + against


def _named(target: Prediction) -> str:
    return f"{target.label.split(',')[0]}  {target.probability:.1%}"


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """The picture's proportions, its longer side TILE pixels."""
    part = TILE / max(image.size)
    return max(1, round(image.width * part)), max(1, round(image.height * part))


def write_line(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, colour: str, width: int
) -> None:
    """A line that is cut off at `width` pixels."""
    font = ImageFont.load_default(size)
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text[:-2] + "…"
    draw.text(place, text, colour, font)
