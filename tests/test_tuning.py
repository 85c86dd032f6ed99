"""A tuned network is the same function: folded norms, memory layouts, compiled parts, replicas on other threads."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from camcli.engine.engine import Engine
from camcli.engine.folding import fold
from camcli.engine.layers import resolve_layer
from camcli.engine.methods import METHODS
from camcli.engine.tap import cut
from camcli.engine.tuning import compile_backbone, replicas, tune
from camcli.models.loaded import LoadedModel
from tests import tuned
from tests.conftest import Ended, loaded, save_image
from tests.nets import trained
from tests.test_engine import GRADCAM, correlation, explanations, layer_of, pixels
from tests.test_run import TINY

Camcli = Callable[..., Ended]


def image(side: int = 64) -> Tensor:
    """float32 [2,3,H,W]."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("build", "norms"),
    [
        (lambda: torchvision.models.resnet18(weights=None), 20),
        (lambda: torchvision.models.mobilenet_v3_small(weights=None), 34),
        (lambda: torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False), 57),
        (lambda: timm.create_model("resnet18"), 20),
        (lambda: timm.create_model("efficientnet_b0"), 49),
        (lambda: timm.create_model("convnext_atto"), 0),
    ],
    ids=["resnet18", "mobilenet_v3", "googlenet", "timm-resnet18", "efficientnet_b0", "convnext"],
)
def test_folded_norms_give_the_same_logits(build: Callable[[], nn.Module], norms: int) -> None:
    torch.manual_seed(0)
    module = trained(build())
    before = module(image())
    assert fold(module, image()) == norms
    assert (module(image()) - before).abs().max() <= 1e-4 * before.abs().max()


def test_norms_with_small_variances_are_folded_with_their_constant() -> None:
    torch.manual_seed(0)
    module = trained(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    variance = module.get_submodule("1").running_var
    assert isinstance(variance, Tensor)
    variance.fill_(1e-4)
    before = module(image(16))
    assert fold(module, image(16)) == 1
    assert (module(image(16)) - before).abs().max() <= 1e-4 * before.abs().max()


class Unfoldable(nn.Module):
    """Norms that look like pairs with a convolution, and are none."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.read = nn.Conv2d(3, 3, 3)
        self.third = nn.BatchNorm2d(3)
        self.alone = nn.Conv2d(3, 3, 3)
        self.without = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,3]."""
        x = self.second(self.twice(self.first(self.twice(x))))
        y = self.read(x)
        x = self.third(y) + y
        logits: Tensor = self.without(self.alone(x)).mean(dim=(2, 3))
        return logits


def test_a_convolution_that_others_use_too_is_left_alone() -> None:
    torch.manual_seed(0)
    module = trained(Unfoldable())
    before = module(image(16))
    assert fold(module, image(16)) == 0
    assert torch.equal(module(image(16)), before)


class OnePair(nn.Module):
    """A norm behind a convolution and a linear layer, a convolution that two read, and one pair."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shared, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.read, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.other, self.own = nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,3]."""
        x = self.shared(self.conv(x)).relu()
        y = self.read(self.shared(self.linear(x.movedim(1, -1)).movedim(-1, 1)).relu())
        logits: Tensor = self.own(self.other(self.norm(y) + y)).mean(dim=(2, 3))
        return logits


def test_the_only_pair_is_folded_beside_others_that_look_like_one() -> None:
    torch.manual_seed(0)
    module = trained(OnePair())
    before = module(image(16))
    assert fold(module, image(16)) == 1
    assert (module(image(16)) - before).abs().max() <= 1e-4 * before.abs().max()


class ReadsWeights(nn.Module):
    """Uses a convolution's weights besides calling it, which no watcher of calls can see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,4]."""
        logits: Tensor = self.norm(self.conv(x)).mean(dim=(2, 3)) + self.conv.weight.sum(dim=(1, 2, 3))
        return logits


def test_folding_that_changes_the_logits_is_undone() -> None:
    torch.manual_seed(0)
    module = trained(ReadsWeights())
    whole = copy.deepcopy(module)
    assert fold(module, image(16)) == 0
    assert torch.equal(module(image(16)), whole(image(16)))
    assert "forward" not in vars(module.norm)


SPARED = {
    "a convolution": ("resnet18d", "layer4.1.conv2", 1),
    "a container that ends in one": ("resnet18d", "conv1", 1),
    "a compound convolution": ("legacy_xception", "conv4", 1),
    "a norm": ("resnet18d", "layer4.1.bn2", 0),
    "an identity inside a norm": ("lcnet_050", "blocks.5.1.bn2.drop", 0),
    "an activation inside a norm": ("lcnet_050", "blocks.5.1.bn2.act", 0),
}


@pytest.mark.parametrize(("name", "path", "spared"), SPARED.values(), ids=list(SPARED))
def test_what_a_tap_sees_is_not_folded_away(name: str, path: str, spared: int) -> None:
    torch.manual_seed(0)
    module = trained(timm.create_model(name, num_classes=3))
    taps = layer_of(path).taps
    with cut(module, taps) as before:
        module(image())
    pairs = fold(copy.deepcopy(module), image())
    assert fold(module, image(), taps) == pairs - spared
    with cut(module, taps) as after:
        module(image())
    [expected], [found] = before.values(), after.values()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", tuned.QUICK)
def test_tuned_maps_are_those_of_a_full_backward_through_the_network_as_built(name: str) -> None:
    found = list(tuned.examine(name, seed=tuned.QUICK[name], rounding=False, places=4, side=64))
    assert len(found) == 4
    assert [agreement for agreement in found if not agreement.holds] == []


def copy_of(model: LoadedModel) -> LoadedModel:
    """With weights of its own."""
    return loaded(copy.deepcopy(model.module), classes=len(model.labels))


def test_a_method_that_looks_at_biases_gets_the_network_as_it_was_built() -> None:
    torch.manual_seed(0)
    model = loaded(trained(torchvision.models.resnet18(weights=None, num_classes=3)), classes=3)
    engine = Engine(copy_of(model), [layer_of("layer4")], [METHODS.get("fullgrad")])
    tune(engine)
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(engine.module.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_twins_share_weights_and_explain_at_the_same_time(name: str) -> None:
    torch.manual_seed(0)
    model = loaded(timm.create_model(name, num_classes=5), classes=5)
    size = 64 if name == "test_resnet" else 160
    engine = Engine(model, [resolve_layer(model.module, (size, size))], [GRADCAM])
    engines = replicas(engine, 3)
    assert len({id(e.module) for e in engines}) == 3
    assert len({p.data_ptr() for e in engines for p in e.module.parameters()}) == len(list(model.module.parameters()))
    batches = [pixels(3, size, seed) for seed in range(9)]
    alone = [explanations(engine, batch, [2]) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda i: [explanations(engines[i], batch, [2]) for batch in batches[i::3]], range(3)))
    together = [parts[i % 3][i // 3] for i in range(9)]
    for ours, theirs in zip(alone, together, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a.heatmaps[0].heat, b.heatmaps[0].heat)
            assert a.predictions == b.predictions


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_the_same_maps() -> None:
    torch.manual_seed(0)
    model = loaded(trained(timm.create_model("test_resnet", num_classes=5)), classes=5)
    layer = resolve_layer(model.module, (64, 64))
    plain = explanations(Engine(model, [layer], [GRADCAM]), pixels(2), [1, 3])
    engine = Engine(copy_of(model), [layer], [GRADCAM])
    tune(engine)
    compile_backbone(engine)
    for a, b in zip(plain, explanations(engine, pixels(2), [1, 3]), strict=True):
        for one, other in zip(a.heatmaps, b.heatmaps, strict=True):
            assert correlation(one.heat, other.heat) > 0.9999
            assert one.target is not None
            assert other.target is not None
            assert one.target.logit == pytest.approx(other.target.logit, rel=1e-3)


def test_what_cannot_be_compiled_is_said_before_the_run(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_image(tmp_path / "in" / "x.png", 80, 60)
    words = ("run", tmp_path / "in", "--out", tmp_path / "out", *TINY, "-s", "runtime.backend=compile")
    ended = camcli(*words, "-s", "methods=guided-backprop")
    assert (ended.code, "guided-backprop" in ended.err) == (2, True), ended.err

    def broken(*words: object, **more: object) -> object:
        def fail(*inputs: object) -> object:
            raise RuntimeError("no C++ compiler was found\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    ended = camcli(*words)
    assert ended.code == 2
    assert "runtime.backend: compile fails here: no C++ compiler was found; set it to torch" in ended.err
    assert not (tmp_path / "out" / "run.json").exists()
