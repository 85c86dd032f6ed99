"""Untrained networks as trained ones: scales that start at zero let nothing through, forwards or backwards."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ZERO_BELOW = 1e-3
INITIAL_SCALE = 0.1
FIRST = 65536


def initialised(module: nn.Module, inputs: Tensor) -> nn.Module:
    """The module itself, or for an untrained one, a copy through which signals flow as in a trained one.

    In the copy, weights that are all about zero become small random ones, and batch norms that never saw a
    batch take the statistics of `inputs` [B,3,H,W].
    """
    weights = [name for name, parameter in module.named_parameters() if _about_zero(name, parameter)]
    norms = [name for name, child in module.named_modules() if isinstance(child, _BatchNorm) and _fresh(child)]
    if not weights and not norms:
        return module
    copied = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in weights:
            parameter = copied.get_parameter(name)
            parameter.copy_(INITIAL_SCALE * torch.randn(parameter.shape, generator=generator))
        _calibrate(copied, [copied.get_submodule(name) for name in norms], inputs)
    return copied


def _about_zero(name: str, parameter: Tensor) -> bool:
    """A weight, not a bias, of which no entry is above ZERO_BELOW."""
    values = parameter.detach().flatten()
    return not name.endswith("bias") and all(bool(some.abs().amax() < ZERO_BELOW) for some in (values[:FIRST], values))


def _fresh(norm: _BatchNorm) -> bool:
    """Running statistics are kept, but still as initialised."""
    if norm.running_mean is None or norm.running_var is None:
        return False
    return not norm.running_mean.any() and bool((norm.running_var == 1).all())


def _calibrate(module: nn.Module, norms: list[nn.Module], inputs: Tensor) -> None:
    """One forward that sets the statistics of `norms`."""
    for norm in norms:
        norm.training, norm.momentum = True, 1.0  # type: ignore[assignment]
    if norms:
        module(inputs)
    for norm in norms:
        norm.training = False
