"""The linear head behind global average pooling, found by looking at the live model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from camcli.engine.methods.view import LayerView
from camcli.errors import MethodError

TOLERANCE = 0.02


def class_weights(view: LayerView) -> Tensor:
    """[K,C]: the weights W for which the logits are W times the average of each channel, plus a bias.

    Raises MethodError where no weight of the model does this, as the logits of the batch tell.
    """
    pooled, logits = view.activations.mean(dim=(2, 3)), view.batch.logits
    shape = logits.shape[1], pooled.shape[1]
    for weight, bias in heads(view.batch.module):
        if weight.shape == shape and _explains(pooled @ weight.T, logits - bias):
            return weight
    if shape[0] == shape[1] and _explains(pooled, logits):
        return torch.eye(shape[0], device=pooled.device)
    raise MethodError(
        "method 'cam' needs a target layer with global average pooling and one linear layer behind it, and this "
        "model's logits are not made so; use 'gradcam', which gives the same map where 'cam' exists"
    )


def heads(module: nn.Module) -> Iterator[tuple[Tensor, Tensor | float]]:
    """(weight [K,C], bias [K] or 0) of every linear layer and 1x1 convolution, the last first."""
    for child in reversed(list(module.modules())):
        weight = getattr(child, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() in (2, 4) and weight.shape[2:].numel() == 1:
            bias = getattr(child, "bias", None)
            yield weight.float().flatten(1), 0.0 if bias is None else bias.float()


def _explains(part: Tensor, logits: Tensor) -> bool:
    """Whether `part` [B,K] is `logits` but for rounding; images that are not finite have no say."""
    finite = logits.isfinite().all(dim=1)
    size = part[finite].norm()
    return bool(size > 0 and (part - logits)[finite].norm() <= TOLERANCE * size)
