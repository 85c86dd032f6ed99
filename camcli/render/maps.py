"""maps/<id>.npz or maps/<id>.<method>.<class index>.png: the heat itself, at the layer's resolution."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from camcli.records import Heatmap, ImageResult

MapFiles = dict[str, bytes]


def npz(result: ImageResult) -> MapFiles:
    """One archive with a float32 [h,w] array, 0..1 or -1..1, for each heatmap, by `_key`."""
    buffer = io.BytesIO()
    arrays = {_key(h): h.heat for h in result.heatmaps}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return {f"maps/{result.id}.npz": buffer.getvalue()}


def png16(result: ImageResult) -> MapFiles:
    """One 16-bit grey image [h,w] for each heatmap, 0..1 (signed maps: -1..1) as 0..65535."""
    files: MapFiles = {}
    for heatmap in result.heatmaps:
        buffer = io.BytesIO()
        unit = (heatmap.heat + 1) / 2 if heatmap.signed else heatmap.heat
        Image.fromarray(np.rint(unit * 65535).astype(np.uint16)).save(buffer, "PNG")
        files[f"maps/{result.id}.{_key(heatmap)}.png"] = buffer.getvalue()
    return files


def _key(heatmap: Heatmap) -> str:
    """`<method>.<index>` of a class or a concept, or `<method>` for a map of neither."""
    index = heatmap.target.index if heatmap.target else heatmap.concept
    return heatmap.method if index is None else f"{heatmap.method}.{index}"


def none(result: ImageResult) -> MapFiles:
    """No files."""
    return {}


WRITERS: Mapping[str, Callable[[ImageResult], MapFiles]] = {"none": none, "npz": npz, "png16": png16}
