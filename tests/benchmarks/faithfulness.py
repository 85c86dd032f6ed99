"""How the probability of a class falls and rises as pixels go and come in the order of a heatmap.

Deletion and insertion of RISE (https://arxiv.org/abs/1806.07421): the hottest pixels first are replaced by the mean
colour, or brought back into the blurred image. Both are areas under the curve, 0..1; low deletion and high insertion
say that the heat lies on what the model needs and what suffices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camcli.engine.engine import Engine
from camcli.engine.methods.blur import blurred

STEPS = 32
BLUR = 0.1
"""Standard deviation of the blurred image, in parts of its side."""


@dataclass(frozen=True)
class Faithfulness:
    """Areas under the curves of one map."""

    deletion: float
    insertion: float


def faithfulness(engine: Engine, image: Tensor, heat: NDArray[np.float32], label: int) -> Faithfulness:
    """Of `heat` [H,W] for class `label` of the model's input `image` [3,H,W]; places of equal heat go row by row."""
    order = torch.from_numpy(np.argsort(-heat.ravel(), kind="stable").copy())
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    gone = (rank.view(1, 1, *heat.shape) < torch.linspace(0, len(order), STEPS + 1).view(-1, 1, 1, 1)).float()
    soft = blurred(image[None], BLUR * max(heat.shape))
    falling = _probabilities(engine, image * (1 - gone), label)
    rising = _probabilities(engine, image * gone + soft * (1 - gone), label)
    return Faithfulness(_area(falling), _area(rising))


def sparseness(heat: NDArray[np.float32]) -> float:
    """The Gini index of the heat above zero, 0 (even) to 1 (one place): https://doi.org/10.1109/TIT.2009.2027527."""
    values = np.sort(heat.clip(min=0).ravel().astype(np.float64))
    count, total = len(values), values.sum()
    if not total:
        return 0.0
    places = np.arange(1, count + 1)
    return float(1 - 2 * ((values / total) * (count - places + 0.5) / count).sum())


def _probabilities(engine: Engine, images: Tensor, label: int) -> Tensor:
    with torch.no_grad():
        logits = torch.cat([engine.network(part) for part in torch.split(images, engine.chunk)])
    values = logits.softmax(dim=1) if engine.model.activation == "softmax" else logits.sigmoid()
    return values[:, label]


def _area(curve: Tensor) -> float:
    return float(torch.trapezoid(curve) / (len(curve) - 1))
