"""Heat lies where the evidence is: a marker is painted at known pixels and the overlay is searched for it."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camcli.config.schema import Crop, InputConfig, OverlayConfig
from camcli.engine.engine import Engine, Explanation
from camcli.engine.layers import Layout, Tap, TargetLayer
from camcli.engine.methods import METHODS
from camcli.engine.targets import Target
from camcli.images.decode import LoadedImage, load_image
from camcli.images.geometry import hot_box, peak, place, strips
from camcli.images.preprocess import Preprocess
from camcli.records import Box, Heatmap
from camcli.render.overlay import encode, paint
from tests.conftest import RedDetector, loaded

LAYER = TargetLayer((Tap("rectify", Layout("nchw", (16, 16))),))

# (width, height) and the marker's (left, top, right, bottom); a marker inside the middle square is seen by all modes.
IMAGES = {
    "landscape": ((320, 200), (170, 40, 210, 80)),
    "portrait": ((150, 400), (20, 180, 60, 230)),
    "tiny": ((9, 7), (5, 1, 7, 3)),
    "panorama": ((2000, 120), (900, 5, 1150, 115)),
    "square": ((64, 64), (8, 40, 20, 56)),
}


def explained(path: Path, crop: Crop) -> tuple[LoadedImage, Heatmap]:
    """The image and the red class's heatmap."""
    preprocess = Preprocess((64, 64), (64, 64), (0, 0, 0), (1, 1, 1), "bilinear", "center")
    model = loaded(RedDetector(), preprocess.override(InputConfig(crop=crop)))
    image = load_image(path, model.preprocess)
    engine = Engine(model, [LAYER], [METHODS.get("gradcam")])
    [answer] = engine.explain(torch.from_numpy(image.input)[None], lambda probabilities: [Target(0)])
    assert isinstance(answer, Explanation)
    return image, answer.heatmaps[0]


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("name", IMAGES)
def test_the_overlay_is_hot_on_the_marker_and_untouched_outside_the_box(tmp_path: Path, name: str, crop: Crop) -> None:
    size, marker = IMAGES[name]
    original = Image.new("RGB", size, (0, 60, 60))
    original.paste((255, 0, 0), marker)
    original.save(tmp_path / "x.png")
    image, heatmap = explained(tmp_path / "x.png", crop)

    config = OverlayConfig(style="blend", format="png", colormap="gray", alpha=1.0, size="original")
    (tmp_path / "o.png").write_bytes(encode(paint(image, heatmap.heat, config), config))
    painted = np.asarray(Image.open(tmp_path / "o.png")).astype(int)
    assert painted.shape == (size[1], size[0], 3)
    left, top, right, bottom = marker
    seen = image.seen.clip(*size)
    box = (slice(round(seen.y0), round(seen.y1)), slice(round(seen.x0), round(seen.x1)))
    heat = painted[box][..., 0]
    assert heat.max() > 60
    hot_y, hot_x = (np.mean(axis) for axis in np.nonzero(heat >= heat.max() * 0.9))
    cell_x, cell_y = image.seen.width / 16, image.seen.height / 16
    assert left - cell_x <= hot_x + seen.x0 <= right + cell_x
    assert top - cell_y <= hot_y + seen.y0 <= bottom + cell_y

    untouched = np.ones(painted.shape[:2], dtype=bool)
    untouched[box] = False
    assert (painted[untouched] == np.asarray(original)[untouched]).all()


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("name", IMAGES)
def test_peak_and_box_are_in_pixels_of_the_original(tmp_path: Path, name: str, crop: Crop) -> None:
    size, (left, top, right, bottom) = IMAGES[name]
    original = Image.new("RGB", size, (0, 60, 60))
    original.paste((255, 0, 0), (left, top, right, bottom))
    original.save(tmp_path / "x.png")
    image, heatmap = explained(tmp_path / "x.png", crop)
    cell_x, cell_y = image.seen.width / 16, image.seen.height / 16
    x, y = peak(heatmap.heat, image.seen, *size) or (-1, -1)
    assert left - cell_x <= x <= right + cell_x
    assert top - cell_y <= y <= bottom + cell_y
    box = hot_box(heatmap.heat, image.seen, *size)
    assert box is not None
    centre_x, centre_y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    assert left - cell_x <= centre_x <= right + cell_x
    assert top - cell_y <= centre_y <= bottom + cell_y


def test_placing_equals_bilinear_interpolation_of_cell_centres() -> None:
    rng = np.random.default_rng(0)
    heat = rng.random((5, 7), dtype=np.float32)
    seen, width, height = Box(13.3, -4.2, 83.3, 45.8), 90, 40
    (left, top, right, bottom), grey = place(heat, seen, width, height)
    assert (left, top, right, bottom) == (13, 0, 83, 40)
    us = ((np.arange(left, right) + 0.5 - seen.x0) / seen.width * 7 - 0.5).clip(0, 6)
    vs = ((np.arange(top, bottom) + 0.5 - seen.y0) / seen.height * 5 - 0.5).clip(0, 4)
    rows = np.stack([np.interp(us, np.arange(7), row) for row in heat])
    expected = np.stack([np.interp(vs, np.arange(5), column) for column in rows.T]).T
    assert np.abs(np.asarray(grey) / 255 - expected).max() < 0.01
    assert abs(float((np.asarray(grey) / 255 - expected).mean())) < 0.1 / 255


def test_a_map_without_heat_has_no_peak_and_no_box() -> None:
    nothing = np.zeros((4, 4), dtype=np.float32)
    assert peak(nothing, Box(0, 0, 8, 8), 8, 8) is None
    assert hot_box(nothing, Box(0, 0, 8, 8), 8, 8) is None


def single(row: int, column: int, shape: tuple[int, int] = (5, 7)) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """A map with one hot cell."""
    heat = np.zeros(shape, dtype=np.float32)
    heat[row, column] = 1
    return heat


WIDE = Box(10, 20, 150, 120)  # 7 x 5 cells of 20 px


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 3), (4, 6), (1, 5)])
def test_the_box_of_one_hot_cell_is_that_cell(row: int, column: int) -> None:
    """Half of the maximum is met half way to the neighbours, which is where the cell ends."""
    x, y = 10 + 20 * column, 20 + 20 * row
    assert hot_box(single(row, column), WIDE, 400, 300) == Box(x, y, x + 20, y + 20)
    assert peak(single(row, column), WIDE, 400, 300) == (x + 10, y + 10)


def test_the_box_holds_all_that_is_above_half_of_the_maximum() -> None:
    heat = np.random.default_rng(3).random((5, 7), dtype=np.float32) ** 4
    heat[1:4, 2:5] += 1
    us, vs = ((np.arange(n * 8) + 0.5) / 8 - 0.5 for n in (7, 5))
    rows = np.stack([np.interp(us, np.arange(7), row) for row in heat])
    fine = np.stack([np.interp(vs, np.arange(5), column) for column in rows.T], axis=1)
    ys, xs = np.nonzero(fine >= fine.max() / 2)
    step = 20 / 8
    expected = (
        10 + xs.min() * step,
        20 + ys.min() * step,
        10 + (xs.max() + 1) * step,
        20 + (ys.max() + 1) * step,
    )
    assert astuple(hot_box(heat, WIDE, 400, 300) or WIDE) == pytest.approx(expected)


def test_box_and_peak_stay_on_the_image() -> None:
    padded = Box(0, -40, 140, 60)  # cells of 20 px; the first two rows lie above the image
    assert hot_box(single(1, 3), padded, 140, 20) is None
    assert hot_box(single(2, 0), padded, 140, 20) == Box(0, 0, 20, 20)
    both = single(0, 3) + 0.5 * single(3, 5)
    assert peak(both, padded, 140, 60) == (110, 30)
    assert peak(single(0, 3), padded, 140, 60) == (70, 0)
    assert peak(single(2, 1) + 0.5 * single(3, 5), Box(-40, 0, 100, 100), 90, 100) == (70, 70)
    assert peak(single(4, 6), Box(0, 0, 140, 100), 130, 90) == (129, 89)
    assert hot_box(single(4, 6), Box(0, 0, 140, 100), 130, 90) == Box(120, 80, 130, 90)


@pytest.mark.parametrize(
    ("seen", "region"),
    [
        (Box(10.5, 0, 20.5, 9), (10, 0, 21, 9)),
        (Box(10.4, 0.6, 20.4, 8.6), (10, 1, 20, 9)),
        (Box(-5, -5, 90, 90), (0, 0, 30, 20)),
        (Box(12.6, 3.6, 12.9, 3.9), (13, 4, 14, 5)),
        (Box(29.9, 19.9, 30, 20), (29, 19, 30, 20)),
    ],
)
def test_the_pixels_seen_are_those_whose_centre_is(seen: Box, region: tuple[int, int, int, int]) -> None:
    assert place(np.ones((2, 2), dtype=np.float32), seen, 30, 20)[0] == region


def test_strips_are_the_whole_in_rows() -> None:
    heat = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    seen = Box(3.3, -4.2, 83.3, 45.8)
    region, grey = place(heat, seen, 90, 40)
    parts = list(strips(heat, seen, 90, 40, 500))
    assert [part[1] for part, _ in parts] == [0, *(part[3] for part, _ in parts[:-1])]
    assert (parts[0][0][0], parts[-1][0][2:]) == (region[0], region[2:])
    assert len(parts) == 7
    assert np.concatenate([np.asarray(part) for _, part in parts]).tobytes() == np.asarray(grey).tobytes()
