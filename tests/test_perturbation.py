"""Re-scoring methods: what runs again, what is skipped, and against naive loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from camcli.config.schema import OptionsConfig
from camcli.engine.engine import Engine
from camcli.engine.layers import Layout, Tap, TargetLayer
from camcli.engine.methods import METHODS
from camcli.engine.methods.rise import RandomMasks, random_masks
from camcli.engine.tap import Tail
from camcli.errors import MethodError
from camcli.images.preprocess import Preprocess
from tests import oracles
from tests.conftest import loaded
from tests.nets import calibrated, inputs

CLASSES = 6


def engine_at(module: nn.Module, tap: Tap, side: int, name: str, **options: float) -> Engine:
    """For one method at one tap."""
    preprocess = Preprocess((side, side), (side, side), (0, 0, 0), (1, 1, 1), "bilinear", "center")
    model = loaded(calibrated(module, inputs(4, side)), preprocess, CLASSES)
    return Engine(model, [TargetLayer((tap,))], [METHODS.get(name)], options=OptionsConfig.model_validate(options))


def raw_maps(engine: Engine, x: Tensor, target: int) -> Tensor:
    """[B,h,w]."""
    done = engine.forward(x)
    target_weights = torch.zeros_like(done.logits)
    target_weights[:, target] = 1
    [raw] = engine.methods[0].compute(*engine.views(done, target_weights))
    return raw.sum(1) if raw.dim() == 4 else raw


def resnet() -> nn.Module:
    """A small torchvision network with shared in-place ReLUs and 48 channels at its end."""
    torch.manual_seed(0)
    module: Any = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    module.inplanes = 256
    module.layer4 = module._make_layer(BasicBlock, 48, 2, stride=2)
    module.fc = nn.Linear(48, CLASSES)
    return module  # type: ignore[no-any-return]


TAPS = {
    "a whole stage": ("resnet18", Tap("layer4", Layout("nchw", (2, 2)))),
    "inside a block, beside its skip connection": ("resnet18", Tap("layer4.1.bn1", Layout("nchw", (2, 2)))),
    "the second call of a shared in-place module": ("resnet18", Tap("layer4.1.relu", Layout("nchw", (2, 2)), 1)),
    "tokens with a prefix, beside a skip connection": ("vit", Tap("blocks.4.norm1", Layout("tokens", (4, 4), 1))),
    "dense connections around the layer": (
        "densenet",
        Tap("features.denseblock4.denselayer2.norm2", Layout("nchw", (2, 2))),
    ),
}


def build(name: str) -> nn.Module:
    """Untrained, seeded."""
    torch.manual_seed(0)
    if name == "vit":
        module: nn.Module = timm.create_model("test_vit", img_size=64, num_classes=CLASSES)
        return module
    if name == "densenet":
        dense: nn.Module = torchvision.models.DenseNet(8, (2, 2, 2, 3), 16, num_classes=CLASSES)
        return dense
    return resnet()


@pytest.mark.parametrize("place", TAPS.values(), ids=list(TAPS))
def test_ablation_is_the_naive_loop(place: tuple[str, Tap]) -> None:
    name, tap = place
    engine = engine_at(build(name), tap, 64, "ablationcam", chunk=7)
    x = inputs(2, 64)
    ours, naive = raw_maps(engine, x, 2), naive_ablation(engine.module, tap, x, 2)
    for a, b in zip(ours, naive, strict=True):
        assert oracles.correlation(a.numpy(), b.numpy()) > 0.9999
        assert float((a - b).abs().max() / b.abs().max()) < 1e-3


def naive_ablation(module: nn.Module, tap: Tap, x: Tensor, target: int) -> Tensor:
    """One forward of the whole network for each channel; only the tap's own call is changed."""
    calls = Counter[str]()
    kept: list[Tensor] = []

    def run(channel: int | None) -> Tensor:
        calls.clear()

        def hook(child: nn.Module, args: object, output: Tensor) -> Tensor:
            calls["tap"] += 1
            if calls["tap"] - 1 != tap.call:
                return output
            kept.append(output.clone())
            changed = output.clone()
            if channel is not None:
                tap.layout.to_maps(changed)[:, channel] = 0
            return changed

        handle = module.get_submodule(tap.path).register_forward_hook(hook)
        with torch.no_grad():
            logits: Tensor = module(x)
        handle.remove()
        return logits[:, target]

    y = run(None)
    maps = tap.layout.to_maps(kept[0])
    falls = torch.stack([y - run(c) for c in range(maps.shape[1])], dim=1)
    return ((falls / y.abs()[:, None])[:, :, None, None] * maps).sum(1)


def test_ablation_runs_the_backbone_once_and_the_tail_in_chunks() -> None:
    engine = engine_at(resnet(), TAPS["a whole stage"][1], 64, "ablationcam", chunk=10)
    runs: Counter[str] = Counter()
    sizes: list[int] = []
    conv1, pool = engine.module.get_submodule("layer3.0.conv1"), engine.module.get_submodule("avgpool")
    forward = conv1.forward
    conv1.forward = lambda x: runs.update(backbone=1) or forward(x)
    pool.register_forward_hook(lambda child, args, output: sizes.append(len(output)))
    raw_maps(engine, inputs(1, 64), 2)
    assert runs["backbone"] == 1
    assert max(sizes) <= 10
    assert sum(sizes) <= 1 + 2 + 48


def test_a_tail_that_cannot_run_alone_is_refused() -> None:
    class Forgetful(nn.Module):
        """Its logits depend on the size of the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            """[B,3,H,W] -> logits [B,CLASSES]."""
            logits: Tensor = self.head(self.conv(x).mean((2, 3))) * len(x)
            return logits

    engine = engine_at(Forgetful(), Tap("conv", Layout("nchw", (8, 8))), 64, "ablationcam")
    with pytest.raises(MethodError, match="'conv' cannot be run alone"):
        raw_maps(engine, inputs(1, 64), 0)


def test_an_error_in_the_tail_restores_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_at(resnet(), TAPS["a whole stage"][1], 64, "ablationcam")
    before = [sorted(vars(child)) for child in engine.module.modules()]
    done = engine.forward(inputs(1, 64))
    tap = engine.taps[0]
    tail = Tail(tap, done.kept[tap], done.past[tap], done.inputs, done.logits, interrupted)
    with pytest.raises(KeyboardInterrupt):
        tail(0, tap.layout.to_maps(done.kept[tap]))
    assert [sorted(vars(child)) for child in engine.module.modules()] == before


def interrupted(inputs: Tensor) -> Tensor:
    """As if the user had pressed Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("path", ["layer4", "layer4.1.bn2"])
def test_score_cam_is_the_naive_loop(path: str) -> None:
    """With and without negative activations; equal masks share a forward, and channels of zeros are left out."""
    engine = engine_at(resnet(), Tap(path, Layout("nchw", (2, 2))), 64, "scorecam")
    x = inputs(1, 64)
    maps = engine.forward(x).kept[engine.taps[0]].detach()
    naive = oracles.score_cam(engine.module, maps, x, 2)
    assert oracles.correlation(raw_maps(engine, x, 2).numpy(), naive.numpy()) > 0.9999


def test_score_cam_in_steps_and_under_noise_are_naive_loops() -> None:
    noise = torch.Generator().manual_seed(0)
    noises = [0.5 * torch.randn(64, 64, generator=noise) for _ in range(2)]
    changes: dict[str, list[Callable[[Tensor], Tensor]]] = {
        "iscam": [partial(torch.mul, part) for part in (1 / 3, 2 / 3, 1)],
        "sscam": [partial(torch.add, one) for one in noises],
    }
    for name, options in (("iscam", {"steps": 3}), ("sscam", {"samples": 2, "mask_noise": 0.5})):
        engine = engine_at(resnet(), Tap("layer4", Layout("nchw", (2, 2))), 64, name, **options)
        x = inputs(1, 64)
        maps = engine.forward(x).kept[engine.taps[0]].detach()
        naive = oracles.score_cam(engine.module, maps, x, 2, changes[name])
        assert oracles.correlation(raw_maps(engine, x, 2).numpy(), naive.numpy()) > 0.9999
        assert oracles.correlation(oracles.score_cam(engine.module, maps, x, 2).numpy(), naive.numpy()) < 0.9999


@pytest.mark.parametrize("gaussian", [None, True, False])
@pytest.mark.parametrize("place", ["a whole stage", "tokens with a prefix, beside a skip connection"])
def test_recipro_cam_is_the_naive_loop(place: str, gaussian: bool | None) -> None:
    """Among tokens neighbours count unless it is told otherwise, and the class token stays as it is."""
    name, tap = TAPS[place]
    options = {} if gaussian is None else {"gaussian": gaussian}
    engine = engine_at(build(name), tap, 64, "reciprocam", chunk=3, **options)
    x, spread = inputs(2, 64), (name == "vit") if gaussian is None else gaussian
    naive = oracles.lone_locations(engine.module, tap.path, tap.layout.to_maps, x, 2, spread)
    ours = raw_maps(engine, x, 2)
    assert float((ours - naive).abs().max() / naive.max()) < 1e-3


def test_score_cam_does_not_score_one_mask_twice() -> None:
    class Twins(nn.Module):
        """64 channels, of which 60 are zero or multiples of another."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(64, CLASSES)
            self.last = nn.Identity()
            self.seen = 0

        def forward(self, x: Tensor) -> Tensor:
            """[B,3,H,W] -> logits [B,CLASSES]."""
            self.seen += len(x)
            maps = self.conv(x).relu()
            repeated = torch.cat([maps * factor for factor in (1, 2, 4, 8, 0, 0, 0, 0)] * 2, dim=1)
            logits: Tensor = self.head(self.last(repeated).mean((2, 3)))
            return logits

    engine = engine_at(Twins(), Tap("last", Layout("nchw", (8, 8))), 64, "scorecam")
    engine.module.seen = 0  # type: ignore[assignment]
    raw_maps(engine, inputs(1, 64), 0)
    assert engine.module.seen == 1 + 4


@pytest.mark.parametrize("name", ["scorecam", "ablationcam"])
def test_max_channels_bounds_the_cost_and_keeps_the_strongest(name: str) -> None:
    tap = TAPS["a whole stage"][1]
    engine = engine_at(resnet(), tap, 64, name, max_channels=5)
    done = engine.forward(inputs(1, 64))
    target_weights = torch.zeros_like(done.logits)
    target_weights[:, 1] = 1
    [parts] = engine.methods[0].compute(*engine.views(done, target_weights))
    used = parts[0].abs().sum((1, 2)).nonzero()[:, 0].tolist()
    strongest = done.kept[tap][0].detach().abs().sum((1, 2)).argsort(descending=True)[:5]
    assert sorted(used) == sorted(strongest.tolist())


def test_occlusion_finds_the_only_patch_that_counts() -> None:
    class Corner(nn.Module):
        """The logit is the brightness of the last 8 x 8 pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.look = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            """[B,3,H,W] -> logits [B,CLASSES]."""
            corner: Tensor = self.look(x)[:, :, -8:, -8:].mean((1, 2, 3))
            return corner[:, None].repeat(1, CLASSES)

    engine = engine_at(Corner(), Tap("look", Layout("nchw", (60, 60))), 60, "occlusion", patch=16, stride=8)
    raw = raw_maps(engine, torch.ones(1, 3, 60, 60), 0)[0].numpy()
    assert min(int(i) for i in np.unravel_index(raw.argmax(), raw.shape)) >= 44
    assert (raw[:40, :40] == 0).all()


def test_rise_is_the_naive_loop_over_masks_of_the_kept_share() -> None:
    options = RandomMasks(masks=9, grid=3, keep=0.3)
    masks = torch.cat(list(random_masks((64, 64), options, 4)))
    assert torch.equal(masks, torch.cat(list(random_masks((64, 64), options, 3))))
    assert masks.shape == (9, 64, 64)
    assert (float(masks.min()), float(masks.max())) == (0, 1)
    many = torch.cat(list(random_masks((64, 64), RandomMasks(masks=800, grid=3, keep=0.3), 16)))
    assert float(many.mean()) == pytest.approx(0.3, abs=0.02)
    engine = engine_at(resnet(), TAPS["a whole stage"][1], 64, "rise", masks=9, grid=3, keep=0.3, chunk=4)
    x = inputs(2, 64)
    naive = torch.zeros(2, 64, 64)
    for mask in masks:
        naive += engine.module(x * mask).softmax(1)[:, 2, None, None] * mask / 9 / 0.3
    assert torch.allclose(raw_maps(engine, x, 2), naive, atol=1e-5)
