"""Other rules for the gradient of rectifiers, wherever a network has them.

The rules act where autograd calls the backward kernel of an activation. So it does not matter whether the network
calls a module, a function or an in-place operation, or uses one module many times; nothing in it is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]

_ATEN = torch.ops.aten
_INPUT: Mapping[Any, int] = {
    _ATEN.threshold_backward.default: 1,
    _ATEN.hardtanh_backward.default: 1,
    _ATEN.leaky_relu_backward.default: 1,
    _ATEN.silu_backward.default: 1,
    _ATEN.gelu_backward.default: 1,
    _ATEN.hardswish_backward.default: 1,
    _ATEN.mish_backward.default: 1,
    _ATEN.elu_backward.default: 5,
}
"""Backward kernels of ReLU and its kin, and which argument has the sign of the activation's input."""


def guided(gradient: Tensor, arriving: Tensor, at: Tensor) -> Tensor:
    """The plain `gradient` where the activation's input `at` and the `arriving` gradient are both positive."""
    return gradient * (at > 0) * (arriving > 0)


def deconvolved(gradient: Tensor, arriving: Tensor, at: Tensor) -> Tensor:
    """The `arriving` gradient where it is positive, whatever the activation's input was."""
    return arriving.relu()


class Rectified(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `with`, backward passes follow `rule` at every rectifier; `met` counts them."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule = rule
        self.met = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _INPUT:
            return result
        self.met += 1
        return self.rule(result, args[0], args[_INPUT[func]])
