"""Definitions computed the slow and obvious way, sharing no code with camcli."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Reshape = Callable[[Tensor], Tensor]
Array = NDArray[np.float32]


def correlation(a: Array, b: Array) -> float:
    """Pearson, over all cells; not a number where a map is constant, so that nothing is proved by empty maps."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm else float("nan")


def shown(raw: Tensor, side: int) -> Array:
    """Raw maps [B,h,w] as peers return them: ReLU, 0..1, resized to [B,side,side]."""
    positive = raw.clamp_min(0)
    low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    unit = (positive - low) / (high - low + 1e-12)
    return F.interpolate(unit[:, None], (side, side), mode="bilinear")[:, 0].numpy()


@contextmanager
def exchanged(module: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the output at `path` is changed."""
    handle = module.get_submodule(path).register_forward_hook(lambda child, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def activation_and_gradient(module: nn.Module, path: str, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Output at `path` and the target logit's gradient there, by a backward through the whole network."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output)
        output.retain_grad()
        return output.clone()

    with exchanged(module, path, keep):
        module(x.clone().requires_grad_())[:, target].sum().backward()
    assert kept[0].grad is not None
    return kept[0].detach(), kept[0].grad


def outputs(module: nn.Module, path: str, x: Tensor) -> list[Tensor]:
    """What the module at `path` returns, at each of its calls."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output.clone())
        return output

    with torch.no_grad(), exchanged(module, path, keep):
        module(x)
    return kept


def plus_plus(module: nn.Module, path: str, reshape: Reshape, x: Tensor, target: int, constant: float = 0.0) -> Tensor:
    """[B,h,w] Grad-CAM++ cell by cell as in the paper, in float64, with a `constant` added to the denominator."""
    found = activation_and_gradient(module, path, x, target)
    a, g = (reshape(tensor).double() for tensor in found)
    total = torch.zeros(len(x), *a.shape[2:], dtype=torch.float64)
    for b, c in np.ndindex(*a.shape[:2]):
        below = 2 * g[b, c] ** 2 + a[b, c].sum() * g[b, c] ** 3 + constant
        alpha = torch.where(g[b, c] == 0, 0, g[b, c] ** 2 / below)
        total[b] += (alpha * g[b, c].clamp_min(0)).sum() * a[b, c]
    return total.float()


def smooth_plus_plus(
    module: nn.Module, path: str, reshape: Reshape, x: Tensor, copies: list[Tensor], target: int
) -> Tensor:
    """[B,h,w] Smooth Grad-CAM++, location by location, from the gradients of noisy copies, in float64."""
    a = reshape(activation_and_gradient(module, path, x, target)[0]).double()
    g = torch.stack([reshape(activation_and_gradient(module, path, one, target)[1]).double() for one in copies])
    total = torch.zeros(len(x), *a.shape[2:], dtype=torch.float64)
    for b, c in np.ndindex(*a.shape[:2]):
        first, second, third = ((g[:, b, c] ** power).mean(0) for power in (1, 2, 3))
        alpha = torch.where(second == 0, 0, second / (2 * second + a[b, c].sum() * third))
        total[b] += (alpha * first.clamp_min(0)).sum() * a[b, c]
    return total.float()


def shapley(module: nn.Module, path: str, reshape: Reshape, x: Tensor, target: int) -> Tensor:
    """[B,h,w] ShapleyCAM by two backwards through the whole network, with PyTorch's plain attention."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    with exchanged(module, path, keep), sdpa_kernel(SDPBackend.MATH):
        score = module(x.clone().requires_grad_())[:, target].sum()
    [a] = kept
    [g] = torch.autograd.grad(score, a, create_graph=True)
    bent = torch.zeros_like(a)
    if g.requires_grad:
        found = torch.autograd.grad(g, a, a.detach(), allow_unused=True)[0]
        bent = bent if found is None else found
    weights = reshape(g - bent / 2).mean((2, 3), keepdim=True)
    return (weights * reshape(a)).sum(1).detach()


def ablation(module: nn.Module, path: str, reshape: Reshape, x: Tensor, target: int) -> Tensor:
    """[B,h,w]: sum_c (y - y without c) / |y| A_c with one forward of the whole network per channel."""
    kept: list[Tensor] = []

    def without(channel: int) -> Callable[[Tensor], Tensor]:
        def change(output: Tensor) -> Tensor:
            changed = output.clone()
            reshape(changed)[:, channel] = 0
            return changed

        return change

    with torch.no_grad():
        with exchanged(module, path, lambda output: kept.append(output.clone()) or output):  # type: ignore[func-returns-value]
            y = module(x)[:, target]
        maps = reshape(kept[0])
        total = torch.zeros(len(x), *maps.shape[2:])
        for channel in range(maps.shape[1]):
            with exchanged(module, path, without(channel)):
                fall = y - module(x)[:, target]
            total += (fall / y.abs())[:, None, None] * maps[:, channel]
    return total


def strong_features(maps: Tensor, deviations: float = 2.0) -> Tensor:
    """[B,h,w] FEM from activations [B,C,h,w]: at each location the means of the channels that are strong there."""
    total = torch.zeros(len(maps), *maps.shape[2:])
    for b, c in np.ndindex(*maps.shape[:2]):
        channel = maps[b, c].numpy().astype(np.float64)
        for y, x in np.argwhere(channel > channel.mean() + deviations * channel.std()):
            total[b, y, x] += float(channel.mean())
    return total


def score_cam(
    module: nn.Module,
    maps: Tensor,
    x: Tensor,
    target: int,
    changes: Sequence[Callable[[Tensor], Tensor]] = (lambda mask: mask,),
) -> Tensor:
    """[B,h,w] from activations [B,C,h,w], one mask and one forward at a time; mean score over `changes` of a mask."""
    scores = torch.zeros(maps.shape[:2])
    with torch.no_grad():
        for b, c in np.ndindex(*maps.shape[:2]):
            mask = nn.UpsamplingBilinear2d((x.shape[-2], x.shape[-1]))(maps[b : b + 1, c : c + 1])
            mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
            scores[b, c] = sum(module(x[b : b + 1] * change(mask))[0, target] for change in changes) / len(changes)
    return (scores.softmax(1)[:, :, None, None] * maps).sum(1)


def lone_locations(module: nn.Module, path: str, reshape: Reshape, x: Tensor, target: int, gaussian: bool) -> Tensor:
    """[B,h,w]: the logit with every other location of the layer zero (or 3x3 of them left), above the lowest."""
    kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16 if gaussian else torch.ones(1, 1)

    def alone(row: int, column: int) -> Callable[[Tensor], Tensor]:
        def change(output: Tensor) -> Tensor:
            changed = output.clone()
            maps = reshape(changed)
            weights = torch.zeros(maps.shape[2] + 2, maps.shape[3] + 2)
            half = len(kernel) // 2
            weights[row + 1 - half : row + 2 + half, column + 1 - half : column + 2 + half] = kernel
            maps *= weights[1:-1, 1:-1]
            return changed

        return change

    size = reshape(outputs(module, path, x)[0]).shape[2:]
    with torch.no_grad():
        scores = torch.zeros(len(x), *size)
        for row, column in np.ndindex(*size):
            with exchanged(module, path, alone(row, column)):
                scores[:, row, column] = module(x)[:, target]
    return scores - scores.amin((1, 2), keepdim=True)


def first_component(parts: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,h,w] up to sign, by a full singular value decomposition."""
    maps = []
    for part in parts.double():
        cells = part.flatten(1).T
        cells = cells - cells.mean(0)
        maps.append((cells @ torch.linalg.svd(cells).Vh[0]).view(part.shape[1:]))
    return torch.stack(maps).float()


def full_gradient(module: nn.Module, reshape: Reshape | None, x: Tensor, target: int) -> Tensor:
    """[B,H,W]: |x dx| and |b db| over conv, linear and normalisation modules, each channel for itself."""
    met: list[tuple[nn.Module, Tensor]] = []

    def keep(child: nn.Module, args: object, output: Tensor) -> Tensor:
        output.retain_grad()
        met.append((child, output))
        return output.clone()

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm, nn.Linear)
    handles = [child.register_forward_hook(keep) for child in module.modules() if isinstance(child, kinds)]
    leaf = x.clone().requires_grad_()
    module(leaf)[:, target].sum().backward()
    for handle in handles:
        handle.remove()
    assert leaf.grad is not None
    parts = [leaf.grad * x]
    for child, output in met:
        part = bias_part(child, output, reshape, len(x))
        if part is not None:
            parts.append(part.detach())
    return torch.stack([_channel_sum(part.abs(), x.shape[-1]) for part in parts]).sum(0)


def bias_part(child: nn.Module, output: Tensor, reshape: Reshape | None, batch: int) -> Tensor | None:
    """bias * gradient as [B,C,h,w] where that is a grid over the image."""
    bias, gradient = child.bias, output.grad
    if not isinstance(bias, Tensor) or gradient is None:
        return None
    if isinstance(child, nn.BatchNorm2d):
        assert child.running_mean is not None
        assert child.running_var is not None
        bias = bias - child.running_mean * child.weight / torch.sqrt(child.running_var + child.eps)
    if isinstance(child, nn.Conv2d | nn.BatchNorm2d):
        return gradient * bias[:, None, None]
    if gradient.dim() == 4 and type(child).__name__ != "LayerNorm2d":
        return (gradient * bias).permute(0, 3, 1, 2)
    if gradient.dim() == 4:
        return gradient * bias[:, None, None]
    return reshape(gradient * bias) if gradient.dim() == 3 and reshape and len(gradient) == batch else None


def _channel_sum(part: Tensor, side: int) -> Tensor:
    maps = []
    for image in part:
        total = torch.zeros(side, side)
        for channel in image:
            span = channel.max() - channel.min()
            unit = (channel - channel.min()) / span if span > 1e-6 * channel.max() else torch.zeros_like(channel)
            total += F.interpolate(unit[None, None], (side, side), mode="bilinear")[0, 0]
        maps.append(total)
    return torch.stack(maps)


ACTIVATIONS = ("relu", "silu", "gelu", "hardswish", "relu6", "leaky_relu")


@contextmanager
def guided_activations(deconvolved: bool = False) -> Iterator[None]:
    """Inside, the functions behind activation modules have the guided (or deconvolution) rule written into them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ACTIVATIONS:
            patch.setattr(F, name, _ruled(getattr(F, name), deconvolved))
        yield


def _ruled(plain: Callable[..., Tensor], deconvolved: bool) -> Callable[..., Tensor]:
    class Ruled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return plain(x)

        @staticmethod
        def backward(ctx: Any, arriving: Tensor) -> Tensor:
            if deconvolved:
                return arriving.clamp_min(0)
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(plain(leaf).sum(), leaf)
            kept: Tensor = arriving.clamp_min(0) * slope * (x > 0)
            return kept

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return Ruled.apply(x.clone())  # type: ignore[no-any-return]

    return call
