"""`precision: auto` and `batch_size: auto`: what is chosen, why, and that a resumed run keeps to it."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camcli.config.file import load_config
from camcli.config.schema import TargetsConfig
from camcli.engine.batch_size import even_batches, find_batch_size
from camcli.engine.engine import Engine, Explanation
from camcli.engine.layers import Layout, Tap, TargetLayer
from camcli.engine.methods import METHODS
from camcli.engine.precision import CHECKABLE, Choice, Guard, choose_precision, correlation, native, spread
from camcli.engine.targets import Chooser, chooser, likeliest
from camcli.errors import ItemError
from camcli.pipeline import workers
from camcli.pipeline.engines import Engines, redo_size
from camcli.pipeline.prepare import device
from camcli.records import Heatmap, Prediction
from tests.benchmarks.precision import crops, differences, explained
from tests.conftest import REAL_WEIGHTS, SHAPES, Ended, RedDetector, loaded, save_image
from tests.test_engine import GRADCAM, pixels
from tests.test_real_weights import MODELS
from tests.test_run import TINY, lines, manifest

Camcli = Callable[..., Ended]

LAYER = TargetLayer((Tap("rectify", Layout("nchw", (16, 16))),))
CPU = torch.device("cpu")


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes bf16 natively, as torch sees it; any processor computes it somehow."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


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
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able, raising=False)
    assert native(CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), None)]
)
def test_what_a_gpu_computes_natively(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert native(torch.device("cuda:0")) == expected


def coloured(count: int) -> Tensor:
    """uint8 [B,64,64,3], red and blue in turn, and in the middle of each a patch that is more so."""
    found = 60 + pixels(count) // 8
    for i, image in enumerate(found):
        image[:, :, 2 * (i % 2)] += 40
        image[16:40, 16:40, 2 * (i % 2)] += 100
    return found


def choice(engine: Engine, inputs: Tensor, choose: Chooser = likeliest, images: int = 1000) -> Choice:
    """For a run of so many images, some of which are `inputs`."""
    return choose_precision(engine, images, lambda: inputs, choose)


@pytest.mark.usefixtures("able")
def test_16_bits_are_taken_where_nothing_changes() -> None:
    engine = Engine(loaded(RedDetector()), [LAYER], [GRADCAM])
    found = choice(engine, coloured(4))
    assert (found.used, found.why) == (
        "bf16",
        "of 4 images 0 would have to be explained again; the others have the same answers in fp32",
    )
    assert found.guard is not None
    assert found.guard.logits > 0
    assert found.guard.maps["gradcam"] > 0
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
def test_a_model_whose_answers_are_mostly_in_doubt_stays_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    found = choice(Engine(loaded(Close()), [LAYER], [GRADCAM]), coloured(4))
    assert found == Choice("fp32", "bf16 gives no answer that can be compared with one in fp32")
    monkeypatch.setattr("camcli.engine.precision.LOGIT_ERRORS", 1e6)
    found = choice(Engine(loaded(RedDetector()), [LAYER], [GRADCAM]), coloured(4))
    assert found == Choice("fp32", "bf16 is too coarse for this model: of 4 images 4 would have to be explained again")


@pytest.mark.usefixtures("able")
def test_an_error_that_the_guard_would_not_see_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """One map of eight is another one altogether, and its spread says nothing of it."""
    real = Engine.explain

    def turned(self: Engine, *words: object) -> list[object]:
        answers = list(real(self, *words))  # type: ignore[arg-type]
        if self.precision != "fp32" and isinstance(last := answers[-1], Explanation):
            [heatmap] = last.heatmaps
            answers[-1] = replace(last, heatmaps=(replace(heatmap, heat=heatmap.heat.T[::-1].copy()),))
        return list(answers)

    engine = Engine(loaded(RedDetector()), [LAYER], [GRADCAM])
    monkeypatch.setattr(Engine, "explain", turned)
    monkeypatch.setattr("camcli.engine.precision.MAP_ERRORS", 1e-3)
    found = choice(engine, coloured(8))
    assert found == Choice("fp32", "bf16 changes an answer by more than could be foreseen")


def test_what_cannot_be_compared_or_pays_too_little_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(loaded(RedDetector()), [LAYER], [GRADCAM])
    monkeypatch.setattr("torch.cpu.get_capabilities", dict, raising=False)
    assert choice(engine, coloured(4)).used == "fp32"
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"bf16": True}, raising=False)
    assert choice(engine, torch.empty(0)) == Choice("fp32", "there was no image to compare precisions on")
    few = choose_precision(engine, 63, lambda: pytest.fail("looked at"), likeliest)
    assert few == Choice("fp32", "comparing precisions pays for 64 images or more, not for 63")


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_is_checked_image_by_image_or_stays_in_fp32(name: str) -> None:
    found = choice(Engine(loaded(RedDetector()), [LAYER], [GRADCAM, METHODS.get(name)]), coloured(4))
    if name in CHECKABLE - {"cam"}:
        assert found.used == "bf16"
        assert found.guard is not None
        assert name in found.guard.maps
    elif name != "cam":
        assert found == Choice("fp32", f"whether bf16 changes a map cannot be told image by image for {name}")


@pytest.mark.usefixtures("able")
def test_averaged_maps_stay_in_fp32() -> None:
    both = [LAYER, TargetLayer((Tap("colour", Layout("nchw", (16, 16))),))]
    assert "the mean of several layers" in choice(Engine(loaded(RedDetector()), both, [GRADCAM]), coloured(4)).why
    for smoothing in ("aug", "eigen"):
        engine = Engine(loaded(RedDetector()), [LAYER], [GRADCAM], smoothing=smoothing)
        assert f"for smoothing: {smoothing}" in choice(engine, coloured(4)).why


def answer(logits: NDArray[np.float32], activation: str, *maps: Heatmap) -> Explanation:
    """What an engine would say with these logits."""
    values = torch.from_numpy(logits)
    probabilities = (values.softmax(0) if activation == "softmax" else values.sigmoid()).numpy()
    return Explanation((), maps, logits, probabilities, "bf16")


TARGETS = ({"top": 1}, {"top": 3}, {"above": 0.5}, {"above": 0.1}, {"classes": (2,)})


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_no_decision_that_rounding_may_change_is_trusted(activation: str, targets: dict[str, Any]) -> None:
    """Logits with any error up to the bound: what the guard lets pass is the same without the error."""
    rng = np.random.default_rng(0)
    choose = chooser(TargetsConfig.model_validate(targets), [str(i) for i in range(6)])
    guard = Guard(0.2, {})
    doubted = changed = 0
    for _ in range(1500):
        exact = rng.normal(0, 1.5, 6).astype(np.float32)
        error = rng.choice([-0.099, 0.099], 6).astype(np.float32)
        rough, full = answer(exact + error, activation), answer(exact, activation)
        doubt = guard.doubts(rough, choose, activation)
        differs = any({*pick(rough.probabilities)} != {*pick(full.probabilities)} for pick in (choose, likeliest))
        assert doubt or not differs
        doubted, changed = doubted + doubt, changed + differs
    assert 0 < changed < doubted < 1000


def test_the_guard_is_no_stricter_than_its_bound() -> None:
    guard = Guard(0.2, {})
    for gap, doubt in ((0.19, True), (0.21, False)):
        assert guard.doubts(answer(np.array([gap, 0, -3], np.float32), "softmax"), likeliest, "softmax") is doubt
    assert guard.doubts(ItemError("forward", "NotFinite", "infinite"), likeliest, "softmax")


def test_maps_of_little_spread_are_in_doubt() -> None:
    heat = np.array([[0, 0], [1, 1]], dtype=np.float32)
    clear = np.array([5, 0], dtype=np.float32)
    for high, doubt in ((0.19, True), (0.21, False)):
        heatmap = Heatmap("gradcam", "", Prediction(0, "", 1, 5), heat, -1.0, high, empty=False)
        assert spread(heatmap) == pytest.approx(high / 2)
        assert Guard(0.1, {"gradcam": 0.1}).doubts(answer(clear, "softmax", heatmap), likeliest, "softmax") is doubt
    lifted = Heatmap("gradcam", "", Prediction(0, "", 1, 5), heat, 10.0, 10.4, empty=False)
    assert spread(lifted) == pytest.approx(0.2)


def test_maps_without_heat_agree_with_each_other_only() -> None:
    flat, slope = np.zeros((2, 2), dtype=np.float32), np.arange(4, dtype=np.float32).reshape(2, 2)
    assert [correlation(flat, flat), correlation(flat, slope), correlation(slope, -slope)] == [1.0, 0.0, -1.0]


AUTO = (*TINY, "-s", "runtime.precision=auto", "-s", "runtime.batch_size=4", "--threads", "2")
COUNT = 12


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images, and a choice of bf16 with a guard that doubts some of them."""
    for seed in range(COUNT):
        save_image(tmp_path / "in" / f"{seed:02}.png", 90, 80, seed)
    found = Choice("bf16", "for the test", Guard(0.075, {"gradcam": 0.0}))
    monkeypatch.setattr("camcli.pipeline.prepare.choose_precision", lambda *_: found)
    return tmp_path / "in"


def by_id(out: Path) -> dict[str, dict[str, Any]]:
    """Records without what tells runs apart."""
    return {record["id"]: record for record in lines(out)}


def test_images_in_doubt_are_explained_again_in_fp32_and_only_these(
    camcli: Camcli, guarded: Path, tmp_path: Path
) -> None:
    found, plain = {}, {}
    shown = camcli("run", guarded, "--out", tmp_path / "auto", *AUTO)
    assert shown.code == 0
    found = by_id(tmp_path / "auto")
    for precision in ("fp32", "bf16"):
        words = (*AUTO, "-s", f"runtime.precision={precision}")
        assert camcli("run", guarded, "--out", tmp_path / precision, *words).code == 0
        plain[precision] = by_id(tmp_path / precision)
        assert {record["precision"] for record in plain[precision].values()} == {precision}
    told = manifest(tmp_path / "auto")
    again = [name for name, record in found.items() if record["precision"] == "fp32"]
    assert 0 < len(again) < COUNT
    assert told["precisions"] == {"bf16": COUNT - len(again), "fp32": len(again)}
    assert "in fp32" in shown.err
    assert f"{len(again)}" in next(line for line in shown.err.splitlines() if line.startswith("in fp32"))
    for name, record in found.items():
        other = plain[record["precision"]][name]
        exact = record["precision"] == "bf16"
        for one, two in zip(record["predictions"], other["predictions"], strict=True):
            assert one["logit"] == two["logit"] if exact else one["logit"] == pytest.approx(two["logit"], abs=1e-5)
        assert record["predictions"][0]["index"] == plain["fp32"][name]["predictions"][0]["index"]
        gap = plain["bf16"][name]["predictions"][0]["logit"] - plain["bf16"][name]["predictions"][1]["logit"]
        assert (gap <= 0.075) == (record["precision"] == "fp32")
    assert (
        json.loads(camcli("run", guarded, "--out", tmp_path / "auto", *AUTO, "--json").out)["precisions"]
        == (told["precisions"])
    )


def test_an_image_gets_the_same_numbers_in_any_part_and_in_a_resumed_run(
    camcli: Camcli, guarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert camcli("run", guarded, "--out", whole, *AUTO).code == 0
    expected = by_id(whole)
    for shard in ("1/3", "2/3", "3/3"):
        assert camcli("run", guarded, "--out", parts, *AUTO, "--shard", shard).code == 0
    assert camcli("merge", parts).code == 0
    assert by_id(parts) == expected
    assert manifest(parts)["precisions"] == manifest(whole)["precisions"]

    results = whole / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[::5]))
    monkeypatch.setattr("camcli.pipeline.prepare.choose_precision", lambda *_: pytest.fail("chosen again"))
    assert camcli("run", guarded, "--out", whole, *AUTO).code == 0
    assert by_id(whole) == expected
    assert manifest(whole)["precision"]["guard"] == {"logits": 0.075, "maps": {"gradcam": 0.0}}


def test_another_guard_is_another_config(
    camcli: Camcli, guarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("run", guarded, "--out", tmp_path / "out", *AUTO)
    assert camcli(*words, "--limit", "4").code == 0
    (tmp_path / "out" / "run.json").unlink()
    other = Choice("bf16", "for the test", Guard(0.04, {"gradcam": 0.0}))
    monkeypatch.setattr("camcli.pipeline.prepare.choose_precision", lambda *_: other)
    assert camcli(*words).code == 2
    assert camcli(*words, "--keep-going").code == 0


def test_a_process_for_each_device_keeps_the_guard(
    camcli: Camcli, guarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert camcli("run", guarded, "--out", tmp_path / "whole", *AUTO).code == 0
    tasks: list[workers.Task] = []

    def at_once(task: workers.Task, devices: Any, stopwatch: Any, items: Any, stopped: Any, record: Any) -> None:
        tasks.append(task)
        sent: list[Any] = []
        sender = type("Sender", (), {"send": lambda self, outcome: sent.append(outcome)})()
        workers._explained(task.on(devices[0], 1), items, sender, multiprocessing.Event())
        record(one for one in sent if one != workers.READY)

    monkeypatch.setattr("camcli.pipeline.run.in_processes", at_once)
    out = tmp_path / "devices"
    assert camcli("run", guarded, "--out", out, *AUTO, "-s", "runtime.device=cpu,cpu").code == 0
    assert tasks
    found, expected = by_id(out), by_id(tmp_path / "whole")
    assert {name: r["precision"] for name, r in found.items()} == {n: r["precision"] for n, r in expected.items()}


class Overflows(RedDetector):
    """Its logits leave the range of fp16 where an image is bright."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,2]."""
        raw: Tensor = super().forward(x)
        return (raw * torch.where(x.mean(dim=(1, 2, 3)) > 0.6, 1e8, 1.0)[:, None].to(raw.dtype)).to(raw.dtype)


def test_what_overflows_in_16_bits_is_explained_in_fp32() -> None:
    engine = Engine(loaded(Overflows()), [LAYER], [GRADCAM], precision="fp16")
    bright, dark = coloured(2).clamp(min=200), coloured(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "network", half_network)
        doubts = partial(Guard(0.0, {"gradcam": 0.0}).doubts, choose=likeliest, activation="softmax")
        engines = Engines([engine], Engine.explain, likeliest, 4, doubts)
        found = engines._answers(engine, torch.cat([bright, dark]))
        assert [type(one) for one in found] == [ItemError, ItemError, Explanation, Explanation]
        engines._ask_again(doubts, engine, torch.cat([bright, dark]), found)
    assert [one.precision for one in found if isinstance(one, Explanation)] == ["fp32", "fp32", "fp16", "fp16"]


def half_network(self: Engine, inputs: Tensor) -> Tensor:
    """As a GPU computes in fp16, whose range ends at 65,504."""
    logits: Tensor = self.module(inputs)
    return logits.half().float() if self.precision == "fp16" else logits


@pytest.mark.parametrize(("batch", "again"), [(1, 1), (16, 1), (32, 2), (48, 4), (128, 8), (500, 32)])
def test_how_many_are_explained_again_at_a_time(batch: int, again: int) -> None:
    assert redo_size(batch) == again


@pytest.mark.usefixtures("able")
def test_a_run_says_what_it_chose_and_a_resumed_one_keeps_to_it(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camcli.engine.precision.WORTHWHILE", 1)
    save_image(tmp_path / "in" / "1.png", 300, 200)
    (tmp_path / "in" / "0.jpg").write_text("no image")
    words = ("run", tmp_path / "in", SHAPES, "--out", tmp_path / "out", "-s", "runtime.precision=auto")
    assert camcli(*words, "-s", "runtime.batch_size=auto").code == 1
    told = manifest(tmp_path / "out")
    assert told["precision"]["used"] == "bf16"
    assert told["precision"]["why"].startswith("of 13 images ")
    assert told["config"]["runtime"]["precision"] == "auto"
    used = {"precision": "bf16", "guard": told["precision"]["guard"], "backend": "torch"}
    assert told["identity"]["runtime"] == used
    assert 1 <= told["batch_size"] <= 32

    with monkeypatch.context() as patch:
        for chosen in ("choose_precision", "find_batch_size"):
            patch.setattr(f"camcli.pipeline.prepare.{chosen}", lambda *_: pytest.fail("chosen again"))
        assert camcli(*words, "-s", "runtime.batch_size=auto", "--retry-failed").code == 1
    again = manifest(tmp_path / "out")
    assert (again["precision"], again["batch_size"]) == (told["precision"], told["batch_size"])

    save_image(tmp_path / "in" / "00.png", 300, 200, seed=1)
    monkeypatch.setattr("camcli.pipeline.prepare.choose_precision", lambda *_: pytest.fail("chosen again"))
    assert camcli(*words, "-s", "runtime.batch_size=auto").code == 1
    assert manifest(tmp_path / "out")["precision"] == told["precision"]
    assert len(lines(tmp_path / "out")) == 15
    assert camcli(*words, "-s", "runtime.precision=bf16", "-s", "runtime.batch_size=8").code == 2


@pytest.fixture
def tf32() -> Iterator[None]:
    """Switched on inside, and as it was outside."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
def test_fp32_on_a_gpu_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a GPU is there or not: what counts is that its name is taken."""
    device("cpu")
    assert torch.backends.cudnn.allow_tf32
    monkeypatch.setattr("torch.empty", lambda *shape, device: None)
    assert device("cuda:0").type == "cuda"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_an_explicit_precision_is_not_probed(camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "in" / "1.png", 80, 60)
    monkeypatch.setattr("camcli.pipeline.prepare.choose_precision", lambda *_: pytest.fail("probed"))
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        assert camcli("run", tmp_path / "in", "--out", out, *TINY, "-s", f"runtime.precision={precision}").code == 0
        assert manifest(out)["precision"] == {"used": precision, "why": "as asked", "guard": None}


@pytest.mark.parametrize(
    ("images", "batch", "at_once", "expected"),
    [(12, 16, 1, 12), (12, 16, 2, 8), (100, 16, 2, 16), (64, 16, 8, 8), (3, 16, 2, 2), (1, 16, 8, 1), (40, 8, 4, 8)],
)
def test_batches_are_even_over_all_that_work_at_once(images: int, batch: int, at_once: int, expected: int) -> None:
    assert even_batches(images, batch, at_once) == expected


def test_a_batch_size_is_found_within_memory_and_need(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(loaded(RedDetector()), [LAYER], [GRADCAM])
    seconds = {4: 1.0, 8: 1.2, 16: 1.5, 32: 2.99}
    monkeypatch.setattr("camcli.engine.batch_size._seconds", lambda engine, size: seconds[size])
    assert find_batch_size(engine, 1000) == 16
    assert find_batch_size(engine, 9) == 8
    assert find_batch_size(engine, 2) == 4

    def short(engine: Engine, size: int) -> float:
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seconds[size]

    monkeypatch.setattr("camcli.engine.batch_size._seconds", short)
    assert find_batch_size(engine, 1000) == 8


def test_the_times_of_a_real_engine_are_taken() -> None:
    assert find_batch_size(Engine(loaded(RedDetector()), [LAYER], [GRADCAM]), 1000) in (4, 8, 16, 32)


@pytest.mark.usefixtures("able")
@pytest.mark.skipif(not REAL_WEIGHTS.is_dir(), reason="no real weights beside the checkout")
def test_nothing_changes_on_crops_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of `python -m tests.benchmarks.precision`, however many are explained again."""
    monkeypatch.setattr("camcli.engine.precision.MOST_REDONE", 1.0)
    (tmp_path / "in").mkdir()
    items = crops(tmp_path / "in", 96)
    (tmp_path / "squeezenet.yaml").write_text(MODELS["squeezenet"])
    config = load_config(tmp_path / "squeezenet.yaml").config
    full, auto = (explained(config, asked, items, tmp_path / asked) for asked in ("fp32", "auto"))
    found = differences(full, auto)
    assert (found["used"], found["top-1 or target changed"], found["maps below 0.99"]) == ("bf16", 0, 0)
    assert 0 < found["explained again"] < 1
    assert any(not np.array_equal(full.maps[name], auto.maps[name]) for name in full.maps)
