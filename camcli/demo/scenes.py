"""Draws images of shapes, with the exact mask of every shape: what the embedded model learns from.

The same (seed, index) gives the same image at every call. Lengths are fractions of the image's short side
unless they say pixels, so a scene looks alike at every size. Shapes lie inside the central square, which a centre
crop keeps; clutter covers the whole image.

    python -m camcli.demo.scenes --out sample_images/shapes     draws the sample images again
"""

from __future__ import annotations

import argparse
import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from camcli.models.demo import LABELS, SIZE

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

OVERSAMPLE = 4
RADIUS = (0.14, 0.25)
GAP = 0.015
CONTRAST = 0.42


@dataclass(frozen=True, slots=True)
class Scene:
    """image: uint8 [H,W,3]. shapes: (index into LABELS, bool [H,W]) for each shape, no label twice, no overlap."""

    image: NDArray[np.uint8]
    shapes: tuple[tuple[int, Mask], ...]


def scene(seed: int, index: int, width: int = SIZE, height: int = SIZE, labels: Sequence[int] | None = None) -> Scene:
    """The `index`-th image of `seed`, `width` x `height` pixels, with one to three shapes or those of `labels`."""
    rng = np.random.default_rng([seed, index])
    side = min(width, height)
    if labels is None:
        labels = rng.permutation(len(LABELS))[: rng.integers(1, 4)].tolist()
    ground = _ground_colours(rng)
    image = _add_clutter(rng, _ground(rng, ground, width, height), side)
    masks = []
    for (x, y, radius), label in zip(_places(rng, len(labels)), labels, strict=True):
        centre = (width / 2 + (x - 0.5) * side, height / 2 + (y - 0.5) * side)
        masks.append(_add_shape(rng, image, LABELS[label], centre, radius * side, ground))
    image += rng.normal(0, rng.uniform(0, 0.025), image.shape)
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return Scene(pixels, tuple(zip(labels, masks, strict=True)))


# ---- outlines: [n,2] points (x right, y down), any scale


def _turned(points: Floats, degrees: float) -> Floats:
    """`points` [...,2] rotated around the origin."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned: Floats = points @ np.array([(cos, sin), (-sin, cos)])
    return turned


def _arc(start: float, stop: float, radius: float = 1.0, x: float = 0.0) -> Floats:
    """Points on a circle around (x, 0) from angle `start` to `stop`, in degrees."""
    angles = np.deg2rad(np.linspace(start, stop, 48))
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _polygon(corners: int, inner: float = 0.0) -> Floats:
    """A regular polygon; with `inner`, a star whose notches lie on that radius."""
    count = 2 * corners if inner else corners
    angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
    radii = np.where(np.arange(count) % 2, inner or 1.0, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross(arm: float = 0.34) -> Floats:
    quarter = np.array([(1, -arm), (1, arm), (arm, arm)])
    return np.concatenate([_turned(quarter, 90 * k) for k in range(4)])


def _heart() -> Floats:
    """The heart curve of https://mathworld.wolfram.com/HeartCurve.html (equation 6)."""
    t = np.linspace(0, 2 * np.pi, 96)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


def _crescent(bite: float = 0.42, tip: float = 50.0) -> Floats:
    """A disc without the disc around (bite, 0) that cuts its rim at `tip` degrees."""
    corner = np.array([np.cos(np.deg2rad(tip)) - bite, np.sin(np.deg2rad(tip))])
    angle = float(np.rad2deg(np.arctan2(corner[1], corner[0])))
    inner = _arc(360 - angle, angle, float(np.hypot(*corner)), bite)
    return np.concatenate([_arc(tip, 360 - tip), inner])


def _arrow() -> Floats:
    half = np.array([(-1.0, 0.24), (0.05, 0.24), (0.05, 0.72), (1.0, 0.0)])
    return np.concatenate([half, half[-2::-1] * (1, -1)])


def _bolt() -> Floats:
    return np.array([(0.2, -1), (-0.6, 0.12), (-0.08, 0.12), (-0.32, 1), (0.62, -0.28), (0.08, -0.28), (0.52, -1)])


OUTLINES: dict[str, Floats] = {
    "circle": _arc(0, 360),
    "square": _polygon(4),
    "triangle": _polygon(3),
    "star": _polygon(5, inner=0.45),
    "cross": _cross(),
    "ring": np.concatenate([_arc(0, 360), _arc(360, 0, 0.5)]),
    "heart": _heart(),
    "crescent": _crescent(),
    "hexagon": _polygon(6),
    "arrow": _arrow(),
    "semicircle": _arc(0, 180),
    "bolt": _bolt(),
}


# ---- one shape


def _fitted(points: Floats) -> Floats:
    """`points` [n,2] centred and scaled to touch the unit circle."""
    centred = points - (points.min(axis=0) + points.max(axis=0)) / 2
    fitted: Floats = centred / np.hypot(*centred.T).max()
    return fitted


def _places(rng: Rng, count: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) of `count` circles that do not meet, inside the unit square."""
    while True:
        radius = rng.uniform(*RADIUS, count)
        x, y = rng.uniform(radius + GAP, 1 - radius - GAP, (2, count))
        apart = np.hypot(x[:, None] - x, y[:, None] - y) > radius[:, None] + radius + GAP
        if apart[~np.eye(count, dtype=bool)].all():
            return [(float(a), float(b), float(c)) for a, b, c in zip(x, y, radius, strict=True)]


def _add_shape(rng: Rng, image: Floats, name: str, centre: tuple[float, float], radius: float, ground: Floats) -> Mask:
    """Draws one shape and its shadow into `image` [H,W,3]; centre and radius in pixels. The mask is what it covers."""
    outline = _turned(_fitted(OUTLINES[name]), rng.uniform(0, 360)) * radius + centre
    cover = _coverage(outline, image.shape[1], image.shape[0])
    shadow = _shadow(cover, radius * 0.12) * rng.uniform(0, 0.5)
    image *= 1 - shadow[..., None]
    first, second = _fill_colours(rng, ground)
    weight = _pattern(rng, rng.choice(FILLS), (image.shape[1], image.shape[0]), radius)
    image += cover[..., None] * (first + (second - first) * weight[..., None] - image)
    return cover >= 0.5


def _coverage(outline: Floats, width: int, height: int) -> Floats:
    """The share of each pixel [H,W] that the polygon covers."""
    canvas = Image.new("L", (width * OVERSAMPLE, height * OVERSAMPLE))
    ImageDraw.Draw(canvas).polygon([(x, y) for x, y in outline * OVERSAMPLE - 0.5], fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLE), dtype=np.float64) / 255


def _shadow(cover: Floats, reach: float) -> Floats:
    """`cover` [H,W] blurred and moved down right by `reach` pixels."""
    blurred = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(reach))
    step = max(1, round(reach))
    return np.pad(np.asarray(blurred, dtype=np.float64) / 255, ((step, 0), (step, 0)))[:-step, :-step]


# ---- patterns and colours


FILLS = ("flat", "gradient", "stripes", "checks", "clouds", "grain")
GROUNDS = ("gradient", "stripes", "clouds", "clouds", "grain")


def _pattern(rng: Rng, kind: str, size: tuple[int, int], unit: float) -> Floats:
    """Weights [H,W] in 0..1; `size` is (W, H) pixels, `unit` pixels are the scale of what repeats."""
    y, x = np.mgrid[: size[1], : size[0]] / unit
    along, across = np.moveaxis(_turned(np.stack([x, y], axis=-1), rng.uniform(0, 360)), -1, 0)
    waves = np.sin(np.stack([along, across]) * rng.uniform(6, 14) + rng.uniform(0, 6))
    patterns: dict[str, Callable[[], Floats]] = {
        "flat": lambda: np.full_like(x, rng.random()),
        "gradient": lambda: np.sin(along * rng.uniform(0.3, 1.2) + rng.uniform(0, 6)) / 2 + 0.5,
        "stripes": lambda: (waves[0] * 3 + 0.5).clip(0, 1),
        "checks": lambda: (waves[0] * waves[1] * 4 + 0.5).clip(0, 1),
        "clouds": lambda: _noise(rng, size, unit),
        "grain": lambda: _noise(rng, size, unit / 8),
    }
    return patterns[kind]()


def _noise(rng: Rng, size: tuple[int, int], cell: float) -> Floats:
    """Smooth noise [H,W] in 0..1 that varies over `cell` pixels."""
    grid = rng.random((ceil(size[1] / cell) + 1, ceil(size[0] / cell) + 1), dtype=np.float32)
    smooth = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64).clip(0, 1)


def _colour(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    """A random RGB colour [3] in 0..1."""
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)))


def _ground_colours(rng: Rng) -> Floats:
    """Two related muted colours [2,3]."""
    first = _colour(rng, (0.0, 0.45), (0.1, 1.0))
    second = _colour(rng, (0.0, 0.45), (0.1, 1.0))
    return np.stack([first, first + (second - first) * rng.uniform(0.1, 0.5)])


def _fill_colours(rng: Rng, ground: Floats) -> Floats:
    """Two related colours [2,3], both far from the two of the ground [2,3]."""
    while True:
        first = _colour(rng, (0.0, 1.0), (0.05, 1.0)) if rng.random() < 0.2 else _colour(rng, (0.6, 1.0), (0.5, 1.0))
        pair = np.stack([first, (first * rng.uniform(0.6, 1.6)).clip(0, 1)])
        if np.linalg.norm(pair[:, None] - ground, axis=-1).min() > CONTRAST:
            return pair


def _ground(rng: Rng, colours: Floats, width: int, height: int) -> Floats:
    """The background [H,W,3] in 0..1."""
    weight = _pattern(rng, rng.choice(GROUNDS), (width, height), min(width, height) / rng.uniform(2, 6))
    ground: Floats = colours[0] + (colours[1] - colours[0]) * weight[..., None]
    return ground


# ---- clutter: small things that are none of the shapes


def _add_clutter(rng: Rng, image: Floats, side: int) -> Floats:
    """`image` [H,W,3] with strokes, arcs, specks and crumbs on it, in numbers that follow its area."""
    height, width, _ = image.shape
    layer = Image.new("RGBA", (width * 2, height * 2))
    draw = ImageDraw.Draw(layer)
    for _ in range(rng.poisson(rng.uniform(2, 22) * width * height / side**2)):
        spot = rng.uniform(0, 2, 2) * (width, height)
        colour = (*(_colour(rng, (0.0, 1.0), (0.0, 1.0)) * 255).astype(int).tolist(), int(rng.integers(60, 256)))
        CLUTTER[rng.integers(len(CLUTTER))](rng, draw, spot, side * 2, colour)
    over = np.asarray(layer.reduce(2), dtype=np.float64) / 255
    cluttered: Floats = image + (over[..., :3] - image) * over[..., 3:]
    return cluttered


Colour = tuple[int, int, int, int]


def _stroke(rng: Rng, draw: ImageDraw.ImageDraw, spot: Floats, side: int, colour: Colour) -> None:
    """A straight line."""
    end = spot + rng.normal(0, 0.15, 2) * side
    draw.line([*spot, *end], fill=colour, width=max(1, round(side * rng.uniform(0.004, 0.016))))


def _curve(rng: Rng, draw: ImageDraw.ImageDraw, spot: Floats, side: int, colour: Colour) -> None:
    """A thin open arc."""
    reach = rng.uniform(0.04, 0.25) * side
    start = rng.uniform(0, 360)
    box = [*(spot - reach), *(spot + reach)]
    draw.arc(box, start, start + rng.uniform(30, 120), fill=colour, width=max(1, round(side * 0.008)))


def _crumb(rng: Rng, draw: ImageDraw.ImageDraw, spot: Floats, side: int, colour: Colour) -> None:
    """A small irregular blob."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 9)))
    radii = rng.uniform(0.008, 0.04, angles.shape) * side
    corners = spot + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    draw.polygon([(x, y) for x, y in corners], fill=colour)


def _specks(rng: Rng, draw: ImageDraw.ImageDraw, spot: Floats, side: int, colour: Colour) -> None:
    """A handful of dots."""
    size = rng.uniform(0.004, 0.012) * side
    for x, y in spot + rng.normal(0, 0.05, (rng.integers(3, 9), 2)) * side:
        draw.ellipse([x - size, y - size, x + size, y + size], fill=colour)


CLUTTER = (_stroke, _curve, _crumb, _specks)


# ---- the sample images


SAMPLE_SEED = 34
SAMPLES: tuple[tuple[int, int, str, tuple[str, ...]], ...] = (
    (320, 240, "jpg", ("circle", "star")),
    (180, 240, "png", ("heart", "cross")),
    (512, 288, "jpg", ("ring", "triangle")),
    (200, 200, "png", ("arrow", "hexagon")),
    (640, 360, "jpg", ("crescent", "square")),
    (300, 300, "jpg", ("bolt", "semicircle")),
    (360, 480, "jpg", ("star", "heart", "ring")),
    (160, 128, "png", ("square", "circle")),
    (400, 300, "jpg", ("triangle", "bolt")),
    (256, 384, "jpg", ("hexagon", "crescent", "arrow")),
    (480, 270, "jpg", ("cross", "semicircle")),
    (192, 256, "png", ("star",)),
)


def write_samples(folder: Path) -> list[Path]:
    """Draws SAMPLES into `folder`, named after their number and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (width, height, suffix, names) in enumerate(SAMPLES, start=1):
        drawn = scene(SAMPLE_SEED, index, width, height, [LABELS.index(name) for name in names])
        path = folder / f"{index:02}-{'-'.join(names)}.{suffix}"
        Image.fromarray(drawn.image).save(path, quality=90, optimize=True)
        paths.append(path)
    return paths


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    for path in write_samples(parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()
