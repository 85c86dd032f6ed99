"""The biases that a forward pass meets, with the places where their gradients arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, slots=True)
class Bias:
    """bias [C] of an operation, where its output stands in the graph, and the output's channel axis and shape."""

    bias: Tensor
    edge: GradientEdge
    axis: int
    shape: tuple[int, ...]


def _batch_norm(
    _input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """beta - mean gamma / sqrt(var + eps): what batch norm in evaluation adds to a multiple of its input."""
    if mean is None or var is None:
        return bias
    shift = -mean * (1 if weight is None else weight) / (var + eps).sqrt()
    return shift if bias is None else shift + bias


def _third(_input: Tensor, _weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor | None:
    return bias


def _fourth(
    _input: Tensor, _first: Any, _weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Tensor | None:
    return bias


_OPERATIONS: Mapping[Any, tuple[Callable[..., Tensor | None], int]] = {
    torch.conv2d: (_third, 1),
    F.batch_norm: (_batch_norm, 1),
    F.group_norm: (_fourth, 1),
    F.layer_norm: (_fourth, -1),
    F.linear: (_third, -1),
}


class Biases(TorchFunctionMode):
    """Inside `with`, notes every bias that is added to a tensor with a graph; `met` holds them in order.

    Functions are watched, not modules, so that fused modules (normalisation with activation) count as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met: list[Bias] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _OPERATIONS and result.requires_grad:
            find, axis = _OPERATIONS[func]
            bias = find(*args, **(kwargs or {}))
            if bias is not None:
                self.met.append(Bias(bias.float(), get_gradient_edge(result), axis, tuple(result.shape)))
        return result
