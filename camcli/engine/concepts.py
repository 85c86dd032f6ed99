"""What an engine is asked in the passes of deep feature factorisation, one batch at a time.

https://arxiv.org/abs/1806.10206
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camcli.engine.engine import Engine, Explanation, Pass, not_finite
from camcli.engine.methods.factors import DFF, TINY, concepts_of, weights_of
from camcli.engine.methods.maps import NOTHING, REASONS
from camcli.engine.methods.view import LayerView
from camcli.engine.targets import Chooser
from camcli.errors import ItemError, MethodError
from camcli.records import Heatmap


@dataclass(frozen=True, slots=True)
class Concepts:
    """Directions in the activations that many images share.

    vectors: float32 [k,C], rows of length 1. strongest: float32 [k], the weights that stand for heat 1.
    """

    vectors: Tensor
    strongest: Tensor

    def to(self, device: torch.device) -> Concepts:
        """The same on `device`."""
        return Concepts(self.vectors.to(device), self.strongest.to(device))


def learn(locations: Tensor, count: int) -> Concepts:
    """`count` concepts of non-negative locations [n,C], and the largest weight that each has there."""
    vectors = concepts_of(locations, count)
    return Concepts(vectors, weights_of(locations, vectors).amax(dim=0))


def factorising(engine: Engine) -> Engine:
    """This engine for the passes below, none of which asks a method for maps.

    Raises MethodError unless it reads one place of the network, without smoothing.
    """
    if len(engine.taps) > 1:
        names = ", ".join(tap.path for tap in engine.taps)
        raise MethodError(
            f"{DFF.name} reads one place of the network, and layer gives {names}: set layer to one of them"
        )
    if engine.smoothing != "none":
        raise MethodError(f"{DFF.name} cannot be smoothed: set smoothing to none")
    return engine.running([])


def activations(engine: Engine, pixels: Tensor, choose: Chooser, count: int | None = None) -> list[Tensor | ItemError]:
    """float32 [h*w,C] on the CPU for each of the first `count` images of uint8 [B,H,W,3]: activations to learn from."""
    view = _view(engine, engine.forward(engine.normalise(pixels)))
    found = view.activations[:count].relu().flatten(2).mT.cpu()
    return [one if one.isfinite().all() else not_finite("activations") for one in found]


def raised(
    concepts: Concepts, engine: Engine, pixels: Tensor, choose: Chooser, count: int | None = None
) -> list[Tensor | ItemError]:
    """float32 [k,K] for each image: by how much each concept raises each logit, which falls as it is taken out."""
    engine = engine.running([DFF])
    view = _view(engine, engine.forward(engine.normalise(pixels)))
    rows: list[Tensor | ItemError] = []
    for image, weights in enumerate(_weights(concepts, view)[:count]):
        shares = torch.einsum("khw,kc->kchw", weights, concepts.vectors)
        row = view.batch.logits[image] - view.tail(image, view.activations[image] - shares)
        rows.append(row.cpu() if row.isfinite().all() else not_finite("logits"))
    return rows


def located(
    concepts: Concepts, engine: Engine, pixels: Tensor, choose: Chooser, count: int | None = None
) -> list[Explanation | ItemError]:
    """Top predictions and a heatmap of each concept, whose heat 1 is the same for all images of the folder."""
    with engine.timing("forward"):
        done = engine.forward(engine.normalise(pixels))
        probabilities = engine.probabilities(done)[:count]
    with engine.timing("backward"):
        answers = engine.explanations(done, probabilities, choose)
        weights = _weights(concepts, _view(engine, done))[:count].cpu().numpy()
    strongest = concepts.strongest.cpu().numpy()
    return [
        answer if isinstance(answer, ItemError) else _with_concepts(answer, one, strongest, engine.layer)
        for answer, one in zip(answers, weights, strict=True)
    ]


def _with_concepts(
    answer: Explanation, weights: NDArray[np.float32], strongest: NDArray[np.float32], layer: str
) -> Explanation | ItemError:
    if not np.isfinite(weights).all():
        return not_finite("concepts")
    heatmaps = []
    for index, (raw, most) in enumerate(zip(weights, strongest, strict=True)):
        heat, empty = (raw / max(most, TINY)).clip(max=1), not raw.any()
        reason = REASONS[NOTHING] if empty else ""
        about = DFF.name, layer, None, heat, float(raw.min()), float(raw.max()), empty
        heatmaps.append(Heatmap(*about, reason=reason, concept=index))
    return replace(answer, heatmaps=tuple(heatmaps))


def _weights(concepts: Concepts, view: LayerView) -> Tensor:
    """[B,k,h,w]: how strong each concept is at each location."""
    batch, _, height, width = view.activations.shape
    rows = view.activations.relu().flatten(2).mT.flatten(0, 1)
    return weights_of(rows, concepts.vectors).view(batch, height, width, -1).permute(0, 3, 1, 2)


def _view(engine: Engine, done: Pass) -> LayerView:
    """The batch at the target layer, where nobody asks for a class."""
    _, [view] = engine.views(done, torch.zeros_like(done.logits))
    return view
