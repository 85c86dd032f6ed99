"""overlays/<id>.<method>.<class>.<format>: the picture with its heat."""

from __future__ import annotations

import io
import re

from PIL import Image

from camcli import render
from camcli.config import OverlayConfig
from camcli.geometry import Heat
from camcli.images import Picture
from camcli.records import Box, Heatmap, ImageResult

_PILLOW_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def overlay_name(result: ImageResult, heatmap: Heatmap, config: OverlayConfig) -> str:
    """Path below the run folder; the label is there for people, the index makes it unique."""
    label = re.sub(r"[^a-z0-9]+", "-", heatmap.target.label.split(",")[0].lower()).strip("-")[:40]
    target = f"{heatmap.target.index}-{label}" if label else str(heatmap.target.index)
    return f"overlays/{result.id}.{heatmap.method}.{target}.{config.format}"


def overlay_bytes(picture: Picture, heat: Heat, config: OverlayConfig) -> bytes:
    """The encoded overlay of `heat` [h,w], on the original picture or on the crop that the model saw."""
    image, seen = picture.image, picture.seen
    if config.size == "model":
        image = Image.fromarray(picture.input)
        seen = Box(0, 0, image.width, image.height)
    painted = render.overlay(image, heat, seen, config.colormap, config.alpha)
    return _encode(painted, config)


def _encode(image: Image.Image, config: OverlayConfig) -> bytes:
    buffer = io.BytesIO()
    options = {"compress_level": 1} if config.format == "png" else {"quality": config.quality}
    image.save(buffer, _PILLOW_NAMES[config.format], **options)
    return buffer.getvalue()
