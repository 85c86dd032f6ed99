"""DICOM files: the first frame as grey on 0..255 without loss, or as RGB; nothing else in them is looked at.

Needs pydicom. What the library has to say is left unsaid, because it may quote what a file tells of a patient.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camcli.errors import ItemError

PREAMBLE = 128
_MAGIC = b"DICM"
_WORK_BYTES = 24


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the pixels. size: (width, height). cost: bytes at the peak of reading the first frame."""

    dataset: Any
    size: tuple[int, int]
    cost: int


def is_dicom(file: BinaryIO) -> bool:
    """Whether the file says that it is one; it is left at its beginning."""
    file.seek(PREAMBLE)
    magic = file.read(len(_MAGIC))
    file.seek(0)
    return magic == _MAGIC


def header(file: BinaryIO, name: str) -> Header:
    """Of the file; raises ItemError."""
    with _unsaid(name) as pydicom:
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        width, height = int(dataset.Columns), int(dataset.Rows)
        if width < 1 or height < 1:
            raise ValueError("no pixels")
        own = max(1, int(dataset.get("BitsAllocated", 16)) // 8) * max(1, int(dataset.get("SamplesPerPixel", 1)))
        all_frames = own * int(dataset.get("NumberOfFrames") or 1) if _is_deflated(dataset) else 0
        return Header(dataset, (width, height), (2 * own + all_frames + _WORK_BYTES) * width * height)


def grey_or_rgb(
    file: BinaryIO, dataset: Any, name: str
) -> tuple[NDArray[np.float32], tuple[float, float] | None, bool] | Image.Image:
    """(values in the units of the file, the window that it wants to be seen in, whether low is white), or RGB.

    values: float32 [h,w] after the modality's slope and intercept. dataset: that of the `header`. Raises ItemError.
    """
    file.seek(0)
    with _unsaid(name) as pydicom:
        source = pydicom.dcmread(file) if _is_deflated(dataset) else file
        pixels = pydicom.pixels.pixel_array(source, index=0)
        kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        if kind == "PALETTE COLOR":
            pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
            return _rgb(pixels, 8 * pixels.dtype.itemsize)
        if pixels.ndim == 3:
            return _rgb(pixels, int(dataset.BitsStored))
        values = np.asarray(pydicom.pixels.apply_modality_lut(pixels, dataset), dtype=np.float32)
        return values, _window(dataset), kind == "MONOCHROME1"


def _is_deflated(dataset: Any) -> bool:
    """Whether the frames can be had only all at once."""
    return bool(dataset.file_meta.TransferSyntaxUID.is_deflated)


def _rgb(pixels: NDArray[Any], bits: int) -> Image.Image:
    """Colours [h,w,C] of which `bits` are used."""
    colours = pixels[..., :3]
    if colours.dtype != np.uint8:
        colours = np.rint(colours.astype(np.float32) * np.float32(255 / (2**bits - 1))).clip(0, 255)
    return Image.fromarray(np.ascontiguousarray(colours, dtype=np.uint8))


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


class _Silence:
    """For as long as anybody asks for it: filters of warnings and levels of loggers belong to all threads together."""

    lock = threading.Lock()
    depth = 0
    undo = ExitStack()


@contextmanager
def muted() -> Iterator[None]:
    """Inside, neither warnings nor log lines of pydicom come out, on whatever thread."""
    with _Silence.lock:
        _Silence.depth += 1
        if _Silence.depth == 1:
            _mute(_Silence.undo)
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.depth -= 1
            if not _Silence.depth:
                _Silence.undo.close()


def _mute(undo: ExitStack) -> None:
    undo.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    logger = logging.getLogger("pydicom")
    undo.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.CRITICAL + 1)


@contextmanager
def _unsaid(name: str) -> Iterator[Any]:
    """pydicom, of whose warnings and errors no word comes out; raises ItemError with the kind of an error alone.

    Whatever is taken from a dataset is taken in here: pydicom reads an element when it is asked for.
    """
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise ItemError(
            "decode",
            "UnidentifiedImageError",
            f"{name}: a DICOM file, which needs pydicom: python -m pip install pydicom",
        ) from None
    with muted(), np.errstate(all="ignore"):
        try:
            yield pydicom
        except (ItemError, MemoryError):
            raise
        except Exception as error:  # decoders raise many kinds, and quote the file
            kind = type(error).__name__
            raise ItemError("decode", kind, f"{name}: a DICOM file whose pixels cannot be decoded ({kind})") from None
