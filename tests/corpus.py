"""A folder of images good and bad, each with what must become of it.

Every good colour image shows a red square in its upper left quarter on blue ground, so the right heatmap is known.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class Fate:
    """What must become of a file: explained at a size, with heat on the red square; or a failure."""

    size: tuple[int, int] = (WIDTH, HEIGHT)
    red: bool = True
    stage: str = ""
    kinds: tuple[str, ...] = ()


GREY = Fate(red=False)
Corpus = dict[bytes, Fate]


def scene(width: int = WIDTH, height: int = HEIGHT, mirrored: bool = False) -> Image.Image:
    """Blue, with the upper left quarter's middle red (or the lower right one's)."""
    image = Image.new("RGB", (width, height), (0, 0, 200))
    left, top = (width // 2, height // 2) if mirrored else (0, 0)
    image.paste((230, 0, 0), (left + width // 8, top + height // 8, left + width * 3 // 8, top + height * 3 // 8))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file of `image`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels: NDArray[np.generic], colour: int, depth: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG written by hand, for kinds that Pillow does not write; size: what the header claims."""
    height, width = pixels.shape[:2]
    width, height = size or (width, height)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    """One piece of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def deep_tiff(pixels: NDArray[np.uint16]) -> bytes:
    """A little-endian, uncompressed RGB TIFF with 16 bits a channel."""
    height, width = pixels.shape[:2]
    data = pixels.astype("<u2").tobytes()
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 14),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    directory = struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 14 + len(data)) + struct.pack("<HHH", 16, 16, 16) + data + directory


def good_kinds() -> dict[str, tuple[bytes, Fate]]:
    """One of each kind of file that is an image."""
    image, other, red = scene(), scene(mirrored=True), Fate()
    wide = np.asarray(image, dtype=np.uint16) * 257
    palette = image.quantize(8)
    cut_out = image.convert("RGBA")
    cut_out.putalpha(Image.new("L", image.size, 255))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[0x010E] = "a description"
    torn_exif = (
        encoded(image, "JPEG", exif=exif).replace(b"Exif\0\0II", b"Exif\0\0QQ").replace(b"Exif\0\0MM", b"Exif\0\0QQ")
    )
    return {
        "plain.jpg": (encoded(image, "JPEG"), red),
        "progressive.jpg": (encoded(image, "JPEG", progressive=True), red),
        "plain.png": (encoded(image, "PNG"), red),
        "plain.webp": (encoded(image, "WEBP"), red),
        "plain.gif": (encoded(image, "GIF"), red),
        "plain.bmp": (encoded(image, "BMP"), red),
        "plain.tif": (encoded(image, "TIFF"), red),
        "lzw.tif": (encoded(image, "TIFF", compression="tiff_lzw"), red),
        "plain.ppm": (encoded(image, "PPM"), red),
        "png-inside.jpg": (encoded(image, "PNG"), red),
        "jpeg-inside.png": (encoded(image, "JPEG"), red),
        "cmyk.jpg": (encoded(image.convert("CMYK"), "JPEG", quality=95), red),
        "cmyk.tif": (encoded(image.convert("CMYK"), "TIFF"), red),
        "palette.png": (encoded(palette, "PNG"), red),
        "palette-alpha.png": (encoded(palette, "PNG", transparency=bytes([255] * 8)), red),
        "palette-hole.gif": (encoded(palette, "GIF", transparency=7), red),
        "rgba.png": (encoded(cut_out, "PNG"), red),
        "rgba.webp": (encoded(cut_out, "WEBP", lossless=True), red),
        "rgb16.png": (png(wide.astype(">u2"), 2, 16), red),
        "rgb16.tif": (deep_tiff(wide), red),
        "icc.jpg": (encoded(image, "JPEG", icc_profile=profile), red),
        "icc.png": (encoded(image, "PNG", icc_profile=profile), red),
        "torn-exif.jpg": (torn_exif, red),
        "animated.gif": (encoded(image, "GIF", save_all=True, append_images=[other]), red),
        "animated.webp": (encoded(image, "WEBP", save_all=True, append_images=[other]), red),
        "animated.png": (encoded(image, "PNG", save_all=True, append_images=[other]), red),
        "pages.tif": (encoded(image, "TIFF", save_all=True, append_images=[other]), red),
        "grey.jpg": (encoded(image.convert("L"), "JPEG"), GREY),
        "grey-alpha.png": (encoded(image.convert("LA"), "PNG"), GREY),
        "bits.png": (encoded(image.convert("1"), "PNG"), GREY),
        "bits.pbm": (encoded(image.convert("1"), "PPM"), GREY),
        "grey16.png": (encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"), GREY),
        "grey16.tif": (encoded(Image.fromarray(ramp.astype(np.uint16)), "TIFF"), GREY),
        "grey32.tif": (encoded(Image.fromarray(ramp.astype(np.int32) * 9), "TIFF"), GREY),
        "float.tif": (encoded(Image.fromarray(ramp.astype(np.float32) / 65535), "TIFF"), GREY),
        "float-nan.tif": (
            encoded(Image.fromarray(np.where(ramp > 60000, np.nan, ramp).astype(np.float32)), "TIFF"),
            GREY,
        ),
        "1x1.png": (encoded(Image.new("RGB", (1, 1), "blue"), "PNG"), Fate((1, 1), red=False)),
        "1x5000.png": (encoded(Image.new("RGB", (1, 5000), "blue"), "PNG"), Fate((1, 5000), red=False)),
        "30000x2.png": (encoded(Image.new("RGB", (30000, 2), "blue"), "PNG"), Fate((30000, 2), red=False)),
    }


def upright_kinds() -> dict[str, tuple[bytes, Fate]]:
    """The scene stored in each of the EXIF orientations."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    found = {}
    for orientation in range(1, 9):
        stored = scene().transpose(Image.Transpose(undo[orientation])) if orientation > 1 else scene()
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"exif{orientation}.jpg"] = (encoded(stored, "JPEG", exif=exif), Fate())
        found[f"exif{orientation}.tif"] = (encoded(stored, "TIFF", exif=exif), Fate())
    return found


def bad_kinds() -> dict[str, tuple[bytes, Fate]]:
    """Files that are no image, or not the whole of one."""
    unknown = Fate(stage="decode", kinds=("UnidentifiedImageError",))
    bomb = Fate(stage="decode", kinds=("DecompressionBombError",))
    broken = Fate(stage="decode", kinds=("OSError", "UnidentifiedImageError", "SyntaxError", "ValueError", "EOFError"))
    whole = encoded(scene(), "PNG")
    text_bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"0" * 80_000_000, 9))
    return {
        "empty.jpg": (b"", Fate(stage="read", kinds=("EmptyFile",))),
        "one-byte.png": (b"\x89", unknown),
        "zeros.jpg": (bytes(5000), unknown),
        "text.jpg": (b"no image\n" * 50, unknown),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", unknown),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', unknown),
        "postscript.jpg": (encoded(scene(), "EPS"), unknown),
        "document.jpg": (encoded(scene(), "PDF"), unknown),
        "bomb.png": (png(np.zeros((1, 1), np.uint8), 0, 8, size=(100_000, 100_000)), bomb),
        "bomb-of-bits.png": (png(np.zeros((1, 1), np.uint8), 0, 1, size=(20_000, 20_000)), bomb),
        "text-bomb.png": (whole[:33] + text_bomb + whole[33:], broken),
        "bad-sum.png": (whole[:45] + bytes([whole[45] ^ 255]) + whole[46:], broken),
        "no-data.png": (whole[:33] + whole[-12:], broken),
        **{
            f"cut-{kind}-{part:02}.{kind}": (_cut(kind, part), broken)
            for kind in ("jpg", "png", "webp", "tif")
            for part in (3, 20, 50, 80, 95)
        },
        **{
            f"cut-{kind}-{part:02}.{kind}": (_cut(kind, part), broken)
            for kind in ("gif", "bmp", "ppm")
            for part in (3, 50, 90)
        },
    }


def _cut(kind: str, percent: int) -> bytes:
    options = {"compression": "tiff_lzw"} if kind == "tif" else {}
    noisy = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    whole = encoded(noisy, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()), **options)
    return whole[: len(whole) * percent // 100]


def build(folder: Path) -> Corpus:
    """Fill `folder`; the fate of each file by its name, as bytes."""
    corpus: Corpus = {}
    for name, (data, fate) in {**good_kinds(), **upright_kinds(), **bad_kinds()}.items():
        _put(folder, os.fsencode(name), data, corpus, fate)
    for raw in hard_names():
        _put(folder, raw, encoded(scene(), "PNG"), corpus, Fate())
    corpus.update(_hard_places(folder))
    return corpus


def hard_names() -> list[bytes]:
    """Names that break what is written carelessly."""
    return [
        b"with space.png",
        b"new\nline.png",
        "smile \N{GRINNING FACE} é.png".encode(),
        b"\xff\xfe.png",
        b"-dash.png",
        b"--out.png",
        b"\x1b[31mred.png",
        b"[bold]markup[-].png",
        b"$(touch pwned);`id`.png",
        b"quote'\".png",
        b"back\\slash.png",
        b"%s%n{0}.png",
        b"*?.png",
        b"CON.png",
        b"Case.png",
        b"case.png",
        b"case.PNG",
        b"case.jpg",
        b"x" * 251 + b".png",
        b"x" * 250 + b"y.png",
        "ü".encode() * 125 + b"z.png",
    ]


def _put(folder: Path, name: bytes, data: bytes, corpus: Corpus, fate: Fate) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(data)
    corpus[name] = fate


def _hard_places(folder: Path) -> Corpus:
    """Entries that are no plain files."""
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "inside.png").write_bytes(encoded(scene(), "PNG"))
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "link.png").symlink_to(folder / "plain.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))
    return {
        b"folder.png/inside.png": Fate(),
        b"link.png": Fate(),
        b"dangling.png": Fate(stage="read", kinds=("FileNotFoundError",)),
        b"itself.png": Fate(stage="read", kinds=("OSError",)),
        b"pipe.png": Fate(stage="read", kinds=("NotAFile",)),
        b"socket.png": Fate(stage="read", kinds=("NotAFile",)),
    }
