"""Gradients in fp16 are those of float64, however small or large they are, and whatever shares their batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from camcli.engine.engine import Engine
from camcli.engine.layers import Tap, TargetLayer
from camcli.engine.layers.layout import Layout
from camcli.engine.methods import METHODS
from tests.conftest import loaded

SIDE = 32
TAP = Tap("inner", Layout("nchw", (SIDE // 2, SIDE // 2)))
X = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


class Branch(nn.Module):
    """A residual branch that counts `gamma`, as ConvNeXt's layer scale has it, and logits that are multiplied."""

    def __init__(self, gamma: float = 1, times: float = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.inner = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.outer, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.gamma, self.times = gamma, times

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,4]."""
        x = self.stem(x)
        x = x + self.outer(nn.functional.gelu(self.inner(x))) * self.gamma
        logits: Tensor = self.head(x.mean((2, 3))) * self.times
        return logits


def engine(module: nn.Module, *names: str) -> Engine:
    """In fp16, on the CPU."""
    methods = [METHODS.get(name) for name in names]
    return Engine(loaded(module.eval().requires_grad_(False), classes=4), [TargetLayer((TAP,))], methods, "cpu", "fp16")


def exact(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """d logit 1 / d x and / d the inner activations of each image, in float64."""
    double, kept = copy.deepcopy(module).double(), []
    double.get_submodule("inner").register_forward_hook(lambda *about: kept.append(about[2]))
    leaf = x.double().requires_grad_()
    found = torch.autograd.grad(double(leaf)[:, 1].sum(), [leaf, *kept])
    return found[0], found[1]


def half(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same as methods see it in fp16."""
    at_work = engine(module, "hirescam")
    done = at_work.forward(x)
    target_weights = torch.zeros_like(done.logits.detach())
    target_weights[:, 1] = 1
    batch, [view] = at_work.views(done, target_weights)
    return batch.input_gradients(x), view.gradients


def close(found: Tensor, wanted: Tensor) -> bool:
    """Whether each image's gradient is the wanted one but for a hundredth of its length."""
    error = (found.double() - wanted).flatten(1).norm(dim=1)
    return bool((error <= 0.01 * wanted.flatten(1).norm(dim=1)).all())


@pytest.mark.parametrize(
    ("gamma", "times"), [(1, 1), (1e-4, 1), (1e-6, 1), (1, 1e-4), (1, 1e-5), (1, 1e3), (3e3, 1), (1e4, 0.1)]
)
def test_gradients_in_fp16_are_those_of_float64(gamma: float, times: float) -> None:
    module = Branch(gamma, times)
    for found, wanted in zip(half(module, X), exact(module, X), strict=True):
        assert close(found, wanted)


def test_an_image_keeps_its_own_lift() -> None:
    """One image's gradients leave the range of fp16, and those of its companion are near its lower end."""

    class Split(Branch):
        def forward(self, x: Tensor) -> Tensor:
            weight = torch.where(x.amax(dim=(1, 2, 3), keepdim=True) > 100, 3e3, 1e-5).detach()
            x = self.stem(x)
            inner = nn.functional.gelu(self.inner(x)) * weight
            logits: Tensor = self.head(self.outer(inner).mean((2, 3)))
            return logits

    bright = X.clone()
    bright[0, 0, 0, 0] = 101
    module = Split()
    for found, wanted in zip(half(module, bright), exact(module, bright), strict=True):
        assert close(found, wanted)
    for together, alone in zip(half(module, bright), half(module, bright[1:]), strict=True):
        assert close(together[1:], alone.double())


def test_fullgrad_does_not_vanish_with_the_logits() -> None:
    def heat(times: float) -> Tensor:
        at_work = engine(Branch(1, times), "fullgrad")
        done = at_work.forward(X)
        target_weights = torch.zeros_like(done.logits.detach())
        target_weights[:, 1] = 1
        [raw] = METHODS.get("fullgrad").compute(*at_work.views(done, target_weights))
        return raw

    assert close(heat(1e-5), heat(1).double())
