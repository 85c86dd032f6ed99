"""Gaussian blur of images, for methods that hide parts of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def blurred(images: Tensor, deviation: float) -> Tensor:
    """[N,C,H,W] under a Gaussian of this standard deviation in pixels, borders mirrored; 0 gives the images."""
    if deviation <= 0:
        return images
    for axis in (-1, -2):
        images = _along(images.transpose(axis, -1), deviation).transpose(axis, -1)
    return images


def _along(images: Tensor, deviation: float) -> Tensor:
    """The same along the last axis."""
    length = images.shape[-1]
    radius = min(math.ceil(3 * deviation), length - 1)
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    weights = (-(places**2) / (2 * deviation**2)).exp()
    rows = F.pad(images.reshape(-1, 1, length), (radius, radius), mode="reflect")
    return F.conv1d(rows, (weights / weights.sum())[None, None]).view(images.shape)
