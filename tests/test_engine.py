"""The engine against an ordinary backward, finite differences and the reference package."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from camcli.engine.engine import Engine, Explanation
from camcli.engine.layers import Layout, Tap, TargetLayer, resolve_layer
from camcli.engine.methods import METHODS
from camcli.engine.methods.maps import scale
from camcli.engine.tap import cut
from camcli.engine.targets import Target, likeliest
from camcli.errors import ItemError
from camcli.models.loaded import LoadedModel
from tests.conftest import loaded

GRADCAM = METHODS.get("gradcam")


def layer_of(path: str, h: int = 0, w: int = 0) -> TargetLayer:
    """An NCHW target layer."""
    return TargetLayer((Tap(path, Layout("nchw", (h, w))),))


def pixels(count: int, side: int = 64, seed: int = 0) -> Tensor:
    """uint8 [B,H,W,3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def explanations(engine: Engine, batch: Tensor, targets: list[int]) -> list[Explanation]:
    """All must succeed."""
    answers = engine.explain(batch, lambda probabilities: [Target(index) for index in targets])
    assert all(isinstance(answer, Explanation) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Explanation)]


def correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Pearson, over all cells."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


class InplaceNet(nn.Module):
    """The layer is followed by an in-place ReLU, which overwrites what a careless hook has stored."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 5, stride=4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,3]."""
        logits: Tensor = self.head(self.relu(self.conv(x)).mean(dim=(2, 3)) ** 2)
        return logits


def full_backward(model: LoadedModel, path: str, inputs: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Activation and gradient at `path` by an ordinary backward through the whole network."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        output.retain_grad()
        kept.append(output)
        return output.clone()

    handle = model.module.get_submodule(path).register_forward_hook(keep)
    logits = model.module(inputs.clone().requires_grad_())
    handle.remove()
    logits[:, target].sum().backward()
    assert kept[0].grad is not None
    return kept[0].detach(), kept[0].grad


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "densenet121", "mobilenet_v3_small", "vgg11"])
def test_maps_equal_those_of_a_full_backward(name: str) -> None:
    torch.manual_seed(0)
    model = loaded(torchvision.models.get_model(name, weights=None, num_classes=7), classes=7)
    layer = resolve_layer(model.module, (64, 64))
    engine = Engine(model, [layer], [GRADCAM])
    batch = pixels(2)
    ours = explanations(engine, batch, [3])
    activation, gradient = full_backward(model, layer.taps[0].path, engine.normalise(batch), 3)
    raw = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1)
    for explanation, expected, unscaled in zip(ours, scale(raw), raw, strict=True):
        [heatmap] = explanation.heatmaps
        assert np.abs(heatmap.heat - expected.numpy()).max() < 1e-4
        assert heatmap.raw_max == pytest.approx(float(unscaled.max()), rel=1e-3)
        assert heatmap.raw_min == pytest.approx(float(unscaled.min()), rel=1e-3)


def test_gradients_agree_with_finite_differences_and_survive_an_inplace_relu() -> None:
    net = InplaceNet().double()
    model = loaded(net, classes=3)
    inputs = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    [tap] = layer_of("conv").taps
    with cut(model.module, [tap]) as kept:
        logits = model.module(inputs)
    [gradient] = torch.autograd.grad(logits[0, 1], [kept[tap]])
    assert torch.equal(kept[tap], net.conv(inputs))

    def logit(activation: Tensor) -> float:
        return float(net.head(activation.relu().mean(dim=(2, 3)) ** 2)[0, 1])

    step = 1e-5
    for index in np.ndindex(*kept[tap].shape):
        nudge = torch.zeros_like(kept[tap])
        nudge[index] = step
        slope = (logit(kept[tap].detach() + nudge) - logit(kept[tap].detach() - nudge)) / (2 * step)
        assert slope == pytest.approx(float(gradient[index]), abs=1e-7)


def test_the_backbone_leaves_nothing_for_backward() -> None:
    model = loaded(torchvision.models.resnet18(weights=None, num_classes=2))
    kept_bytes = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept_bytes
        kept_bytes += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with cut(model.module, layer_of("layer4").taps):
            model.module(torch.zeros(2, 3, 64, 64))
        tail = kept_bytes
        model.module(torch.zeros(2, 3, 64, 64, requires_grad=True))
    assert tail < (kept_bytes - tail) / 50


def test_a_batch_gives_what_its_images_give_one_by_one() -> None:
    torch.manual_seed(0)
    model = loaded(timm.create_model("test_resnet", num_classes=5), classes=5)
    engine = Engine(model, [resolve_layer(model.module, (64, 64))], [GRADCAM])
    batch = pixels(5)
    together = explanations(engine, batch, [1, 4])
    for i, whole in enumerate(together):
        [alone] = explanations(engine, batch[i : i + 1], [1, 4])
        for a, b in zip(whole.heatmaps, alone.heatmaps, strict=True):
            assert np.abs(a.heat - b.heat).max() < 1e-5
            assert a.target is not None
            assert b.target is not None
            assert a.target.logit == pytest.approx(b.target.logit, abs=1e-5)


def test_each_image_has_its_own_targets() -> None:
    torch.manual_seed(0)
    model = loaded(timm.create_model("test_resnet", num_classes=5), classes=5)
    engine = Engine(model, [resolve_layer(model.module, (64, 64))], [GRADCAM])
    wanted = iter([[0], [], [3, 1, 2]])
    answers = engine.explain(pixels(3), lambda probabilities: [Target(index) for index in next(wanted)])
    found = [a.heatmaps for a in answers if isinstance(a, Explanation)]
    assert [[h.target.index for h in maps if h.target] for maps in found] == [[0], [], [3, 1, 2]]
    [alone] = explanations(engine, pixels(3)[2:], [1])
    assert isinstance(answers[2], Explanation)
    assert np.abs(answers[2].heatmaps[1].heat - alone.heatmaps[0].heat).max() < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "regnet_x_400mf"])
def test_maps_agree_with_the_reference_package(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import GradCAM
    torch.manual_seed(0)
    model = loaded(torchvision.models.get_model(name, weights=None, num_classes=7), classes=7)
    layer = resolve_layer(model.module, (64, 64))
    engine = Engine(model, [layer], [GRADCAM])
    batch = pixels(2, side=128)
    answers = engine.explain(batch, likeliest)
    ours = [answer for answer in answers if isinstance(answer, Explanation)]
    with GradCAM(model.module, [model.module.get_submodule(layer.name)]) as peer:
        # The peer differentiates with respect to parameters' graph, so inputs must ask for gradients.
        theirs = peer(engine.normalise(batch).requires_grad_(), None)
    for explanation, map_ in zip(ours, theirs, strict=True):
        heat = torch.from_numpy(explanation.heatmaps[0].heat)[None, None]
        resized = nn.functional.interpolate(heat, size=(128, 128), mode="bilinear")[0, 0].numpy()
        assert correlation(resized, map_) > 0.999


def test_several_layers_are_averaged_at_the_finest_resolution() -> None:
    torch.manual_seed(0)
    model = loaded(torchvision.models.resnet18(weights=None, num_classes=3), classes=3)
    coarse, fine = layer_of("layer4"), layer_of("layer3")
    both = explanations(Engine(model, [coarse, fine], [GRADCAM]), pixels(1), [1])[0].heatmaps[0].heat
    single = [
        explanations(Engine(model, [one], [GRADCAM]), pixels(1), [1])[0].heatmaps[0].heat for one in (coarse, fine)
    ]
    up = nn.functional.interpolate(torch.from_numpy(single[0])[None, None], size=(4, 4), mode="bilinear")[0, 0].numpy()
    assert both.shape == (4, 4)
    assert correlation(both, (up + single[1]) / 2) > 0.9999


class NanFor(nn.Module):
    """Logits are NaN for images with a white first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,2]."""
        logits: Tensor = self.conv(x).mean(dim=(2, 3))
        return torch.where((x[:, 0, 0, 0] == 1)[:, None], torch.nan, logits)


def test_a_image_with_nan_logits_is_an_error_of_its_own() -> None:
    engine = Engine(loaded(NanFor()), [layer_of("conv")], [GRADCAM])
    batch = pixels(3).clamp(max=200)
    batch[1, 0, 0] = 255
    kinds = [type(answer) for answer in engine.explain(batch, likeliest)]
    assert kinds == [Explanation, ItemError, Explanation]


def test_a_map_without_evidence_is_empty() -> None:
    model = InplaceNet()
    nn.init.zeros_(model.head.weight)
    engine = Engine(loaded(model, classes=3), [layer_of("conv")], [GRADCAM])
    [explanation] = explanations(engine, pixels(1), [0])
    assert explanation.heatmaps[0].empty
    assert not explanation.heatmaps[0].heat.any()


def test_hooks_are_gone_after_success_and_error() -> None:
    net = InplaceNet()
    engine = Engine(loaded(net, classes=3), [layer_of("conv")], [GRADCAM])
    explanations(engine, pixels(1), [0])
    with pytest.raises(RuntimeError):
        engine.explain(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), likeliest)
    assert not net.conv._forward_hooks
