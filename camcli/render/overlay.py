"""overlays/<id>.<method>.<class>.<format>: the image with its heat; without a class where the map has none."""

from __future__ import annotations

import io
import os
import re
from typing import BinaryIO

from PIL import Image

from camcli.config.schema import OverlayConfig
from camcli.images.decode import WHOLE, LoadedImage, shrunk
from camcli.images.geometry import Heat
from camcli.images.preprocess import as_rgb
from camcli.records import Box, Heatmap, ImageResult, Prediction
from camcli.render.styles import STYLES, layer_of

_PILLOW_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def overlay_name(result: ImageResult, heatmap: Heatmap, config: OverlayConfig) -> str:
    """Path below the run folder."""
    return f"overlays/{result.id}.{heatmap.method}{target_name(heatmap)}.{config.format}"


def target_name(heatmap: Heatmap) -> str:
    """The target as part of a file name, with a dot before it; empty where the map is of no class."""
    if heatmap.target is None:
        return ""
    against = f"-not-{_class_name(heatmap.against)}" if heatmap.against else ""
    return f".{_class_name(heatmap.target)}{against}"


def _class_name(target: Prediction) -> str:
    """The label is there for people, the index makes it unique."""
    label = re.sub(r"[^a-z0-9]+", "-", target.label.split(",")[0].lower()).strip("-")[:40]
    return f"{target.index}-{label}" if label else str(target.index)


def paint(
    loaded: LoadedImage, heat: Heat, config: OverlayConfig, signed: bool = False, last: bool = False
) -> Image.Image:
    """`heat` [h,w] on the image, perhaps made smaller, or on what the model saw, which is untouched without heat.

    last: the image's own pixels are not needed any more, so they are painted on; otherwise on a copy.
    """
    image, seen = canvas(loaded, config)
    if image is loaded.image and not last:
        image = image.copy()
    if not heat.any():
        return image
    return STYLES[config.style](image, layer_of(heat, signed, seen, config))


def canvas(loaded: LoadedImage, config: OverlayConfig) -> tuple[Image.Image, Box]:
    """What is painted on, and the box of it that the model saw."""
    if config.size == "model":
        image = as_rgb(loaded.input)
        return image, Box(0, 0, image.width, image.height)
    assert loaded.image is not None, "an overlay of this size needs the image's own pixels"
    image, seen = shrunk(loaded.image, longest(config)), loaded.seen
    across, down = image.width / loaded.size[0], image.height / loaded.size[1]
    return image, Box(seen.x0 * across, seen.y0 * down, seen.x1 * across, seen.y1 * down)


def longest(config: OverlayConfig) -> int:
    """How many of an image's own pixels overlays need along its longest side."""
    return config.size if isinstance(config.size, int) else WHOLE if config.size == "original" else 0


def encode(image: Image.Image, config: OverlayConfig) -> bytes:
    """The file of `image`."""
    options = {"compress_level": 1} if config.format == "png" else {"quality": config.quality}
    with _file_in_memory() as file:
        image.save(file, _PILLOW_NAMES[config.format], **options)
        file.seek(0)
        return file.read()


def _file_in_memory() -> BinaryIO:
    """Pillow lets other threads run while it encodes only if the file has a number."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("overlay"), "w+b")
    return io.BytesIO()
