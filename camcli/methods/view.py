"""What a method sees of one batch at one target layer, and what a method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from camcli.registry import Registry

Need = Literal["activations", "gradients"]
Compute = Callable[["LayerView"], Tensor]


@dataclass(frozen=True)
class LayerView:
    """A batch at one target layer, with one target class for each picture.

    inputs: [B,3,H,W] as the model takes them. logits: float32 [B,K]. targets: int64 [B].
    activations: float32 [B,C,h,w]. backward: gives float32 [B,C,h,w], the gradient of the target logits.
    """

    inputs: Tensor
    logits: Tensor
    targets: Tensor
    activations: Tensor
    backward: Callable[[], Tensor]

    @cached_property
    def gradients(self) -> Tensor:
        """d target logit / d activation, float32 [B,C,h,w]."""
        return self.backward()


@dataclass(frozen=True, slots=True)
class Method:
    """compute: LayerView -> raw maps [B,h,w], before ReLU and scaling. paper: where it was published."""

    name: str
    compute: Compute
    needs: tuple[Need, ...]
    paper: str


METHODS: Registry[Method] = Registry("method")


def method(name: str, needs: tuple[Need, ...], paper: str) -> Callable[[Compute], Compute]:
    """Registers a function as the method called `name`."""

    def decorate(compute: Compute) -> Compute:
        METHODS.add(name, Method(name, compute, needs, paper))
        return compute

    return decorate
