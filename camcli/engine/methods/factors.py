"""Deep feature factorisation: the activations V [n,C] of a whole folder as weights W [n,k] of concepts H [k,C].

https://arxiv.org/abs/1806.10206
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from camcli.config.schema import DFF as NAME
from camcli.config.section import Section
from camcli.engine.methods.view import Batch, LayerView, Method
from camcli.errors import MethodError

SWEEPS = 200
TINY = 1e-12


class Factors(Section):
    """Options of dff."""

    concepts: int = Field(5, ge=1, le=64, description="How many to look for.")


def _of_a_folder(batch: Batch, views: Sequence[LayerView]) -> list[Tensor]:
    raise MethodError("dff finds what many images share, not what is in one: use `camcli dff`, or camcli.run")


DFF = Method(
    NAME,
    _of_a_folder,
    ("activations", "tail"),
    "1 factorisation per folder (`camcli dff`)",
    "https://arxiv.org/abs/1806.10206",
    "layer",
    signed=False,
    formula="min ‖V - W H‖, W, H ≥ 0, V the activations of all images: H are concepts, W says where they are.",
    class_specific=False,
    good_for="concepts that a folder shares",
    options=Factors,
    contributions=False,
)


def concepts_of(locations: Tensor, count: int) -> Tensor:
    """H [count,C], rows of length 1, from non-negative locations V [n,C], by hierarchical alternating least squares.

    https://doi.org/10.1587/transfun.E92.A.708
    """
    generator = torch.Generator().manual_seed(0)
    mean = locations.mean()
    locations = locations / torch.where(mean > 0, mean, 1)
    level = 1 / math.sqrt(count)
    weights = level * torch.rand(len(locations), count, generator=generator).to(locations)
    concepts = level * torch.rand(count, locations.shape[1], generator=generator).to(locations)
    for _ in range(SWEEPS):
        _improve(weights, locations @ concepts.T, concepts @ concepts.T)
        _improve(concepts.T, locations.T @ weights, weights.T @ weights)
    lengths: Tensor = concepts.norm(dim=1, keepdim=True)
    return concepts / lengths.clamp_min(TINY)


def weights_of(locations: Tensor, concepts: Tensor) -> Tensor:
    """W [n,k] ≥ 0 that comes nearest to V [n,C] for given concepts H [k,C]."""
    weights = locations.new_zeros(len(locations), len(concepts))
    target, gram = locations @ concepts.T, concepts @ concepts.T
    for _ in range(SWEEPS):
        _improve(weights, target, gram)
    return weights


def _improve(weights: Tensor, target: Tensor, gram: Tensor) -> None:
    """Set each column of W [n,k] in turn to its best non-negative value; target = V Hᵀ [n,k], gram = H Hᵀ [k,k]."""
    for j in range(weights.shape[1]):
        step = (target[:, j] - weights @ gram[:, j]) / gram[j, j].clamp_min(TINY)
        weights[:, j] = (weights[:, j] + step).clamp_min(0)
