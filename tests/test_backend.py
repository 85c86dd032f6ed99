"""The network before the layer in another engine: what the rest needs of it, the same maps, caches and fallbacks."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camcli.engine import backend, openvino
from camcli.engine.backbone import Asked, Backbone, Inseparable, Wanted, plan
from camcli.engine.backend import Trial, Used, choose_backend
from camcli.engine.engine import Engine
from camcli.engine.layers import resolve_layer
from camcli.engine.methods import METHODS
from camcli.engine.precision import Choice, Guard, correlation
from camcli.engine.targets import likeliest
from camcli.engine.tuning import tune
from tests import nets
from tests.conftest import REPO, SHAPES, Ended, loaded
from tests.test_engine import explanations, layer_of, pixels
from tests.test_resume import contents, images
from tests.test_run import TINY, lines, manifest

Camcli = Callable[..., Ended]
FP32 = Choice("fp32", "as asked")
OPENVINO = ("-s", "runtime.backend=openvino", "-s", "runtime.threads=2")
needs_openvino = pytest.mark.skipif(not openvino.installed(), reason="needs the extra openvino")


@dataclass(frozen=True)
class InTorch:
    """Computes what is wanted with the module itself, and counts the forward passes."""

    wanted: Wanted
    passes: list[int]

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        self.passes.append(len(inputs))
        with torch.no_grad():
            found: list[Tensor] = self.wanted(inputs.permute(0, 2, 3, 1))
        return found

    def replica(self) -> InTorch:
        return self


def asked(spared: Any) -> list[str]:
    """The paths of the modules whose outputs are computed."""
    return [a.path for a in spared if any(isinstance(leaf, Asked) for leaf in a.leaves)]


@pytest.mark.parametrize(
    ("name", "precision"), [("resnet18", "fp32"), ("resnet18", "bf16"), ("densenet121", "fp32"), ("swin_t", "fp32")]
)
def test_the_rest_of_a_network_needs_the_layer_alone(name: str, precision: Any) -> None:
    net = nets.NETS[name]
    model = loaded(net.build(), classes=nets.CLASSES)
    engine = Engine(model, [net.layer(3)], [METHODS.get("gradcam"), METHODS.get("ablationcam")], precision=precision)
    engine.options = {"ablationcam": METHODS.get("ablationcam").options(max_channels=3)}  # type: ignore[misc]
    batch = pixels(3, net.side)
    plain = explanations(engine, batch, [1])
    spared = plan(engine.module, engine.network, engine.taps, engine.normalise(pixels(2, net.side, seed=5)))
    assert asked(spared) == [net.path]
    compute = InTorch(Wanted(engine.module, spared), [])
    engine.backbones = {precision: Backbone(spared, compute)}
    ours = explanations(engine, batch, [1])
    assert compute.passes == [3]
    for one, other in zip(plain, ours, strict=True):
        assert one.logits == pytest.approx(other.logits, abs=1e-5 if precision == "fp32" else 0.3)
        for a, b in zip(one.heatmaps, other.heatmaps, strict=True):
            assert correlation(a.heat, b.heat) > (0.99999 if precision == "fp32" else 0.97), a.method


class Writing(nn.Module):
    """Writes to what a module before the layer has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.last, self.head = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, 2, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,5]."""
        maps = F.relu(self.before(x), inplace=True)
        logits: Tensor = self.head(self.last(maps).mean(dim=(2, 3)))
        return logits


class Turning(Writing):
    """A module before the layer returns a tensor that goes by rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,5]."""
        maps = self.before(x)
        rows = self.spread(maps.permute(2, 0, 3, 1))
        logits: Tensor = self.head(self.last(rows.permute(1, 3, 0, 2)).mean(dim=(2, 3)))
        return logits


def test_what_the_network_writes_to_has_memory_of_its_own() -> None:
    torch.manual_seed(0)
    module = Writing().eval().requires_grad_(False)
    x = torch.randn(3, 3, 32, 32)
    spared = plan(module, module, layer_of("last").taps, x[:2])
    found = Backbone(spared, InTorch(Wanted(module, spared), []))(module, x)
    assert [call.output.shape for call in found] == [(3, 4, 8, 8), (3, 4, 4, 4)]
    assert (asked(spared), float(found[0].output.abs().max())) == (["last"], 0)
    assert torch.equal(found[1].output, module.last(module.before(x).relu()))


def test_a_network_that_does_not_go_by_images_is_inseparable() -> None:
    torch.manual_seed(0)
    module = Turning().eval().requires_grad_(False)
    with pytest.raises(Inseparable, match="spread returns a tensor that does not go by images"):
        plan(module, module, layer_of("last").taps, torch.randn(3, 3, 32, 32))


def engine_of(seed: int = 0, precision: Any = "fp32") -> Engine:
    """A tuned residual network with random weights and 5 classes, for 64 px."""
    torch.manual_seed(seed)
    model = loaded(nets.trained(timm.create_model("test_resnet", num_classes=5)), classes=5)
    found = Engine(model, [resolve_layer(model.module, (64, 64))], [METHODS.get("gradcam")], precision=precision)
    tune(found)
    return found


def trial(inputs: Tensor, **more: Any) -> Trial:
    """For images like these, by fours, with a network from the cache where an earlier test has left it."""
    return replace(Trial(1000, lambda: inputs, likeliest, 4, 1, "residual"), **more)


@needs_openvino
def test_openvino_gives_the_maps_of_torch() -> None:
    """Of all kinds of methods, for a batch of any size, in any company; a block also needs what goes around it."""
    torch.manual_seed(0)
    small = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}
    model = loaded(timm.create_model("vit_tiny_patch16_224", num_classes=5, **small).eval(), classes=5)
    methods = [METHODS.get(m) for m in ("gradcam", "layercam", "eigencam", "ablationcam", "guided-backprop")]
    engine = Engine(model, [resolve_layer(model.module, (64, 64))], methods)
    tune(engine)
    batch = pixels(7)
    plain = explanations(engine, batch, [1, 3])
    used, precision = choose_backend(engine, "openvino", FP32, trial(batch, key=None))
    assert (used, precision.used, list(engine.backbones)) == (Used("openvino", "as asked"), "fp32", ["fp32"])
    assert asked(engine.backbones["fp32"].spared) == ["blocks.1", "blocks.2.norm1"]
    ours = explanations(engine, batch, [1, 3])
    for one, other in zip(plain, ours, strict=True):
        assert one.logits == pytest.approx(other.logits, rel=1e-4, abs=1e-5)
        for a, b in zip(one.heatmaps, other.heatmaps, strict=True):
            assert (a.method, a.target and a.target.index) == (b.method, b.target and b.target.index)
            assert correlation(a.heat, b.heat) > 0.9999, a.method
    inputs = engine.normalise(batch)
    for compute in (engine.backbones["fp32"].compute, engine.replica().backbones["fp32"].compute):
        whole = compute(inputs)
        for i in range(7):
            alone = compute(inputs[i : i + 1])
            assert all(torch.equal(one[0], many[i]) for one, many in zip(alone, whole, strict=True))


@needs_openvino
def test_bf16_is_left_to_torch_where_it_changes_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, bf16, batch = engine_of(precision="bf16"), Choice("bf16", "as asked"), pixels(6)
    used, _ = choose_backend(engine, "openvino", bf16, trial(batch))
    assert used == Used("openvino", "as asked")
    assert explanations(engine, batch, [1])[0].precision == "bf16"
    monkeypatch.setattr(backend, "AGREEMENT", 1.1)
    used, _ = choose_backend(engine, "openvino", bf16, trial(batch))
    assert used == Used("torch", "openvino explains 6 of 6 images otherwise than torch in fp32")
    assert not engine.backbones
    guarded, coarse = replace(bf16, guard=Guard(1.0, {"gradcam": 1.0})), Choice("fp32", "bf16 is too coarse")
    monkeypatch.setattr(backend, "choose_precision", lambda *_: coarse)
    found = choose_backend(engine, "openvino", guarded, trial(batch))
    assert found == (Used("torch", "in openvino, bf16 is too coarse"), guarded)


@needs_openvino
def test_auto_takes_what_is_faster_and_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, batch = engine_of(), pixels(5)
    monkeypatch.setattr(backend, "_seconds", lambda one, _: 0.2 if one.backbones else 0.4)
    monkeypatch.setattr(openvino, "known", lambda key: False)
    few, _ = choose_backend(engine, "auto", FP32, trial(batch, images=499))
    assert few == Used("torch", "openvino would have to save more than its start of about 10 s on 499 images")
    many, _ = choose_backend(engine, "auto", FP32, trial(batch, images=501))
    why = "50.0 ms an image on a core instead of 100.0, and the answers of torch on the probe"
    assert many == Used("openvino", why)
    engine.backbones = {}
    parts, _ = choose_backend(engine, "auto", FP32, trial(batch, images=501, together=True))
    assert parts == Used("torch", "parts of a run must choose alike: set runtime.backend to openvino in all of them")
    none, _ = choose_backend(engine, "auto", FP32, trial(torch.empty(0)))
    assert none == Used("torch", "there was no image to compare backends on")
    monkeypatch.setattr(backend, "_seconds", lambda one, _: 0.4)
    slow, _ = choose_backend(engine, "auto", FP32, trial(batch, images=501))
    assert (slow.used, slow.why[:64]) == ("torch", "openvino takes 100.0 ms an image on a core instead of 100.0, and")


@needs_openvino
def test_what_is_in_the_cache_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, other, batch = engine_of(), engine_of(seed=1), pixels(4)
    assert choose_backend(engine, "openvino", FP32, trial(batch))[0].used == "openvino"
    file = openvino._file("residual")
    assert file is not None
    wrong = openvino.library().Core().read_model(file)
    file.write_text("no network")
    assert choose_backend(other, "openvino", FP32, trial(batch))[0].used == "openvino"
    monkeypatch.setattr(openvino, "_export", lambda *_: wrong)  # of the same shape, with other weights
    assert choose_backend(other, "openvino", FP32, trial(batch))[0].used == "openvino"
    used, _ = choose_backend(engine, "openvino", FP32, trial(batch))
    assert used.used == "openvino"
    used, _ = choose_backend(other, "openvino", FP32, trial(batch))
    assert (used, other.backbones) == (Used("torch", "openvino computes other logits than torch"), {})


ALONE = """
import sys, socket
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("a connection:", event, args, flush=True)
        raise SystemError("no network here")
sys.addaudithook(refuse)
from camcli.cli.app import main
try:
    main()
finally:
    assert "openvino" in sys.modules
    assert "openvino_telemetry" not in sys.modules, "it counts its users"
"""


@needs_openvino
def test_a_run_in_openvino_asks_nobody_and_is_a_run(camcli: Camcli, tmp_path: Path) -> None:
    """In a process of its own, where all connections are refused; then again, from the cache."""
    words = ["run", str(SHAPES), "-s", "runtime.batch_size=4", *OPENVINO]
    first = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, *words, "--out", str(tmp_path / "first")],
        capture_output=True,
        text=True,
        cwd=REPO,
        check=False,
    )
    assert (first.returncode, "a connection" in first.stdout + first.stderr) == (0, False), first.stderr
    told = manifest(tmp_path / "first")
    assert told["backend"] == {"used": "openvino", "why": "as asked"}
    assert (told["identity"]["runtime"]["backend"], told["notes"]) == ("openvino", [])
    assert "openvino" in told["versions"]
    assert camcli("run", SHAPES, "--out", tmp_path / "torch", "-s", "runtime.batch_size=4").code == 0
    for one, other in zip(lines(tmp_path / "torch"), lines(tmp_path / "first"), strict=True):
        assert [p["label"] for p in one["predictions"]] == [p["label"] for p in other["predictions"]]
        assert [p["logit"] for p in one["predictions"]] == pytest.approx(
            [p["logit"] for p in other["predictions"]], abs=1e-4
        )
        assert one["heatmaps"][0]["peak"] == other["heatmaps"][0]["peak"]
    assert camcli(*words, "--out", tmp_path / "again").code == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "first")


@needs_openvino
def test_a_run_goes_on_in_the_backend_that_it_was_begun_in(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = images(tmp_path / "in", 5), tmp_path / "out"
    words = ("run", folder, "--out", out, "-s", "runtime.batch_size=4", *OPENVINO)
    assert camcli(*words).code == 0
    whole = contents(out)
    next((out / "overlays").iterdir()).unlink()
    assert camcli(*words).code == 0
    assert contents(out) == whole
    next((out / "overlays").iterdir()).unlink()
    monkeypatch.setattr(openvino, "installed", lambda: "")
    ended = camcli(*words)
    assert ended.code == 2
    assert "the run was begun with openvino, and here openvino is not installed" in ended.err
    assert camcli(*words, "-s", "runtime.backend=torch").code == 2  # other numbers, as with another precision


def test_without_the_extra_there_is_a_word_for_it(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "installed", lambda: "")
    folder = images(tmp_path / "in", 1)
    ended = camcli("run", folder, "--out", tmp_path / "out", *TINY, *OPENVINO)
    assert ended.code == 2
    assert "python -m pip install 'camcli[openvino]', or set runtime.backend to torch" in ended.err
    assert not (tmp_path / "out" / "run.json").exists()
    assert camcli("run", folder, "--out", tmp_path / "out", *TINY, "-s", "runtime.backend=auto").code == 0
    assert manifest(tmp_path / "out")["backend"]["used"] == "torch"
    assert "openvino is not installed" in manifest(tmp_path / "out")["backend"]["why"]
    assert "not installed" in camcli("doctor").out


@needs_openvino
def test_a_network_that_cannot_be_exported_is_computed_by_torch(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: object) -> object:
        raise RuntimeError("aten::spiral has no translation\nand more")

    monkeypatch.setattr(openvino, "_export", broken)
    ended = camcli("run", images(tmp_path / "in", 1), "--out", tmp_path / "out", *TINY, *OPENVINO)
    assert ended.code == 0
    why = "openvino cannot compute this network: aten::spiral has no translation"
    told = manifest(tmp_path / "out")
    assert (told["backend"], told["identity"]["runtime"]["backend"]) == ({"used": "torch", "why": why}, "torch")
    assert told["notes"] == [f"torch computes the whole network: {why}"]


@needs_openvino
def test_python_callers_have_it_too() -> None:
    import camcli

    star = str(SHAPES / "12-star.png")
    [plain], [ours] = (camcli.explain(star, backend=name, batch_size=4) for name in ("torch", "openvino"))
    assert np.abs(plain.heatmaps[0].heat - ours.heatmaps[0].heat).max() < 1e-3
    assert plain.predictions[0].label == ours.predictions[0].label == "star"


class SignalStack(ctypes.Structure):
    """`stack_t` of <signal.h>."""

    _fields_: ClassVar = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def signal_stack() -> tuple[int | None, int, int]:
    """Where this thread runs the handlers of signals."""
    found = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.place, found.flags, found.size


@needs_openvino
def test_a_compiled_network_leaves_no_stack_for_signals_behind() -> None:
    """A thread whose stack for signals is freed dies of the next one."""
    import camcli

    before = signal_stack()
    explainer = camcli.Explainer("demo", backend="openvino")
    assert explainer([SHAPES / "12-star.png"])
    assert signal_stack() == before
    del explainer
    gc.collect()
    assert signal_stack() == before
