"""Untrained networks sleep: scales that start at zero let nothing through, forwards or backwards."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

ASLEEP_BELOW = 1e-3
WOKEN_SCALE = 0.1


def awake(module: nn.Module) -> nn.Module:
    """The module itself, or where weights are all about zero, a copy with small random ones in their place."""
    names = [name for name, parameter in module.named_parameters() if _asleep(name, parameter)]
    if not names:
        return module
    woken = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    for name in names:
        _wake(woken.get_parameter(name), generator)
    return woken


def _asleep(name: str, parameter: Tensor) -> bool:
    """A weight, not a bias, of which no entry is above ASLEEP_BELOW."""
    return not name.endswith("bias") and all(part.abs().amax() < ASLEEP_BELOW for part in parameter.split(1))


def _wake(parameter: Tensor, generator: torch.Generator) -> None:
    """Fill with normal noise of standard deviation WOKEN_SCALE."""
    with torch.no_grad():
        parameter.copy_(WOKEN_SCALE * torch.randn(parameter.shape, generator=generator))
