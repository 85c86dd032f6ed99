"""camcli from Python: explanations without a run folder, for named models and for modules of one's own."""

from __future__ import annotations

import copy
import doctest
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import camcli
from camcli.pipeline import explainer
from tests.conftest import PHOTOS, REPO, SHAPES, RedDetector, save_image

STAR = SHAPES / "12-star.png"
SMALL = {"size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}


def test_importing_camcli_is_light() -> None:
    code = "import sys, camcli; assert not {'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules); camcli.explain"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    for name in camcli.__all__:
        assert getattr(camcli, name) is not None
    with pytest.raises(AttributeError, match="explian"):
        getattr(camcli, "explian")  # noqa: B009


def test_the_examples_in_the_docstrings_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    found = doctest.testmod(explainer)
    assert (found.failed, found.attempted > 3) == (0, True)


def test_an_explanation_says_what_the_report_of_a_run_says(tmp_path: Path) -> None:
    words = ["run", str(STAR), "--out", str(tmp_path / "out"), "-s", "runtime.batch_size=1", "-s", "targets=[star]"]
    subprocess.run([sys.executable, "-m", "camcli", *words], check=True, timeout=120, capture_output=True)
    [file] = (tmp_path / "out" / "reports").rglob("*.json")
    report = json.loads(file.read_text())
    [found] = camcli.explain(STAR, targets=["star"])
    heatmap = report["heatmaps"][0]
    assert [p.label for p in found.predictions] == [p["label"] for p in report["predictions"]]
    assert found.predictions[0].probability == pytest.approx(report["predictions"][0]["probability"], abs=1e-5)
    assert found.peak() == tuple(heatmap["peak"])
    box = found.box()
    assert box is not None
    assert [box.x0, box.y0, box.x1, box.y1] == pytest.approx(heatmap["box"], abs=0.01)
    assert found.image.size == found.overlay().size == (report["width"], report["height"])


def test_paths_images_and_arrays_give_the_same() -> None:
    explainer = camcli.Explainer("demo", targets="top1")
    opened = Image.open(STAR)
    answers = explainer([STAR, str(STAR), opened, np.asarray(opened.convert("RGB"))])
    for answer in answers[1:]:
        assert np.array_equal(answer.heatmaps[0].heat, answers[0].heatmaps[0].heat)


def test_a_module_of_one_s_own_is_explained_and_left_as_it_was(tmp_path: Path) -> None:
    module = RedDetector().train()
    before = copy.deepcopy(module.state_dict())
    image = Image.new("RGB", (64, 64), (0, 60, 0))
    image.paste((255, 0, 0), (8, 40, 20, 56))
    found = camcli.Explainer(module, layer=module.rectify, preprocess=SMALL, labels=["red", "blue"], targets=["red"])(
        [image]
    )[0]
    x, y = found.peak() or (0, 0)
    assert 8 <= x < 20
    assert 40 <= y < 56
    assert found.predictions[0].label == "red"
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.rectify._forward_hooks


def test_a_layer_given_as_a_module_is_the_one_at_its_path() -> None:
    module = timm.create_model("test_resnet", num_classes=3).eval()
    by_module = camcli.explain(STAR, module, layer=module.layer2[-1], methods=["gradcam", "layercam"])
    by_path = camcli.explain(STAR, module, layer=f"layer2.{len(module.layer2) - 1}", methods=["gradcam", "layercam"])
    assert len(by_module[0].heatmaps) == 2
    for one, other in zip(by_module[0].heatmaps, by_path[0].heatmaps, strict=True):
        assert np.array_equal(one.heat, other.heat)


def test_mistakes_are_named(tmp_path: Path) -> None:
    module = RedDetector()
    with pytest.raises(camcli.LayerError, match="no module of the model"):
        camcli.Explainer(module, layer=nn.ReLU(), preprocess=SMALL)
    with pytest.raises(camcli.ConfigError, match="preprocess"):
        camcli.Explainer(module)
    with pytest.raises(camcli.ConfigError, match="3 labels for 2 classes"):
        camcli.Explainer(module, preprocess=SMALL, labels=["a", "b", "c"])
    with pytest.raises(camcli.ConfigError, match="metods: unknown key, did you mean 'methods'"):
        camcli.Explainer("demo", metods=["gradcam"])
    with pytest.raises(camcli.ConfigError, match="float64"):
        camcli.explain(np.zeros((4, 4, 3)))
    (tmp_path / "x.jpg").write_text("no image")
    with pytest.raises(camcli.ItemError, match=r"x\.jpg"):
        camcli.explain(tmp_path / "x.jpg")


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    camcli.explain([save_image(tmp_path / f"{i}.png", 40, 30, i) for i in range(3)], batch_size=2, progress=True)
    assert set(threading.enumerate()) == before


def test_a_notebook_shows_all_heatmaps() -> None:
    [found] = camcli.explain(PHOTOS / "chelsea.png", targets={"top": 2})
    import io

    shown = Image.open(io.BytesIO(found._repr_png_()))
    assert shown.size == (2 * found.image.width, found.image.height)


def test_what_load_config_returns_is_a_config_wherever_one_is_taken(tmp_path: Path) -> None:
    loaded = camcli.load_config(None, ["targets=[heart]"])
    [record] = camcli.run(loaded, STAR, tmp_path / "out").records()
    [found] = camcli.explain(STAR, loaded)
    for heatmap in (record.heatmaps[0], found.heatmaps[0]):
        assert heatmap.target is not None
        assert heatmap.target.label == "heart"
    with pytest.raises(camcli.ConfigError, match="model: dict is neither a name nor a config"):
        camcli.Explainer({"model": "demo"})  # type: ignore[arg-type]


def test_a_run_is_read_with_its_heat(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "star.png").write_bytes(STAR.read_bytes())
    (tmp_path / "in" / "broken.jpg").write_text("no image")
    config = tmp_path / "c.yaml"
    for kind in ("npz", "png16"):
        config.write_text(f"targets: [star]\nmaps: {kind}\nruntime: {{batch_size: 1}}\n")
        run = camcli.run(config, tmp_path / "in", tmp_path / kind)
        assert isinstance(run, camcli.Run)
        [record], [failure] = list(run.records()), list(run.failures())
        assert (len(run), record.id, failure.id) == (2, "star.png", "broken.jpg")
        [found] = camcli.explain(STAR, targets=["star"], batch_size=1)
        assert np.allclose(run.heat(record), found.heatmaps[0].heat, atol=1e-4)
        assert run.overlay(record).is_file()
        assert run.manifest.counts.done == 1


def test_a_run_without_maps_says_how_to_keep_them(tmp_path: Path) -> None:
    run = camcli.run("demo", STAR, tmp_path / "out", progress=True)
    with pytest.raises(camcli.ConfigError, match="maps=npz"):
        run.heat(next(run.records()))
    with pytest.raises(camcli.ConfigError, match="no run folder"):
        camcli.open_run(tmp_path)


def test_opening_a_run_does_not_load_torch(tmp_path: Path) -> None:
    camcli.run("demo", STAR, tmp_path / "out")
    code = "import sys, camcli; list(camcli.open_run(sys.argv[1]).records()); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=True, timeout=60)


def test_a_registered_method_runs_by_its_name() -> None:
    code = (
        "import camcli\n"
        "@camcli.register_method('absolute', ('activations',), 'nothing', 'https://example.org')\n"
        "def absolute(view):\n"
        "    'sum_c |A_c|.'\n"
        "    return view.activations.abs()\n"
        "[found] = camcli.explain('sample_images/shapes/12-star.png', methods=['absolute'])\n"
        "assert found.heatmaps[0].method == 'absolute'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=REPO)
