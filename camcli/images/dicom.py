"""DICOM files: the first frame as grey on 0..255 without loss, or as RGB; nothing else in them is looked at.

Needs pydicom. What the library has to say is left unsaid, because it may quote what a file tells of a patient.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camcli.errors import ItemError

PREAMBLE = 128
_MAGIC = b"DICM"
_WORK_BYTES = 24


def is_dicom(file: BinaryIO) -> bool:
    """Whether the file says that it is one; it is left at its beginning."""
    file.seek(PREAMBLE)
    magic = file.read(len(_MAGIC))
    file.seek(0)
    return magic == _MAGIC


def header(file: BinaryIO, name: str) -> Any:
    """What stands before the pixels; raises ItemError."""
    with _unsaid(name) as pydicom:
        return pydicom.dcmread(file, stop_before_pixels=True)


def cost(dataset: Any) -> int:
    """Bytes at the peak of reading the first frame, by what the header says."""
    own = max(1, int(dataset.get("BitsAllocated", 16)) // 8) * int(dataset.get("SamplesPerPixel", 1))
    return (2 * own + _WORK_BYTES) * int(dataset.get("Rows", 0)) * int(dataset.get("Columns", 0))


def grey_or_rgb(
    file: BinaryIO, name: str
) -> tuple[NDArray[np.float32], tuple[float, float] | None, bool] | Image.Image:
    """(values in the units of the file, the window that it wants to be seen in, whether low is white), or RGB.

    values: float32 [h,w] after the modality's slope and intercept. Raises ItemError.
    """
    file.seek(0)
    with _unsaid(name) as pydicom:
        dataset = pydicom.dcmread(file)
        pixels = pydicom.pixels.pixel_array(dataset, index=0)
        kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        if kind == "PALETTE COLOR":
            pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
            pixels = pixels if pixels.dtype == np.uint8 else pixels >> 8
        if pixels.ndim == 3:
            return Image.fromarray(np.ascontiguousarray(pixels[..., :3], dtype=np.uint8))
        values = np.asarray(pydicom.pixels.apply_modality_lut(pixels, dataset), dtype=np.float32)
        return values, _window(dataset), kind == "MONOCHROME1"


def _window(dataset: Any) -> tuple[float, float] | None:
    """Lowest and highest value of the first window (part 3 of the standard, C.11.2.1.2.1), where there is one."""
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width <= 1:
        return None
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) else value)


@contextmanager
def _unsaid(name: str) -> Iterator[Any]:
    """pydicom, of whose warnings and errors no word comes out; raises ItemError with the kind of an error alone."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise ItemError(
            "decode",
            "UnidentifiedImageError",
            f"{name}: a DICOM file, which needs pydicom: python -m pip install pydicom",
        ) from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield pydicom
        except (ItemError, MemoryError):
            raise
        except Exception as error:  # decoders raise many kinds, and quote the file
            kind = type(error).__name__
            raise ItemError("decode", kind, f"{name}: a DICOM file whose pixels cannot be decoded ({kind})") from None
