"""Methods at the resolution of the input: rules, completeness, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from camcli.config.schema import OptionsConfig
from camcli.engine.engine import Engine
from camcli.engine.methods import METHODS
from camcli.engine.methods.biases import Biases
from camcli.errors import MethodError
from tests import oracles, peers
from tests.conftest import loaded
from tests.nets import calibrated, inputs
from tests.test_engine import layer_of

SIDE = 32
RULED = ("guided-backprop", "deconvnet", "guided-gradcam")
Activation = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Three convolutions with an activation given as a function of the tensor."""

    def __init__(self, act: Activation, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, stride=2), norm(8)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,4]."""
        x = self.act(self.norm(self.conv1(x)))
        x = self.act(self.conv3(self.act(self.conv2(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


SAME = {
    "module": nn.ReLU(),
    "in-place module": nn.ReLU(inplace=True),
    "function": F.relu,
    "in-place function": torch.relu_,
    "method": lambda x: x.relu(),
    "as a leaky one": lambda x: F.leaky_relu(x, 0.0),
}


def raw_map(name: str, module: nn.Module, x: Tensor, target: int = 1, **options: float) -> Tensor:
    """[B,H,W], weights calibrated beforehand."""
    engine = Engine(
        loaded(module.eval().requires_grad_(False), classes=4),
        [layer_of("conv3")],
        [METHODS.get(name)],
        options=OptionsConfig.model_validate(options),
    )
    done = engine.forward(x)
    target_weights = torch.zeros_like(done.logits.detach())
    target_weights[:, target] = 1
    [raw] = METHODS.get(name).compute(*engine.views(done, target_weights))
    return raw


@pytest.mark.parametrize("name", RULED)
@pytest.mark.parametrize("act", SAME.values(), ids=list(SAME))
def test_rules_do_not_ask_how_the_rectifier_is_written(name: str, act: Activation) -> None:
    x = inputs(2, SIDE)
    expected = raw_map(name, calibrated(Net(nn.ReLU()), inputs(4, SIDE)), x)
    assert torch.allclose(raw_map(name, calibrated(Net(act), inputs(4, SIDE)), x), expected, atol=1e-6)
    assert expected.any()


@pytest.mark.parametrize("name", ["guided-backprop", "deconvnet"])
@pytest.mark.parametrize("act", ["relu", "silu", "gelu", "hardswish", "relu6", "leaky_relu"])
def test_rules_are_those_written_into_the_activation(name: str, act: str) -> None:
    x = inputs(2, SIDE)
    module = calibrated(Net(lambda x: getattr(F, act)(x)), inputs(4, SIDE))
    ours = raw_map(name, module, x)
    leaf = x.clone().requires_grad_()
    with oracles.guided_activations(deconvolved=name == "deconvnet"):
        module(leaf)[:, 1].sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(ours, leaf.grad.sum(1), atol=1e-6)
    plain = torch.autograd.grad(module(leaf)[:, 1].sum(), leaf)[0].sum(1)
    assert not torch.allclose(ours, plain, atol=1e-3)


@pytest.mark.parametrize(("name", "peer"), [("guided-backprop", "GuidedBackprop"), ("deconvnet", "Deconvolution")])
def test_rules_are_those_of_captum(name: str, peer: str) -> None:
    class Distinct(nn.Module):
        """Captum wants a module of its own for each rectifier."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv1, self.conv3, self.head = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            """[B,3,H,W] -> logits [B,4]."""
            logits: Tensor = self.head(self.relu2(self.conv3(self.relu1(self.conv1(x)))).mean((2, 3)))
            return logits

    module, x = calibrated(Distinct(), inputs(4, SIDE)), inputs(2, SIDE)
    ours = raw_map(name, module, x)
    assert torch.allclose(ours, torch.from_numpy(peers.captum(peer, module, x, 1)), atol=1e-6)


@pytest.mark.parametrize("name", RULED)
def test_rules_are_refused_where_there_is_no_rectifier(name: str) -> None:
    with pytest.raises(MethodError, match="has none of them"):
        raw_map(name, calibrated(Net(torch.tanh), inputs(4, SIDE)), inputs(1, SIDE))


def test_full_gradient_is_refused_without_biases() -> None:
    module = Net(nn.ReLU(), norm=lambda _: nn.Identity())
    for conv in (module.conv1, module.conv2, module.conv3):
        conv.bias = None
    with pytest.raises(MethodError, match="biases"):
        raw_map("fullgrad", module, inputs(1, SIDE))


def test_integrated_gradients_add_up_to_the_rise_of_the_logit() -> None:
    module, x = calibrated(Net(F.gelu), inputs(4, SIDE)), inputs(2, SIDE)
    rise = (module(x) - module(torch.zeros_like(x)))[:, 1]
    total = raw_map("integrated-gradients", module, x, steps=64).sum((1, 2))
    assert torch.allclose(total, rise, rtol=0.01, atol=0.01)


def test_input_and_biases_add_up_to_the_logit() -> None:
    """Without magnitudes, the full gradient of a piecewise linear network is its output (Srinivas, 2019)."""
    module, x = calibrated(Net(nn.ReLU()), inputs(4, SIDE)), inputs(1, SIDE).requires_grad_()
    with Biases() as biases:
        score = module(x)[0, 1]
    found = torch.autograd.grad(score, [x, *(bias.edge for bias in biases.met)])
    total = (found[0] * x).sum()
    for bias, gradient in zip(biases.met, found[1:], strict=True):
        total = total + (gradient.movedim(bias.axis, -1) * bias.bias).sum()
    assert len(biases.met) == 5
    assert float(total.detach()) == pytest.approx(float(score.detach()), rel=1e-4)


def test_full_gradient_sees_normalisation_with_a_fused_activation() -> None:
    """The reference package looks for nn.BatchNorm2d itself, and so skips timm's BatchNormAct2d."""
    x = inputs(2, SIDE)
    separate = calibrated(Net(nn.ReLU()), inputs(4, SIDE))
    fused = Net(nn.ReLU(), norm=BatchNormAct2d)
    fused.load_state_dict(separate.state_dict())
    assert torch.allclose(raw_map("fullgrad", fused, x), raw_map("fullgrad", separate, x), rtol=1e-4)
    theirs = peers.grad_cam("fullgrad", fused.requires_grad_(False), "conv3", x, 1)
    ours = raw_map("fullgrad", fused, x).numpy()
    assert min(oracles.correlation(a, b) for a, b in zip(ours, theirs, strict=True)) < 0.9999


def test_full_gradient_counts_every_batch_norm_of_efficientnet() -> None:
    module = timm.create_model("test_efficientnet", num_classes=4)
    norms = sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())
    fused = sum(isinstance(child, BatchNormAct2d) for child in module.modules())
    with Biases() as biases:
        module.eval()(torch.zeros(1, 3, 64, 64))
    assert fused > 0
    assert len([bias for bias in biases.met if bias.axis == 1]) >= norms


def test_smoothgrad_is_the_same_every_time_and_wider_with_more_noise() -> None:
    module, x = calibrated(Net(nn.ReLU()), inputs(4, SIDE)), inputs(1, SIDE)
    first, second, noisier = (raw_map("smoothgrad", module, x, noise=n) for n in (0.1, 0.1, 0.5))
    assert torch.equal(first, second)
    assert not torch.allclose(first, noisier)


def test_smoothgrad_is_the_naive_loop() -> None:
    module, x = calibrated(Net(nn.ReLU()), inputs(4, SIDE)), inputs(2, SIDE)
    ours = raw_map("smoothgrad", module, x, noise=0.2, samples=3)
    for found, image in zip(ours, x, strict=True):
        noise, total = torch.Generator().manual_seed(0), torch.zeros(3, SIDE, SIDE)
        for _ in range(3):
            spread = 0.2 * (image.max() - image.min())
            noisy = (image + spread * torch.randn(image.shape, generator=noise)).requires_grad_()
            total += torch.autograd.grad(module(noisy[None])[0, 1], noisy)[0]
        expected = (total[0].abs() + total[1].abs() + total[2].abs()) / 3
        assert torch.allclose(found, expected.clamp_max(float(expected.flatten().quantile(0.99))), atol=1e-6)


def test_full_gradient_of_norms_with_small_variances_is_the_naive_sum() -> None:
    """There the constant beside the variance weighs as much as the variance."""
    module = calibrated(Net(nn.ReLU()), inputs(4, SIDE))
    norm = module.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.copy_(torch.linspace(1e-6, 1e-4, 8))
    norm.weight.mul_(1e-2)
    x = inputs(2, SIDE)
    ours = raw_map("fullgrad", module, x).numpy()
    theirs = oracles.full_gradient(module, None, x, 1).numpy()
    assert min(oracles.correlation(a, b) for a, b in zip(ours, theirs, strict=True)) > 0.99999
    with Biases() as biases:
        module(x.clone().requires_grad_())
    [found] = [bias.bias for bias in biases.met if bias.bias.shape == norm.bias.shape][1:2]
    assert norm.running_mean is not None
    expected = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps) ** 0.5
    assert torch.allclose(found, expected, rtol=1e-5)
