"""An image -> the model's input, and the box of the image that the input covers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camcli.config.schema import Crop, InputConfig, Interpolation, Range
from camcli.records import Box

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Pillow first shrinks by whole factors to this multiple of the size: four times as fast, at most 3 grey levels apart.
REDUCING_GAP = 2.5

Pixels = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes the model's input.

    size: (height, width) of the input in pixels.
    resize: (height, width) that the image is made to cover (crop `center`), become (`squash`) or fit (`pad`)
        before the middle is cut out.
    mean, std: per channel on a 0..1 scale.
    channels: 3 (RGB) or 1 (grey). range: which values of grey images are black and white; None: all of 8 and 16 bits,
        the window of a DICOM file, and minimum and maximum of anything else.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    crop: Crop
    channels: Literal[1, 3] = 3
    range: Range | None = None

    def override(self, config: InputConfig) -> Preprocess:
        """This with the fields that the user set; a new size keeps its margin, a new crop mode has none."""
        given = {key: value for key, value in config.model_dump().items() if value is not None}
        if config.crop and config.crop != self.crop:
            given["resize"] = config.size or self.size
        elif config.size:
            given["resize"] = tuple(
                round(new * old_resize / old)
                for new, old, old_resize in zip(config.size, self.size, self.resize, strict=True)
            )
        found = replace(self, **given)
        mean, std = (_spread(values, found.channels) for values in (found.mean, found.std))
        return replace(found, mean=mean, std=std)


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number for each channel: their mean for one, the same for three."""
    if len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels


def model_input(image: Image.Image, preprocess: Preprocess) -> tuple[Pixels, Box]:
    """The model's input [H,W,C] on 0..255, and the box of the image that it covers: uint8, of mode F float32.

    The image is resized to `full`, and the input is the window of the input's size in its middle; a window
    larger than the resized image is filled with the mean colour.
    """
    h, w = preprocess.size
    (left, top), (full_w, full_h), (per_x, per_y) = _window(image.size, preprocess)
    inner = (max(left, 0), max(top, 0), min(left + w, full_w), min(top + h, full_h))
    region = (inner[0] * per_x, inner[1] * per_y, inner[2] * per_x, inner[3] * per_y)
    size = (inner[2] - inner[0], inner[3] - inner[1])
    if preprocess.channels == 1 and image.mode == "RGB":
        image = image.convert("L")
    pixels = np.array(image.resize(size, _FILTERS[preprocess.interpolation], region, REDUCING_GAP))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels.clip(0, 255)[..., None], preprocess.channels, axis=2)
    if size != (w, h):
        pixels = _framed(pixels, inner[0] - left, inner[1] - top, preprocess)
    return pixels, seen_of(image.size, preprocess)


def seen_of(size: tuple[int, int], preprocess: Preprocess) -> Box:
    """The box of an image of `size` that the model's input covers."""
    (h, w), ((left, top), _, (per_x, per_y)) = preprocess.size, _window(size, preprocess)
    return Box(left * per_x, top * per_y, (left + w) * per_x, (top + h) * per_y)


def _window(
    size: tuple[int, int], preprocess: Preprocess
) -> tuple[tuple[int, int], tuple[int, int], tuple[float, float]]:
    """Where the input begins in the resized image, (x, y); that image's `full_size`; pixels of `size` in one of its."""
    (h, w), (full_w, full_h) = preprocess.size, full_size(*size, preprocess)
    corner = round((full_w - w) / 2), round((full_h - h) / 2)
    return corner, (full_w, full_h), (size[0] / full_w, size[1] / full_h)


def full_size(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) of the whole image after the resize, rounded down as torchvision's Resize does."""
    resize_h, resize_w = preprocess.resize
    if preprocess.crop == "squash":
        return resize_w, resize_h
    wide = resize_h * width >= resize_w * height
    if wide == (preprocess.crop == "center"):
        return max(1, int(resize_h * width / height)), resize_h
    return resize_w, max(1, int(resize_w * height / width))


def _framed(pixels: Pixels, x: int, y: int, preprocess: Preprocess) -> Pixels:
    """`pixels` at (x, y) on a canvas of the input's size in the mean colour."""
    canvas = np.empty((*preprocess.size, pixels.shape[2]), dtype=pixels.dtype)
    canvas[:] = [round(255 * m) for m in preprocess.mean]
    canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return canvas


def as_rgb(pixels: Pixels) -> Image.Image:
    """A model's input [H,W,C] as an image."""
    grey = np.rint(pixels).astype(np.uint8, copy=False)
    return Image.fromarray(np.repeat(grey, 3 // grey.shape[2], axis=2))
