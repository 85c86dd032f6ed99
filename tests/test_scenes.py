"""The scene generator, the sample images, and the quality of the weights that were trained on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from camcli.demo.evaluate import evaluate, points_at, training
from camcli.demo.scenes import OUTLINES, SAMPLES, Scene, scene, write_samples
from camcli.models.demo import LABELS, WEIGHTS
from camcli.records import Heatmap

SAMPLE_IMAGES = Path(__file__).parents[1] / "sample_images" / "shapes"
TRANSFORMERS = Path(__file__).with_name("weights")
SIZES = [(128, 128), (200, 90), (97, 160)]


def test_the_same_seed_and_index_draw_the_same_image() -> None:
    first, again, other = scene(3, 4), scene(3, 4), scene(3, 5)
    assert np.array_equal(first.image, again.image)
    assert [label for label, _ in first.shapes] == [label for label, _ in again.shapes]
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_scene_has_one_to_three_different_shapes_that_do_not_overlap(width: int, height: int) -> None:
    for index in range(10):
        drawn = scene(1, index, width, height)
        labels = [label for label, _ in drawn.shapes]
        assert drawn.image.shape == (height, width, 3)
        assert drawn.image.dtype == np.uint8
        assert 1 <= len(labels) <= 3
        assert len(set(labels)) == len(labels)
        assert np.sum([mask for _, mask in drawn.shapes], axis=0).max() == 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_shapes_lie_inside_the_central_square(width: int, height: int) -> None:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    for index in range(10):
        for _, mask in scene(2, index, width, height).shapes:
            assert mask.sum() == mask[top : top + side, left : left + side].sum() > 0


@pytest.mark.parametrize("name", LABELS)
def test_a_mask_covers_what_was_drawn(name: str) -> None:
    for index in range(5):
        drawn = scene(3, index, labels=[LABELS.index(name)])
        mask = drawn.shapes[0][1]
        differs = _far_from_the_ground(drawn, mask)
        assert differs[mask].mean() > 0.9
        assert differs[~mask].mean() < 0.3


def _far_from_the_ground(drawn: Scene, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels [H,W] whose colour is not that of the ground, which a shape's colours keep away from."""
    ground = np.median(drawn.image[~mask], axis=0)
    far: NDArray[np.bool_] = np.linalg.norm(drawn.image - ground, axis=-1) > 0.25 * 255
    return far


def test_asked_labels_are_drawn_in_order() -> None:
    assert [label for label, _ in scene(1, 1, labels=[5, 2]).shapes] == [5, 2]


def test_every_label_has_an_outline() -> None:
    assert tuple(OUTLINES) == LABELS


def test_sample_images_are_small_varied_and_drawn_by_the_script(tmp_path: Path) -> None:
    for path in write_samples(tmp_path):
        kept = SAMPLE_IMAGES / path.name
        assert kept.stat().st_size < 120_000
        difference = np.abs(np.asarray(Image.open(kept), float) - np.asarray(Image.open(path), float))
        assert difference.mean() < 1
    assert len(list(SAMPLE_IMAGES.iterdir())) == len(SAMPLES) == 12
    assert len({(width, height) for width, height, _, _ in SAMPLES}) == 12


@pytest.mark.parametrize(
    ("weights", "share"),
    [(WEIGHTS, 0.95), (TRANSFORMERS / "vit.safetensors", 0.8), (TRANSFORMERS / "swin.safetensors", 0.8)],
    ids=["resnet", "vit", "swin"],
)
def test_weights_are_small_and_good_on_scenes_that_training_never_saw(weights: Path, share: float) -> None:
    assert weights.stat().st_size <= 2_000_000
    quality = evaluate(scenes=30, seed=1, weights=weights)
    assert min(quality.present, quality.absent) > 0.9
    assert quality.pointing_game > share


def test_an_empty_map_points_at_nothing() -> None:
    shown = Heatmap("gradcam", "last", None, np.zeros((4, 4), np.float32), 0.0, 0.0, empty=True)
    everywhere = np.ones((8, 8), dtype=bool)
    assert not points_at(shown, everywhere)
    assert points_at(replace(shown, empty=False), everywhere)


def test_the_seed_of_training_is_refused() -> None:
    with pytest.raises(ValueError, match="choose another"):
        evaluate(scenes=1, seed=int(training(WEIGHTS)["seed"]))
