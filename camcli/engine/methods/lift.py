"""Gradients of scores, also in fp16, where small ones vanish and large ones leave the range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

HIGHEST = 2.0**15
"""The largest power of two that fp16 holds."""
STEP = 2.0**5
Reader = Callable[[Sequence[Tensor]], list[Tensor]]


def gradients_of(
    logits: Tensor,
    target_weights: Tensor,
    of: Sequence[Any],
    number: torch.dtype,
    read: Reader = list,
    retain: bool = False,
) -> list[Tensor]:
    """d (logits * target_weights) / d each tensor or edge of `of`: float32, an image a row as `read` arranges them.

    number: what the network computes in. In fp16 the score of each image is multiplied by a power of two, which is
    taken out again: by the highest one, or where that gives infinities, by the next below that does not, so that as
    little as can be is rounded to zero. Each image has its own, because companions in a batch must not matter.
    retain: whether the graph is needed again.
    """

    def derive(lift: Tensor) -> list[Tensor]:
        score = (logits * target_weights * lift).sum()
        return read(torch.autograd.grad(score, of, retain_graph=retain or number is torch.float16))

    return _lifted(derive, logits, number)


def curvatures_of(
    logits: Tensor, target_weights: Tensor, of: Sequence[Tensor], number: torch.dtype, read: Reader = list
) -> list[Tensor]:
    """H a for each tensor a of `of`, H the second derivative of logits * target_weights by it; as `gradients_of`.

    The graph is kept.
    """

    def derive(lift: Tensor) -> list[Tensor]:
        score = (logits * target_weights * lift).sum()
        gradients = torch.autograd.grad(score, of, create_graph=True)
        return read([_along(gradient, a) for gradient, a in zip(gradients, of, strict=True)])

    return _lifted(derive, logits, number)


def _along(gradient: Tensor, a: Tensor) -> Tensor:
    """The derivative of `gradient` along `a`, zero where it does not depend on it."""
    if not gradient.requires_grad:
        return torch.zeros_like(a)
    [found] = torch.autograd.grad(gradient, [a], a.detach(), retain_graph=True, allow_unused=True)
    return torch.zeros_like(a) if found is None else found


def _lifted(derive: Callable[[Tensor], list[Tensor]], logits: Tensor, number: torch.dtype) -> list[Tensor]:
    """What `derive` gives for scores times a factor [B,1], without the factor."""
    half = number is torch.float16
    lift = logits.new_full((len(logits), 1), HIGHEST if half else 1)
    while True:
        found = [g.detach().float() for g in derive(lift)]
        over = ~_finite(found)[:, None] & (lift > 1) & logits.isfinite().all(dim=1, keepdim=True)
        if not half or not over.any():
            return [g / lift.view(-1, *[1] * (g.dim() - 1)) for g in found] if half else found
        lift = torch.where(over, lift / STEP, lift)


def _finite(gradients: Sequence[Tensor]) -> Tensor:
    """Bool [B]: whether all gradients of an image are finite."""
    return torch.stack([g.isfinite().flatten(1).all(dim=1) for g in gradients]).all(dim=0)
