"""A file -> the image, and the model's input cut from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from camcli.config.schema import Range
from camcli.errors import CamcliError, ItemError
from camcli.images import dicom
from camcli.images.dicom import is_dicom
from camcli.images.formats import FORMATS
from camcli.images.memory import Budget
from camcli.images.preprocess import Pixels, Preprocess, model_input
from camcli.images.read import Source, refuse_exhausted
from camcli.records import Box, Stage

# As `preprocess.REDUCING_GAP`, for the pixels that are painted on, which nothing but eyes will judge.
SHRINKING_GAP = 1.5
# Keeps an image as it is, however large.
WHOLE = 1 << 31
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What `input.range: percentile` leaves black and white.
PERCENTILES = (1.0, 99.0)
_GREY_DEPTHS = ("I;16", "I;16L", "I;16B", "I", "F")
# Bytes of a pixel in Pillow's memory: RGB is stored with a fourth, unused one.
RGB_BYTES = 4
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}
_LARGEST_MODE_BYTES = 4
# For each pixel, on top of that: of arithmetic with deep grey, in a heap that is fragmented because it keeps what is
# freed; of laying on white; of what decoders hold themselves.
_GREY_BYTES, _CLEAR_BYTES, _PROGRESSIVE_BYTES = 24, 12, 6
_DECODER_BYTES = {"WEBP": 12, "AVIF": 12, "JPEG2000": 12, "TIFF": 4, "GIF": 4, "ICO": 4}
_NO_LIMIT = Budget(1 << 62)

logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image as the model sees it: input, uint8 or float32 [H,W,C] on 0..255, covers the box `seen` of it.

    image: RGB, EXIF orientation applied, perhaps made smaller; None where its own pixels are not wanted or were left
        behind.
    size: (width, height) in pixels before that. cost: bytes that decoding takes at its peak, `image` included.
    """

    image: Image.Image | None
    size: tuple[int, int]
    input: Pixels
    seen: Box
    cost: int = 0

    @property
    def bytes(self) -> int:
        """How much memory its own pixels take."""
        return RGB_BYTES * self.image.width * self.image.height if self.image else 0


def load_image(path: Path, preprocess: Preprocess, keep: int = WHOLE, budget: Budget = _NO_LIMIT) -> LoadedImage:
    """The image as `loading` gives it."""
    with loading(path, preprocess, keep, budget) as image:
        return image


@contextmanager
def loading(
    source: Source | Path, preprocess: Preprocess, keep: int, budget: Budget, more: int = 0
) -> Iterator[LoadedImage]:
    """Decode a file and cut the model's input from it; raises ItemError with stage read or decode.

    keep: the image's own pixels are kept, and made smaller where the longest side has more of them; 0: none are kept.
    The input is always cut from the image in full, so it does not depend on what is kept.
    budget: counts it, and `more` bytes, as in work for as long as `with` lasts.
    """
    source = Source(source) if isinstance(source, Path) else source
    with ExitStack() as stack:
        image, size, cost = _decoded(source, keep, budget, stack, more, scale=preprocess.range)
        try:
            array, seen = model_input(image, preprocess)
            kept = _visible(shrunk(image, keep)) if keep else None
        except (MemoryError, ValueError) as error:
            raise ItemError("decode", type(error).__name__, f"{source.path}: cannot be resized: {error}") from None
        del image
        yield LoadedImage(kept, size, array, seen, cost)


@contextmanager
def pixels(
    source: Source, keep: int, budget: Budget, more: int = 0, scale: Range | None = None
) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """An image's own pixels alone, as `loading` keeps them, and its size; raises ItemError as that does.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that is enough. scale: as `Preprocess.range`.
    """
    with ExitStack() as stack:
        image, size, _ = _decoded(source, keep, budget, stack, more, draft=True, scale=scale)
        yield _visible(shrunk(image, keep)), size


def shrunk(image: Image.Image, longest: int) -> Image.Image:
    """The image, or a smaller one whose longest side has `longest` pixels."""
    if max(image.size) <= longest:
        return image
    return image.resize(shrunk_size(image.size, longest), Image.Resampling.BICUBIC, reducing_gap=SHRINKING_GAP)


def shrunk_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """What an image of `size` becomes so that its longest side has at most `longest` pixels."""
    part = min(1.0, longest / max(size))
    return max(1, round(size[0] * part)), max(1, round(size[1] * part))


def prepare_image(source: Path | Image.Image, preprocess: Preprocess) -> LoadedImage:
    """An image with its own pixels: of a file, which raises ItemError as `load_image` does, or one that is open."""
    if isinstance(source, Path):
        return load_image(source, preprocess)
    image = _to_rgb_or_grey(_upright(source), preprocess.range)
    return LoadedImage(_visible(image), image.size, *model_input(image, preprocess))


def decode(path: Path) -> Image.Image:
    """The image at `path` as RGB, upright; raises ItemError with stage read or decode.

    The first image of several; the numbers in the file, whatever colour profile goes with them, because that is
    what classifiers were trained on.
    """
    with ExitStack() as stack:
        return _visible(_decoded(Source(path), WHOLE, _NO_LIMIT, stack)[0])


def _decoded(
    source: Source,
    keep: int,
    budget: Budget,
    stack: ExitStack,
    more: int = 0,
    draft: bool = False,
    scale: Range | None = None,
) -> tuple[Image.Image, tuple[int, int], int]:
    """The image, RGB or grey (`_to_rgb_or_grey`), its size in the file, upright, and the bytes that it took.

    These, and those of making it smaller, are counted in `budget` until `stack` ends. draft: it may be a smaller one,
    with at least `keep` pixels along its longest side. scale: as `Preprocess.range`.
    """
    path = source.path
    try:
        with source.opened(budget) as file:
            if is_dicom(file):
                return _medical(file, str(path), keep, budget, stack, more, scale)
            image = stack.enter_context(_open(file))
            factor = _draft(image, keep) if draft else 1
            cost = _cost(image) + _shrinking_cost(image.size, keep)
            stack.enter_context(budget.room(cost + more))
            found = _to_rgb_or_grey(_upright(image), scale)
            return found, (found.width * factor, found.height * factor), cost
    except (ItemError, CamcliError):
        raise
    except UnidentifiedImageError as error:
        reason = f"not an image that camcli reads; it reads {', '.join(_readable())}"
        raise ItemError("decode", type(error).__name__, f"{path}: {reason}") from None
    except OSError as error:
        refuse_exhausted(path, error)
        stage: Stage = "decode" if error.errno is None else "read"
        raise ItemError(stage, type(error).__name__, f"{path}: {error.strerror or error}") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise ItemError("decode", type(error).__name__, f"{path}: {error}") from None


def _cost(image: Image.Image) -> int:
    """Bytes at the peak of decoding, turning upright and converting to RGB, by what the file says of itself."""
    own = _MODE_BYTES.get(image.mode, _LARGEST_MODE_BYTES)
    may_turn = image.format == "PNG" or _orientation(image) in _TURNS  # a PNG may say so after its pixels
    each = own * (1 + may_turn) + (0 if image.mode == "RGB" else RGB_BYTES)
    each += _GREY_BYTES * (image.mode in _GREY_DEPTHS) + _CLEAR_BYTES * image.has_transparency_data
    each += _DECODER_BYTES.get(image.format or "", 0) + _PROGRESSIVE_BYTES * ("progressive" in image.info)
    return each * image.width * image.height


def _shrinking_cost(size: tuple[int, int], keep: int) -> int:
    """Bytes that the smaller image takes, and the one on the way to it."""
    if not 0 < keep < max(size):
        return 0
    width, height = shrunk_size(size, keep)
    return round((1 + (2 * SHRINKING_GAP) ** 2) * RGB_BYTES * width * height)


def _draft(image: Image.Image, least: int) -> int:
    """Have a JPEG decoded smaller, by a factor that divides its size; returns the factor."""
    width, height = image.size
    for factor in (8, 4, 2):
        small = width // factor, height // factor
        divides = small[0] * factor == width and small[1] * factor == height
        if divides and max(small) >= least:
            image.draft(None, small)
            break
    return width // image.width


def _open(file: BinaryIO) -> Image.Image:
    """Only formats that Pillow decodes itself: others start programs on the file, such as Ghostscript."""
    return Image.open(file, formats=_readable())


def _readable() -> list[str]:
    """The formats that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's parsers raise many kinds, and the pixels are whole all the same
        return None


def _upright(image: Image.Image) -> Image.Image:
    """EXIF orientation applied; where the EXIF block is damaged, the image as it is stored."""
    image.load()
    orientation = _orientation(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _medical(
    file: BinaryIO, name: str, keep: int, budget: Budget, stack: ExitStack, more: int, scale: Range | None
) -> tuple[Image.Image, tuple[int, int], int]:
    """As `_decoded`, of a DICOM file."""
    header = dicom.header(file, name)
    cost = header.cost + _shrinking_cost(header.size, keep)
    stack.enter_context(budget.room(cost + more))
    found = dicom.grey_or_rgb(file, header.dataset, name)
    if isinstance(found, tuple):
        values, window, inverted = found
        grey = _scaled(values, *_limits(values, "", scale or window))
        found = Image.fromarray(255 - grey if inverted else grey)
    return found, found.size, cost


def _to_rgb_or_grey(image: Image.Image, scale: Range | None = None) -> Image.Image:
    """RGB, transparency laid on white; of deep or rescaled grey mode F, so that no depth is lost. All on 0..255."""
    if image.mode in _GREY_DEPTHS or (scale is not None and image.mode == "L"):
        values = np.asarray(image, dtype=np.float32)
        return Image.fromarray(_scaled(values, *_limits(values, image.mode, scale)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _visible(image: Image.Image) -> Image.Image:
    """RGB for eyes."""
    if image.mode == "RGB":
        return image
    return Image.fromarray(np.rint(np.asarray(image)).astype(np.uint8)).convert("RGB")


def _limits(values: NDArray[np.float32], mode: str, scale: Range | None) -> tuple[float, float]:
    """The values that are black and white; mode: Pillow's, empty where there is none."""
    if isinstance(scale, tuple):
        return scale
    if scale == "percentile":
        low, high = np.percentile(values[np.isfinite(values)], PERCENTILES) if np.isfinite(values).any() else (0, 0)
        return float(low), float(high)
    if mode == "L":
        return 0.0, 255.0
    if mode.startswith("I;16") or (scale == "dtype" and mode == "I"):
        return 0.0, 65535.0
    if scale == "dtype" and mode == "F":
        return 0.0, 1.0
    finite = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    return float(finite.min()), float(finite.max())


def _scaled(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """float32 on 0..255, from `low` to `high`; what is no number is as 0 was."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    span = high / 2 - low / 2  # halves, because the whole of a float's range is no float
    scaled = (values / 2 - np.float32(low / 2)) / np.float32(max(span, 1e-12)) * np.float32(255)
    grey: NDArray[np.float32] = scaled.clip(0, 255).astype(np.float32, copy=False)
    return grey
