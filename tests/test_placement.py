"""Heat lies where the evidence is: a marker is painted at known pixels and the overlay is searched for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camcli.config import Crop, InputConfig, OverlayConfig
from camcli.engine import Engine, Explanation
from camcli.geometry import hot_box, peak, place
from camcli.images import Picture, Preprocess, load_picture
from camcli.layers import Layout, Tap, TargetLayer
from camcli.methods import METHODS
from camcli.records import Box, Heatmap
from camcli.writers.overlay import overlay_bytes
from tests.conftest import RedDetector, loaded

LAYER = TargetLayer((Tap("rectify", Layout("nchw", (16, 16))),))

# (width, height) and the marker's (left, top, right, bottom); a marker inside the middle square is seen by all modes.
PICTURES = {
    "landscape": ((320, 200), (170, 40, 210, 80)),
    "portrait": ((150, 400), (20, 180, 60, 230)),
    "tiny": ((9, 7), (5, 1, 7, 3)),
    "panorama": ((2000, 120), (900, 5, 1150, 115)),
    "square": ((64, 64), (8, 40, 20, 56)),
}


def explained(path: Path, crop: Crop) -> tuple[Picture, Heatmap]:
    """The picture and the red class's heatmap."""
    preprocess = Preprocess((64, 64), (64, 64), (0, 0, 0), (1, 1, 1), "bilinear", "center")
    model = loaded(RedDetector(), preprocess.override(InputConfig(crop=crop)))
    picture = load_picture(path, model.preprocess)
    engine = Engine(model, [LAYER], [METHODS.get("gradcam")])
    [answer] = engine.explain(torch.from_numpy(picture.input)[None], lambda probabilities: [0])
    assert isinstance(answer, Explanation)
    return picture, answer.heatmaps[0]


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("name", PICTURES)
def test_the_overlay_is_hot_on_the_marker_and_untouched_outside_the_box(tmp_path: Path, name: str, crop: Crop) -> None:
    size, marker = PICTURES[name]
    original = Image.new("RGB", size, (0, 60, 60))
    original.paste((255, 0, 0), marker)
    original.save(tmp_path / "x.png")
    picture, heatmap = explained(tmp_path / "x.png", crop)

    config = OverlayConfig(format="png", colormap="gray", alpha=1.0)
    (tmp_path / "o.png").write_bytes(overlay_bytes(picture, heatmap.heat, config))
    painted = np.asarray(Image.open(tmp_path / "o.png")).astype(int)
    assert painted.shape == (size[1], size[0], 3)
    left, top, right, bottom = marker
    seen = picture.seen.clip(*size)
    box = (slice(round(seen.y0), round(seen.y1)), slice(round(seen.x0), round(seen.x1)))
    heat = painted[box][..., 0]
    assert heat.max() > 60
    hot_y, hot_x = (np.mean(axis) for axis in np.nonzero(heat >= heat.max() * 0.9))
    cell_x, cell_y = picture.seen.width / 16, picture.seen.height / 16
    assert left - cell_x <= hot_x + seen.x0 <= right + cell_x
    assert top - cell_y <= hot_y + seen.y0 <= bottom + cell_y

    untouched = np.ones(painted.shape[:2], dtype=bool)
    untouched[box] = False
    assert (painted[untouched] == np.asarray(original)[untouched]).all()


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("name", PICTURES)
def test_peak_and_box_are_in_pixels_of_the_original(tmp_path: Path, name: str, crop: Crop) -> None:
    size, (left, top, right, bottom) = PICTURES[name]
    original = Image.new("RGB", size, (0, 60, 60))
    original.paste((255, 0, 0), (left, top, right, bottom))
    original.save(tmp_path / "x.png")
    picture, heatmap = explained(tmp_path / "x.png", crop)
    cell_x, cell_y = picture.seen.width / 16, picture.seen.height / 16
    x, y = peak(heatmap.heat, picture.seen, *size) or (-1, -1)
    assert left - cell_x <= x <= right + cell_x
    assert top - cell_y <= y <= bottom + cell_y
    box = hot_box(heatmap.heat, picture.seen, *size)
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


def test_a_map_without_heat_has_no_peak_and_no_box() -> None:
    nothing = np.zeros((4, 4), dtype=np.float32)
    assert peak(nothing, Box(0, 0, 8, 8), 8, 8) is None
    assert hot_box(nothing, Box(0, 0, 8, 8), 8, 8) is None
