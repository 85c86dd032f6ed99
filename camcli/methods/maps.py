"""Arithmetic on raw maps: from the parts of channels to one map, and from raw maps to heat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CONSTANT = 1e-6


@dataclass(frozen=True, slots=True)
class Maps:
    """A batch of maps: heat [B,h,w] in 0..1 (signed: -1..1), and the raw range [B] that became it."""

    heat: Tensor
    low: Tensor
    high: Tensor


def merge(raws: Sequence[Tensor], signed: bool = False) -> Maps:
    """The mean of the layers' scaled maps [B,h,w] at the finest layer's resolution, and the range of all raw maps."""
    size = max((raw.shape[-2:] for raw in raws), key=lambda s: s[0] * s[1])
    to_heat = scale_signed if signed else scale
    scaled = [resize(to_heat(raw), size) for raw in raws]
    heat = scaled[0] if len(scaled) == 1 else to_heat(torch.stack(scaled).mean(dim=0))
    low = torch.stack([raw.amin(dim=(1, 2)) for raw in raws]).amin(dim=0)
    high = torch.stack([raw.amax(dim=(1, 2)) for raw in raws]).amax(dim=0)
    return Maps(heat, low, high)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[B,h,w] -> [B,*size], bilinear between the centres of cells."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def scale(raw: Tensor) -> Tensor:
    """ReLU, then the last two axes to 0..1; a map that is constant has nothing to show and becomes 0."""
    positive = raw.relu()
    low, high = positive.amin(dim=(-2, -1), keepdim=True), positive.amax(dim=(-2, -1), keepdim=True)
    span = high - low
    return torch.where(span <= CONSTANT * high, torch.zeros_like(raw), (positive - low) / span.clamp_min(1e-38))


def scale_signed(raw: Tensor) -> Tensor:
    """The last two axes divided by their largest magnitude: -1..1, and 0 stays 0."""
    largest = raw.abs().amax(dim=(-2, -1), keepdim=True)
    return raw / largest.clamp_min(1e-38)


def principal(parts: Tensor) -> Tensor:
    """Each picture's cells [h*w,C], centred, projected on their first right singular vector: [B,C,h,w] -> [B,h,w].

    The vector's sign is arbitrary; it is chosen so that the largest magnitude is positive. The smaller of the two
    Gram matrices gives the same vector as a singular value decomposition, many times faster.
    """
    cells = parts.flatten(2).transpose(1, 2)
    finite = cells.isfinite().all(dim=2).all(dim=1)[:, None]
    cells = (cells - cells.mean(dim=1, keepdim=True)).nan_to_num(0, 0, 0)
    cells = cells.to(torch.float32 if cells.device.type == "mps" else torch.float64)
    rows, columns = cells.shape[1:]
    if rows <= columns:
        values, vectors = torch.linalg.eigh(cells @ cells.mT)
        projected = vectors[..., -1] * values[:, -1:].clamp_min(0).sqrt()
    else:
        projected = (cells @ torch.linalg.eigh(cells.mT @ cells).eigenvectors[..., -1:])[..., 0]
    flip = projected.amin(dim=1).abs() > projected.amax(dim=1).abs()
    projected = torch.where(flip[:, None], -projected, projected).float()
    return torch.where(finite, projected, torch.nan).view(-1, *parts.shape[2:])
