"""overlays/<id>.grid.<class>.<format>: image | method | method …, under the class and its probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from PIL import Image, ImageDraw, ImageFont

from camcli.config.schema import OverlayConfig
from camcli.images.decode import LoadedImage
from camcli.records import Heatmap, ImageResult, Prediction
from camcli.render.overlay import canvas, target_name

TILE = 320
MARGIN = 12
LINE = 28
COLUMNS = 5
PAPER, INK, FAINT = "white", "#1b1f24", "#6a737d"


def grid_names(result: ImageResult, config: OverlayConfig) -> Mapping[str, list[int]]:
    """Path below the run folder -> the heatmaps of one target, by their place in the result; empty unless asked for.

    A map of no class is in the grid of each target; where there is no target, in one that names none.
    """
    maps = result.heatmaps if config.grid else ()
    order = list(dict.fromkeys(heatmap.method for heatmap in maps))
    targets = dict.fromkeys(target_name(h) for h in maps if h.target) or dict.fromkeys(target_name(h) for h in maps)
    return {
        f"overlays/{result.id}.grid{target}.{config.format}": sorted(
            (i for i, h in enumerate(maps) if target_name(h) in ("", target)), key=lambda i: order.index(maps[i].method)
        )
        for target in targets
    }


def grid(loaded: LoadedImage, tiles: Sequence[tuple[Heatmap, Image.Image]], config: OverlayConfig) -> Image.Image:
    """The image and the painted `tiles` of one target, five a row, each over its method and its range."""
    plain = canvas(loaded, config)[0]
    shown = [("image", "", plain), *((_method(heatmap), evidence(heatmap), image) for heatmap, image in tiles)]
    width, height = _tile_size(plain)
    columns = min(len(shown), COLUMNS)
    rows = ceil(len(shown) / columns)
    across, down = width + MARGIN, height + 2 * LINE + MARGIN
    size = MARGIN + columns * across, MARGIN + LINE + rows * down
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    write_line(draw, (MARGIN, MARGIN), caption([heatmap for heatmap, _ in tiles]), 20, INK, size[0] - 2 * MARGIN)
    for i, (name, note, image) in enumerate(shown):
        x, y = MARGIN + i % columns * across, MARGIN + LINE + MARGIN // 2 + i // columns * down
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (x, y))
        write_line(draw, (x, y + height + 4), name, 16, INK, width)
        write_line(draw, (x, y + height + 4 + LINE), note, 16, FAINT, width)
    return sheet


def caption(heatmaps: Sequence[Heatmap]) -> str:
    """Class and probability of what `heatmaps` have in common, and those of the class that it is contrasted with."""
    for heatmap in heatmaps:
        if heatmap.target:
            against = f"  rather than  {_named(heatmap.against)}" if heatmap.against else ""
            return _named(heatmap.target) + against
    return "the same for every class"


def evidence(heatmap: Heatmap) -> str:
    """What the colours hide: the map's raw range, or that there is nothing to show."""
    return "no evidence" if heatmap.empty else f"raw {_short(heatmap.raw_min)} to {_short(heatmap.raw_max)}"


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}" if abs(value) < 1e6 else f"{value:.1e}"


def _method(heatmap: Heatmap) -> str:
    return heatmap.method if heatmap.target else f"{heatmap.method}, of no class"


def _named(target: Prediction) -> str:
    return f"{target.label.split(',')[0]}  {target.probability:.1%}"


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """The image's proportions, its longer side TILE pixels."""
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
