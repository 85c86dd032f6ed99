"""Arithmetic on raw maps: from channel contributions to one map, and from raw maps to heat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

CONSTANT = 1e-6
REASONS = (
    "",
    "no value of the map is above zero",
    "the map has the same value everywhere",
    "the largest value of the map is within the rounding of what it adds up",
)
"""Why a map is empty, by number; 0 is a map that is not."""
SHOWN, NOTHING, SAME, ROUNDING = range(4)


@dataclass(frozen=True, slots=True)
class Maps:
    """A batch of maps: heat [B,h,w] in 0..1 (signed: -1..1), the raw range [B] that became it, and its REASONS [B]."""

    heat: Tensor
    low: Tensor
    high: Tensor
    reason: Tensor


def merge(raws: Sequence[Tensor], signed: bool = False, noises: Sequence[Tensor] = ()) -> Maps:
    """The mean of the layers' scaled maps [B,h,w] at the finest layer's resolution, and the range of all raw maps.

    noises: [B,h,w] for each layer, what rounding may have added to its raw map.
    """
    size = max((raw.shape[-2:] for raw in raws), key=lambda s: s[0] * s[1])
    reasons = [reason_of(raw, signed, noise) for raw, noise in zip_longest(raws, noises)]
    scaled = [resize(blanked(to_heat(raw, signed), reason), size) for raw, reason in zip(raws, reasons, strict=True)]
    low = torch.stack([raw.amin(dim=(1, 2)) for raw in raws]).amin(dim=0)
    high = torch.stack([raw.amax(dim=(1, 2)) for raw in raws]).amax(dim=0)
    if len(scaled) == 1:
        return Maps(scaled[0], low, high, reasons[0])
    return mean_of(scaled, signed, Maps(scaled[0], low, high, reasons[0]))


def mean_of(heats: Sequence[Tensor], signed: bool, first: Maps) -> Maps:
    """The mean of `heats` as heat, with the raw range of the `first`; where all are empty, for its reason."""
    mean = torch.stack(list(heats)).mean(dim=0)
    own = reason_of(mean, signed)
    reason = torch.where((own == NOTHING) & (first.reason != SHOWN), first.reason, own)
    return Maps(blanked(to_heat(mean, signed), own), first.low, first.high, reason)


def reason_of(raw: Tensor, signed: bool, noise: Tensor | None = None) -> Tensor:
    """[B] why raw maps [B,h,w] have nothing to show, as numbers of REASONS."""
    shown = raw.abs() if signed else raw.relu()
    high, at = shown.flatten(1).max(dim=1)
    low = torch.zeros_like(high) if signed else shown.amin(dim=(1, 2))
    reason = torch.full_like(at, SHOWN)
    reason[high - low <= CONSTANT * high] = SAME
    if noise is not None:
        reason[high - low <= noise.flatten(1).gather(1, at[:, None])[:, 0]] = ROUNDING
    reason[high <= 0] = NOTHING
    return reason


def blanked(heat: Tensor, reason: Tensor) -> Tensor:
    """`heat` [B,h,w], zero in maps that have nothing to show."""
    return heat.masked_fill((reason != SHOWN)[:, None, None], 0)


def rounding(terms: Tensor, number: torch.dtype) -> Tensor:
    """[B,h,w]: how large a sum over the channels of `terms` [B,C,h,w] may become by rounding alone.

    number: the type that the terms were stored as. Errors of float32 arithmetic are common to all terms (a norm takes
    one mean from all of them), so their magnitudes add up; 16 bits round each term for itself, so squares add up.
    """
    bound: Tensor = 2 * torch.finfo(torch.float32).eps * terms.abs().sum(dim=1)
    return bound + torch.finfo(number).eps * terms.norm(dim=1) if number.itemsize == 2 else bound


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[B,h,w] -> [B,*size], bilinear between the centres of locations."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def to_heat(raw: Tensor, signed: bool) -> Tensor:
    """Raw maps [B,h,w] as heat."""
    return scale_signed(raw) if signed else scale(raw)


def scale(raw: Tensor) -> Tensor:
    """ReLU, then the last two axes to 0..1; a map that is constant has nothing to show and becomes 0."""
    positive = raw.relu()
    low, high = positive.amin(dim=(-2, -1), keepdim=True), positive.amax(dim=(-2, -1), keepdim=True)
    span = high - low
    return torch.where(span <= CONSTANT * high, 0, (positive - low) / span)


def scale_signed(raw: Tensor) -> Tensor:
    """The last two axes divided by their largest magnitude: -1..1, and 0 stays 0."""
    largest = raw.abs().amax(dim=(-2, -1), keepdim=True)
    return raw / torch.where(largest > 0, largest, 1)


def principal(contributions: Tensor) -> Tensor:
    """Locations of each image [h*w,C], centred, on their first right singular vector: [B,C,h,w] -> [B,h,w].

    The vector's sign is arbitrary; the map is to rise with the total activation, sum_c |contribution|. The
    smaller of the two Gram matrices gives the same vector as a singular value decomposition, many times faster.
    """
    locations = contributions.flatten(2).transpose(1, 2)
    finite = locations.isfinite().all(dim=2).all(dim=1)[:, None]
    locations = locations.nan_to_num(0, 0, 0).to(torch.float32 if locations.device.type == "mps" else torch.float64)
    total = locations.abs().sum(dim=2)
    largest = locations.abs().amax(dim=(1, 2), keepdim=True)
    locations = (locations - locations.mean(dim=1, keepdim=True)) / torch.where(largest > 0, largest, 1)
    rows, columns = locations.shape[1:]
    if rows <= columns:
        values, vectors = torch.linalg.eigh(locations @ locations.mT)
        projected = vectors[..., -1] * values[:, -1:].clamp_min(0).sqrt()
    else:
        projected = (locations @ torch.linalg.eigh(locations.mT @ locations).eigenvectors[..., -1:])[..., 0]
    projected = (_rising(projected, total) * largest[..., 0]).float()
    return torch.where(finite, projected, torch.nan).view(-1, *contributions.shape[2:])


def kernel_principal(contributions: Tensor, gamma: float) -> Tensor:
    """First kernel principal component of each image's centred locations [h*w,C]: [B,C,h,w] -> [B,h,w].

    The kernel of two locations is tanh(gamma x·y + 1). The sign is chosen as in `principal`. An image at a time,
    because a kernel is as large as the square of the number of locations.
    """
    return torch.stack([_component(one.flatten(1).T, gamma).view(one.shape[1:]) for one in contributions])


def _component(locations: Tensor, gamma: float) -> Tensor:
    """[n] for locations [n,C]."""
    if not locations.isfinite().all():
        return torch.full_like(locations[:, 0], torch.nan)
    locations = locations.to(torch.float32 if locations.device.type == "mps" else torch.float64)
    total = locations.abs().sum(dim=1)[None]
    locations = locations - locations.mean(dim=0)
    kernel = (gamma * (locations @ locations.T) + 1).tanh()
    kernel = kernel - kernel.mean(dim=0) - kernel.mean(dim=1, keepdim=True) + kernel.mean()
    values, vectors = torch.linalg.eigh(kernel)
    return _rising((vectors[:, -1] * values[-1].clamp_min(0).sqrt())[None], total)[0].float()


def _rising(projected: Tensor, total: Tensor) -> Tensor:
    """[B,n] with the sign that makes it rise with `total` [B,n]."""
    opposed = (projected * (total - total.mean(dim=1, keepdim=True))).sum(dim=1, keepdim=True) < 0
    return torch.where(opposed, -projected, projected)


def along(contributions: Tensor, component: Tensor) -> Tensor:
    """[B,C,h,w]: what each channel adds to the first `component` [B,h,w] of `contributions`, before centring."""
    locations, projected = contributions.flatten(2), component.flatten(1)[..., None]
    vector = (locations - locations.mean(dim=2, keepdim=True)) @ projected
    length = vector.norm(dim=1, keepdim=True)
    return contributions * (vector / torch.where(length > 0, length, 1))[..., None]
