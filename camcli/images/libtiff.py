"""What decoders print about damaged files by themselves, above all Pillow's TIFF library; a run has records for it."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from camcli.images.dicom import muted

_MAPS = Path("/proc/self/maps")


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Inside, neither Pillow nor libtiff nor pydicom says on standard error what is wrong with a file."""
    with warnings.catch_warnings(), muted():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        silence()
        yield


def silence() -> None:
    """Take libtiff's handlers away, where the system tells which library that is."""
    Image.init()
    if not _MAPS.exists():
        return
    files = {line.split(maxsplit=5)[-1] for line in _MAPS.read_text().splitlines() if "libtiff" in line}
    for file in files:
        library = ctypes.CDLL(file)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
