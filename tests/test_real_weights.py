"""Real ImageNet weights on real photographs; skipped where no folder `shared/weights` lies beside the checkout."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from camcli.config.file import load_config
from camcli.engine.engine import Engine
from camcli.engine.layers import Layout, Tap, TargetLayer, resolve_layer
from camcli.engine.methods import METHODS
from camcli.images.decode import load_image
from camcli.models.loaded import LoadedModel
from camcli.models.source import load_model
from tests import oracles
from tests.conftest import PHOTOS, REAL_WEIGHTS, Ended

pytestmark = pytest.mark.skipif(not REAL_WEIGHTS.is_dir(), reason="no real weights beside the checkout")

MODELS = {
    "squeezenet": f"""
model: {{source: torchvision, name: squeezenet1_0, weights: {REAL_WEIGHTS}/squeezenet1_0.safetensors}}
""",
    "mobilenet": f"""
model:
  source: timm
  name: mobilenetv2_100
  weights: {REAL_WEIGHTS}/mobilenetv2_100.safetensors
  kwargs: {{pad_type: same}}
input: {{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
""",
}
# Pixels (left, top, right, bottom) of what the class is named after.
ROCKET = (300, 100, 360, 420)
CUP = (165, 10, 430, 230)


@pytest.fixture(params=MODELS)
def config_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A config for each model."""
    path = tmp_path / f"{request.param}.yaml"
    path.write_text(MODELS[request.param])
    return path


def records(out: Path) -> dict[str, dict[str, Any]]:
    """By id."""
    return {r["id"]: r for r in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def inside(peak: tuple[int, int], box: tuple[int, int, int, int]) -> bool:
    """Whether [x, y] lies in the box."""
    return box[0] <= peak[0] <= box[2] and box[1] <= peak[1] <= box[3]


def test_classes_and_heat_are_where_a_person_sees_them(
    camcli: Callable[..., Ended], config_file: Path, tmp_path: Path
) -> None:
    assert camcli("run", PHOTOS, "-c", config_file, "--out", tmp_path / "out").code == 0
    found = records(tmp_path / "out")
    assert "cat" in found["chelsea.png"]["predictions"][0]["label"]
    assert "espresso" in found["coffee.png"]["predictions"][0]["label"]
    assert "missile" in found["rocket.jpg"]["predictions"][0]["label"]
    assert inside(found["coffee.png"]["heatmaps"][0]["peak"], CUP)
    left, _, right, _ = found["rocket.jpg"]["heatmaps"][0]["box"]
    assert left < (ROCKET[0] + ROCKET[2]) / 2 < right


def reference_maps(model: LoadedModel, layer: str, inputs: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The reference package's maps of the most probable classes, at input resolution."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import GradCAM
    with GradCAM(model.module, [model.module.get_submodule(layer)]) as peer:
        maps: np.ndarray[Any, np.dtype[np.float32]] = peer(inputs.requires_grad_(), None)
    return maps


def test_maps_agree_with_the_reference_package(camcli: Callable[..., Ended], config_file: Path, tmp_path: Path) -> None:
    assert camcli("run", PHOTOS, "-c", config_file, "--out", tmp_path / "out", "-s", "maps=npz").code == 0
    found = records(tmp_path / "out")
    config = load_config(config_file).config
    model = load_model(config.model, config.input)
    inputs = torch.stack(
        [torch.from_numpy(load_image(PHOTOS / name, model.preprocess).input) for name in sorted(found)]
    )
    engine = Engine(model, [], [])
    layer = next(iter(found.values()))["layer"]
    theirs = reference_maps(model, layer, engine.normalise(inputs))
    for name, their in zip(sorted(found), theirs, strict=True):
        with np.load(tmp_path / "out" / found[name]["maps"][0]) as arrays:
            [ours] = [torch.from_numpy(array) for array in arrays.values()]
        resized = interpolate(ours[None, None], size=their.shape, mode="bilinear")[0, 0].numpy()
        assert np.corrcoef(resized.ravel(), their.ravel())[0, 1] > 0.999


def squeezenet() -> torch.nn.Module:
    """The trained SqueezeNet."""
    config = load_config(None, [f"model={MODELS['squeezenet'].split('model: ')[1]}"]).config
    return load_model(config.model, config.input).module


@pytest.mark.parametrize("path", ["features", "features.12", "classifier.1"])
def test_a_layer_before_a_rectifier_is_accepted(path: str) -> None:
    layer = resolve_layer(squeezenet(), (224, 224), path)
    assert layer.taps == (Tap(path, Layout("nchw", (13, 13))),)
    share = re.match(rf"layer {path}: (\d+)% of the locations", layer.note)
    assert share
    assert 44 <= int(share[1]) < 90


def test_the_automatic_layer_has_a_gradient_in_several_channels() -> None:
    assert resolve_layer(squeezenet(), (224, 224)).name == "features"


def test_a_named_layer_is_explained_and_its_note_said_once(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    config = tmp_path / "squeezenet.yaml"
    config.write_text(MODELS["squeezenet"])
    words = ("run", PHOTOS / "coffee.png", "-c", config, "-s", "layer=features.12")
    ended = camcli(*words, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    [note] = json.loads((tmp_path / "out" / "run.json").read_text())["notes"]
    assert note.startswith("layer features.12: ")
    assert ended.err.count(note) == 1
    assert note not in camcli(*words, "--out", tmp_path / "quiet", "--quiet").err


@pytest.mark.parametrize("config_file", ["squeezenet"], indirect=True)
def test_grad_cam_plus_plus_of_small_gradients_is_that_of_the_paper(config_file: Path) -> None:
    """With the reference package's constant, the maps of this layer correlate by 0.86 to 0.95 with the formula's."""
    config = load_config(config_file).config
    model = load_model(config.model, config.input)
    layer = TargetLayer((Tap("features.10", Layout("nchw", (27, 27))),))
    engine = Engine(model, [layer], [METHODS.get("gradcam++")])
    image = load_image(PHOTOS / "chelsea.png", model.preprocess).input
    inputs = engine.normalise(torch.from_numpy(image)[None])
    done = engine.forward(inputs)
    target = int(done.logits.argmax())
    [[maps]] = engine.maps(done, [torch.eye(done.logits.shape[1])[target][None]])
    paper, constant = (
        oracles.plus_plus(model.module, "features.10", lambda t: t, inputs, target, c) for c in (0.0, 1e-6)
    )
    assert oracles.correlation(maps.heat.numpy(), oracles.shown(paper, 27)) > 0.99999
    assert float(maps.high) == pytest.approx(float(paper.max()), rel=1e-4)
    assert oracles.correlation(oracles.shown(constant, 27), oracles.shown(paper, 27)) < 0.95
