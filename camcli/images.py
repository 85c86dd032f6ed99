"""A file -> the picture, the model's input cut from it, and the box of the picture that the input covers."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from camcli.config import Crop, InputConfig, Interpolation
from camcli.errors import ItemError
from camcli.records import Box

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_GREY_DEPTHS = ("I;16", "I;16L", "I;16B", "I", "F")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a picture becomes the model's input.

    size: (height, width) of the input in pixels.
    resize: (height, width) that the picture is made to cover (crop `center`), become (`squash`) or fit (`pad`)
        before the middle is cut out.
    mean, std: per RGB channel on a 0..1 scale.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    crop: Crop

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
        return replace(self, **given)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: RGB, EXIF orientation applied; input: uint8 [H,W,3]; seen: what the input covers."""

    image: Image.Image
    input: NDArray[np.uint8]
    seen: Box


def load_picture(path: Path, preprocess: Preprocess) -> Picture:
    """Decode `path` and cut the model's input from it; raises ItemError with stage read or decode."""
    image = decode(path)
    try:
        array, seen = model_input(image, preprocess)
    except (MemoryError, ValueError) as error:
        raise ItemError("decode", type(error).__name__, f"{path}: cannot be resized: {error}") from None
    return Picture(image, array, seen)


def decode(path: Path) -> Image.Image:
    """The picture at `path` as RGB, upright; raises ItemError with stage read or decode."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ItemError("read", "NotAFile", f"{path}: not a regular file")
        if os.path.getsize(path) == 0:
            raise ItemError("read", "EmptyFile", f"{path}: the file is empty")
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except ItemError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise ItemError("read", type(error).__name__, f"{path}: {error.strerror}") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise ItemError("decode", type(error).__name__, f"{path}: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB on 0..255: deep grey is scaled from its own range, transparency laid on white."""
    if image.mode in _GREY_DEPTHS:
        image = _scaled_grey(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """16-bit grey divided by its full range; other deep grey stretched from its minimum to its maximum."""
    values = np.asarray(image, dtype=np.float32)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def model_input(image: Image.Image, preprocess: Preprocess) -> tuple[NDArray[np.uint8], Box]:
    """The model's input, uint8 [H,W,3], and the box of `image` that it covers.

    The picture is resized to `full`, and the input is the window of the input's size in its middle; a window
    larger than the resized picture is filled with the mean colour.
    """
    h, w = preprocess.size
    full_w, full_h = full_size(image.width, image.height, preprocess)
    left, top = round((full_w - w) / 2), round((full_h - h) / 2)
    per_x, per_y = image.width / full_w, image.height / full_h
    inner = (max(left, 0), max(top, 0), min(left + w, full_w), min(top + h, full_h))
    region = (inner[0] * per_x, inner[1] * per_y, inner[2] * per_x, inner[3] * per_y)
    size = (inner[2] - inner[0], inner[3] - inner[1])
    pixels = np.array(image.resize(size, _FILTERS[preprocess.interpolation], box=region))
    if size != (w, h):
        pixels = _framed(pixels, inner[0] - left, inner[1] - top, preprocess)
    return pixels, Box(left * per_x, top * per_y, (left + w) * per_x, (top + h) * per_y)


def full_size(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) of the whole picture after the resize, rounded down as torchvision's Resize does."""
    resize_h, resize_w = preprocess.resize
    if preprocess.crop == "squash":
        return resize_w, resize_h
    wide = resize_h * width >= resize_w * height
    if wide == (preprocess.crop == "center"):
        return max(1, int(resize_h * width / height)), resize_h
    return resize_w, max(1, int(resize_w * height / width))


def _framed(pixels: NDArray[np.uint8], x: int, y: int, preprocess: Preprocess) -> NDArray[np.uint8]:
    """`pixels` at (x, y) on a canvas of the input's size in the mean colour."""
    canvas = np.empty((*preprocess.size, 3), dtype=np.uint8)
    canvas[:] = [round(255 * m) for m in preprocess.mean]
    canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return canvas
