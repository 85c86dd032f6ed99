"""`precision: auto` and `batch_size: auto`: what is chosen, why, and that a resumed run keeps to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camcli.batchsize import even_batches, find_batch_size
from camcli.engine import Engine, Explanation
from camcli.layers import Layout, Tap, TargetLayer
from camcli.precision import Choice, choose_precision, correlation, native
from tests.conftest import SHAPES, Ended, RedDetector, loaded, save_picture
from tests.test_engine import GRADCAM, pixels
from tests.test_run import TINY, lines, manifest

Camcli = Callable[..., Ended]

LAYER = TargetLayer((Tap("rectify", Layout("nchw", (16, 16))),))
CPU = torch.device("cpu")


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes bf16 natively, as torch sees it; any processor computes it somehow."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"bf16": True, "neon": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, None),
    ],
)
def test_what_a_processor_computes_natively(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: str | None
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    assert native(CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), None)]
)
def test_what_a_gpu_computes_natively(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert native(torch.device("cuda:0")) == expected


@pytest.mark.usefixtures("able")
def test_16_bits_are_taken_where_nothing_changes() -> None:
    engine = Engine(loaded(RedDetector()), [LAYER], [GRADCAM])
    choice = choose_precision(engine, pixels(4))
    assert choice.used == "bf16"
    assert "on 4 pictures bf16 gives the same top-1" in choice.why
    assert engine.precision == "fp32"


class Close(RedDetector):
    """Two classes so close that 8 bits of mantissa do not tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.head.weight.data.zero_()
        self.head.bias.data.copy_(torch.tensor([1.0, 1.001]))

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,2]."""
        logits: Tensor = self.head(self.rectify(self.colour(x)).mean(dim=(2, 3)))
        return logits


@pytest.mark.usefixtures("able")
def test_a_top_1_that_16_bits_change_is_told_by_its_names() -> None:
    engine = Engine(loaded(Close()), [LAYER], [GRADCAM])
    choice = choose_precision(engine, pixels(4))
    assert choice == Choice("fp32", "bf16 changes a top-1 from class_1 to class_0")


@pytest.mark.usefixtures("able")
def test_maps_that_16_bits_change_are_told_by_their_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine.explain

    def noisy(self: Engine, *words: object) -> list[object]:
        answers = real(self, *words)  # type: ignore[arg-type]
        if self.precision == "fp32":
            return list(answers)
        found = []
        for answer in answers:
            assert isinstance(answer, Explanation)
            [heatmap] = answer.heatmaps
            found.append(replace(answer, heatmaps=(replace(heatmap, heat=heatmap.heat.T.copy()),)))
        return list(found)

    monkeypatch.setattr(Engine, "explain", noisy)
    choice = choose_precision(Engine(loaded(RedDetector()), [LAYER], [GRADCAM]), pixels(4))
    assert choice.used == "fp32"
    assert "maps in bf16 correlate by only" in choice.why


def test_no_arithmetic_or_no_picture_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(loaded(RedDetector()), [LAYER], [GRADCAM])
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    assert choose_precision(engine, pixels(2)).used == "fp32"
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"bf16": True})
    assert choose_precision(engine, torch.empty(0)) == Choice("fp32", "there was no picture to compare precisions on")


def test_maps_without_heat_agree_with_each_other_only() -> None:
    flat, slope = np.zeros((2, 2), dtype=np.float32), np.arange(4, dtype=np.float32).reshape(2, 2)
    assert [correlation(flat, flat), correlation(flat, slope), correlation(slope, -slope)] == [1.0, 0.0, -1.0]


@pytest.mark.usefixtures("able")
def test_a_run_says_what_it_chose_and_a_resumed_one_keeps_to_it(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(tmp_path / "in" / "1.png", 300, 200)
    (tmp_path / "in" / "0.jpg").write_text("no picture")
    words = ("run", tmp_path / "in", SHAPES, "--out", tmp_path / "out", "-s", "runtime.precision=auto")
    assert camcli(*words, "-s", "runtime.batch_size=auto").code == 1
    told = manifest(tmp_path / "out")
    assert told["precision"]["used"] == "bf16"
    assert "on 13 pictures bf16 gives the same top-1" in told["precision"]["why"]
    assert told["config"]["runtime"]["precision"] == "auto"
    assert told["identity"]["runtime"] == {"precision": "bf16"}
    assert 1 <= told["batch_size"] <= 32

    with monkeypatch.context() as patch:
        for choice in ("choose_precision", "find_batch_size"):
            patch.setattr(f"camcli.prepare.{choice}", lambda *_: pytest.fail("chosen again"))
        assert camcli(*words, "-s", "runtime.batch_size=auto", "--retry-failed").code == 1
    again = manifest(tmp_path / "out")
    assert (again["precision"], again["batch_size"]) == (told["precision"], told["batch_size"])

    save_picture(tmp_path / "in" / "00.png", 300, 200, seed=1)
    monkeypatch.setattr("camcli.prepare.choose_precision", lambda *_: pytest.fail("chosen again"))
    assert camcli(*words, "-s", "runtime.batch_size=auto").code == 1
    assert manifest(tmp_path / "out")["precision"] == told["precision"]
    assert len(lines(tmp_path / "out")) == 15
    monkeypatch.undo()
    assert camcli(*words, "-s", "runtime.precision=bf16", "-s", "runtime.batch_size=8").code == 1


def test_an_explicit_precision_is_not_probed(camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(tmp_path / "in" / "1.png", 80, 60)
    monkeypatch.setattr("camcli.prepare.choose_precision", lambda *_: pytest.fail("probed"))
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        assert camcli("run", tmp_path / "in", "--out", out, *TINY, "-s", f"runtime.precision={precision}").code == 0
        assert manifest(out)["precision"] == {"used": precision, "why": "as asked"}


@pytest.mark.parametrize(
    ("pictures", "batch", "at_once", "expected"),
    [(12, 16, 1, 12), (12, 16, 2, 8), (100, 16, 2, 16), (64, 16, 8, 8), (3, 16, 2, 2), (1, 16, 8, 1), (40, 8, 4, 8)],
)
def test_batches_are_even_over_all_that_work_at_once(pictures: int, batch: int, at_once: int, expected: int) -> None:
    assert even_batches(pictures, batch, at_once) == expected


def test_a_batch_size_is_found_within_memory_and_need(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(loaded(RedDetector()), [LAYER], [GRADCAM])
    seconds = {4: 1.0, 8: 1.2, 16: 1.5, 32: 2.99}
    monkeypatch.setattr("camcli.batchsize._seconds", lambda engine, size: seconds[size])
    assert find_batch_size(engine, 1000) == 16
    assert find_batch_size(engine, 9) == 8
    assert find_batch_size(engine, 2) == 4

    def short(engine: Engine, size: int) -> float:
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seconds[size]

    monkeypatch.setattr("camcli.batchsize._seconds", short)
    assert find_batch_size(engine, 1000) == 8


def test_the_times_of_a_real_engine_are_taken() -> None:
    assert find_batch_size(Engine(loaded(RedDetector()), [LAYER], [GRADCAM]), 1000) in (4, 8, 16, 32)
