"""A result to the files that people look at: overlays and grids. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from camcli.config.schema import OverlayConfig
from camcli.images.decode import RGB_BYTES, LoadedImage, shrunk_size
from camcli.images.geometry import Heat
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Heatmap, ImageResult
from camcli.render.caption import captioned, top_of
from camcli.render.concepts import concept_overlay
from camcli.render.grid import grid, grid_name, tile
from camcli.render.overlay import canvas, encode, longest, overlay_name, paint
from camcli.results.concepts import Concept
from camcli.results.report import ImageRecord
from camcli.results.storage import fitted

# At most, for each pixel: of the file, and of what encoding it takes.
_ENCODED_BYTES = {"jpg": 2, "png": 4, "webp": 2}
_CONCEPTS_BYTES = 64  # and two more for each concept
_ENCODER_BYTES = {"jpg": 2, "png": 4, "webp": 16}


@dataclass(frozen=True, slots=True)
class Drawn:
    """overlays: a path below the run folder for each heatmap; grids: those of sheets; files: all of them, encoded."""

    overlays: list[str]
    grids: list[str]
    files: dict[str, bytes]


Legend = Sequence[tuple[str, str]]
"""Colour and label of each concept; empty where maps are of classes."""


def legend_of(concepts: Iterable[Concept]) -> Legend:
    """What an overlay of all concepts says below."""
    return [(concept.colour, concept.label) for concept in concepts]


def tops_of(images: Iterable[ImageResult | ImageRecord]) -> dict[str, float]:
    """Of each method, the largest raw value in all its maps that show something."""
    tops: dict[str, float] = {}
    for image in images:
        for heatmap in (heatmap for heatmap in image.heatmaps if not heatmap.empty):
            tops[heatmap.method] = max(tops.get(heatmap.method, 0.0), top_of(heatmap))
    return tops


def draw(
    result: ImageResult,
    loaded: LoadedImage,
    look: OverlayConfig,
    tops: Mapping[str, float],
    stopwatch: Stopwatch,
    legend: Legend = (),
) -> Drawn:
    """The overlays of a result, or the one of all its concepts.

    tops: for each method, the raw value of full heat where that is not the map's own.
    """
    if legend:
        return _concepts(result, loaded, look, stopwatch, legend)
    overlays = [fitted(overlay_name(result, heatmap, look)) for heatmap in result.heatmaps]
    sheet = grid_name(result, look)
    drawn = Drawn(overlays, [fitted(sheet)] if sheet else [], {})
    tiles: list[Image.Image] = []
    for name, heatmap in zip(overlays, result.heatmaps, strict=True):
        last = heatmap is result.heatmaps[-1] and not drawn.grids
        with stopwatch.timing("render"):
            image = paint(loaded, _shown(heatmap, tops), look, heatmap.signed, last)
            if drawn.grids:
                tiles.append(tile(image, result.heatmaps))
            if look.caption:
                image = captioned(image, heatmap, look, tops.get(heatmap.method, 0.0))
        with stopwatch.timing("encode"):
            drawn.files[name] = encode(image, look)
    for name in drawn.grids:
        plain = tile(canvas(loaded, look)[0], result.heatmaps)
        drawn.files[name] = encode(grid(plain, result.heatmaps, tiles, look, tops), look)
    return drawn


def _concepts(
    result: ImageResult, loaded: LoadedImage, look: OverlayConfig, stopwatch: Stopwatch, legend: Legend
) -> Drawn:
    heat = np.stack([heatmap.heat for heatmap in result.heatmaps])
    name = fitted(overlay_name(result, result.heatmaps[0], look))
    with stopwatch.timing("render"):
        image = concept_overlay(loaded, heat, legend, look)
    with stopwatch.timing("encode"):
        return Drawn([name] * len(result.heatmaps), [], {name: encode(image, look)})


def drawing_cost(heatmaps: int, size: tuple[int, int], look: OverlayConfig, legend: Legend = ()) -> int:
    """Bytes that drawing takes beside the image that is painted on: copies of it, and the encoded files."""
    width, height = shrunk_size(size, longest(look))
    if legend:
        return (_CONCEPTS_BYTES + 2 * heatmaps) * width * height if longest(look) else 0
    copies = min(heatmaps - (not look.grid), 1) + bool(look.caption)
    each = RGB_BYTES * max(copies, 0) + _ENCODED_BYTES[look.format] * heatmaps + _ENCODER_BYTES[look.format]
    return each * width * height if longest(look) else 0


def _shown(heatmap: Heatmap, tops: Mapping[str, float]) -> Heat:
    """The heat that the colours stand for: scaled by the image's own range, or by that of the run."""
    top = tops.get(heatmap.method, 0.0)
    if heatmap.empty or top <= 0:
        return heatmap.heat
    if heatmap.signed:
        return heatmap.heat * (top_of(heatmap) / top)
    low = max(heatmap.raw_min, 0.0)
    return (heatmap.heat * (heatmap.raw_max - low) + low) / top
