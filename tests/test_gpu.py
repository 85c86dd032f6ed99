"""The same on a GPU; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from camcli.engine.engine import Engine
from camcli.engine.layers import resolve_layer
from camcli.engine.precision import native
from camcli.engine.tuning import tune
from camcli.models.source import model_from_module
from camcli.records import Precision
from tests.conftest import SHAPES, Ended, loaded
from tests.test_engine import GRADCAM, correlation, explanations, pixels
from tests.test_run import lines, manifest

Camcli = Callable[..., Ended]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999), ("bf16", 0.98)])
def test_maps_are_those_of_the_cpu(precision: Precision, least: float) -> None:
    torch.manual_seed(0)
    module = timm.create_model("resnet50", num_classes=5)
    layer = resolve_layer(module, (224, 224))
    batch = pixels(4, side=224)
    plain = explanations(Engine(loaded(module, classes=5), [layer], [GRADCAM]), batch, [1])
    engine = Engine(loaded(module, classes=5), [layer], [GRADCAM], "cuda", precision)
    tune(engine)
    for ours, theirs in zip(explanations(engine, batch.pin_memory(), [1]), plain, strict=True):
        assert correlation(ours.heatmaps[0].heat, theirs.heatmaps[0].heat) > least


def demo(camcli: Camcli, out: Path, *words: str) -> dict[str, Any]:
    """The manifest of the main job."""
    ended = camcli("run", SHAPES, "--out", out, *words)
    assert ended.code == 0, ended.err
    return manifest(out)


def test_the_main_job_finds_on_the_gpu_what_it_finds_on_the_cpu(camcli: Camcli, tmp_path: Path) -> None:
    assert demo(camcli, tmp_path / "gpu")["device"] == "cuda"
    demo(camcli, tmp_path / "cpu", "--device", "cpu")
    for ours, theirs in zip(lines(tmp_path / "gpu"), lines(tmp_path / "cpu"), strict=True):
        assert ours["id"] == theirs["id"]
        assert [h["target"]["label"] for h in ours["heatmaps"]] == [h["target"]["label"] for h in theirs["heatmaps"]]
        for one, other in zip(ours["heatmaps"], theirs["heatmaps"], strict=True):
            assert np.abs(np.subtract(one["peak"], other["peak"])).max() <= 10


def test_precision_and_batch_size_are_chosen(camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camcli.engine.precision.WORTHWHILE", 1)
    told = demo(camcli, tmp_path / "out", "-s", "runtime.precision=auto", "-s", "runtime.batch_size=auto")
    assert told["precision"]["used"] == (native(torch.device("cuda")) or "fp32")


def test_real_shortage_of_memory_halves_the_batch(camcli: Camcli, tmp_path: Path) -> None:
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - (600 << 20), dtype=torch.uint8, device="cuda")
    try:
        words = ("-s", "model={source: timm, name: convnext_base, weights: none}", "-s", "input.size=768")
        assert demo(camcli, tmp_path / "out", *words, "-s", "runtime.batch_size=12")["counts"]["done"] == 12
    finally:
        del hog
        torch.cuda.empty_cache()


def test_two_processes_share_the_run(camcli: Camcli, tmp_path: Path) -> None:
    last = torch.cuda.device_count() - 1
    assert demo(camcli, tmp_path / "out", "--device", f"cuda:0,cuda:{last}")["counts"]["done"] == 12


def test_a_compiled_network_finds_the_same(camcli: Camcli, tmp_path: Path) -> None:
    demo(camcli, tmp_path / "plain")
    demo(camcli, tmp_path / "compiled", "-s", "runtime.backend=compile")
    for ours, theirs in zip(lines(tmp_path / "compiled"), lines(tmp_path / "plain"), strict=True):
        assert [h["target"]["label"] for h in ours["heatmaps"]] == [h["target"]["label"] for h in theirs["heatmaps"]]


def test_a_module_of_one_s_own_may_be_on_the_gpu_already() -> None:
    module = timm.create_model("test_resnet", num_classes=5).eval().cuda()
    assert len(model_from_module(module, {"size": 64}, None).labels) == 5
