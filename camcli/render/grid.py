"""overlays/<id>.grid.<format>: the image and all its maps on one sheet, a block of rows for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from PIL import Image, ImageDraw

from camcli.config.schema import OverlayConfig
from camcli.records import Heatmap, ImageResult
from camcli.render.caption import INK, PAPER, bar_of, named, on_strip, text_size
from camcli.render.overlay import target_name
from camcli.render.text import write_line

COLUMNS = 5
# In pixels: the sheet at its widest, the longest side of a tile, the space around it, and the line above a block.
WIDEST, TILE, MARGIN, HEADING = 1920, 480, 16, 44
HEADING_TEXT = 24


def grid_name(result: ImageResult, config: OverlayConfig) -> str | None:
    """Path below the run folder, None where there is no grid."""
    return f"overlays/{result.id}.grid.{config.format}" if config.grid and result.heatmaps else None


def blocks(heatmaps: Sequence[Heatmap]) -> list[list[int]]:
    """For each target, which of the heatmaps are of it, by method.

    A map of no class is in the block of each target; where there is no target, in one that names none.
    """
    order = list(dict.fromkeys(heatmap.method for heatmap in heatmaps))
    targets = dict.fromkeys(target_name(h) for h in heatmaps if h.target) or {"": None}
    return [
        sorted(
            (i for i, h in enumerate(heatmaps) if target_name(h) in ("", target)),
            key=lambda i: order.index(heatmaps[i].method),
        )
        for target in targets
    ]


def columns_of(heatmaps: Sequence[Heatmap]) -> int:
    """In how many columns the image and the maps of a target make rows of the same length, or nearly so."""
    tiles = 1 + max(map(len, blocks(heatmaps)))
    return ceil(tiles / ceil(tiles / COLUMNS))


def tile(image: Image.Image, heatmaps: Sequence[Heatmap]) -> Image.Image:
    """The image as the grid of these heatmaps shows it."""
    widest = (WIDEST - MARGIN) // columns_of(heatmaps) - MARGIN
    part = min(TILE / max(image.size), widest / image.width)
    size = max(1, round(image.width * part)), max(1, round(image.height * part))
    return image.resize(size, Image.Resampling.LANCZOS)


def grid(
    plain: Image.Image,
    heatmaps: Sequence[Heatmap],
    tiles: Sequence[Image.Image],
    config: OverlayConfig,
    tops: Mapping[str, float],
) -> Image.Image:
    """The `plain` image and one painted image for each heatmap, all made a `tile`.

    With captions, each block is below its class and each tile above its method and layer. tops: for each method, the
    raw value of full heat where that is not the map's own.
    """
    told = config.caption is not False
    shown = [
        _told(tile, heatmap, config, tops) if told else tile for heatmap, tile in zip(heatmaps, tiles, strict=True)
    ]
    first = on_strip(plain, "image", "", "", None, text_size(plain.width)) if told else plain
    parts = [_block(first, [shown[i] for i in members], columns_of(heatmaps)) for members in blocks(heatmaps)]
    if told:
        parts = [
            _below(_heading([heatmaps[i] for i in members]), part)
            for members, part in zip(blocks(heatmaps), parts, strict=True)
        ]
    return _stacked(parts)


def _told(tile: Image.Image, heatmap: Heatmap, config: OverlayConfig, tops: Mapping[str, float]) -> Image.Image:
    bar = bar_of(heatmap, config, tops.get(heatmap.method, 0.0))
    note = "" if heatmap.target else "of no class"
    return on_strip(tile, heatmap.method, note, heatmap.layer, bar, text_size(tile.width))


def _block(first: Image.Image, others: Sequence[Image.Image], columns: int) -> Image.Image:
    """All images, which are of one size, in rows."""
    across, down = first.width + MARGIN, first.height + MARGIN
    rows = ceil((1 + len(others)) / columns)
    sheet = Image.new("RGB", (MARGIN + columns * across, MARGIN + rows * down), PAPER)
    for i, image in enumerate((first, *others)):
        sheet.paste(image, (MARGIN + i % columns * across, MARGIN + i // columns * down))
    return sheet


def _below(words: str, block: Image.Image) -> Image.Image:
    """A block with a line above it."""
    sheet = Image.new("RGB", (block.width, block.height + HEADING), PAPER)
    sheet.paste(block, (0, HEADING))
    write_line(ImageDraw.Draw(sheet), (MARGIN, MARGIN), words, HEADING_TEXT, INK, block.width - 2 * MARGIN)
    return sheet


def _heading(heatmaps: Sequence[Heatmap]) -> str:
    """Class and probability of what `heatmaps` have in common."""
    return "   ".join(named(next((h for h in heatmaps if h.target), heatmaps[0])))


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet
