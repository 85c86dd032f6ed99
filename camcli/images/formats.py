"""Which image formats camcli reads, as Pillow calls them, and what their files are called.

Pillow decodes these itself. Of the others it knows, some start programs on a file (EPS) and some are fonts, films or
data of instruments.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "ICO": (".ico",),
}
MEDICAL = (".dcm", ".dicom") if find_spec("pydicom") else ()
"""Of files that pydicom reads, where it is installed."""
EXTENSIONS = (*(extension for group in FORMATS.values() for extension in group), *MEDICAL)
