"""RISE: what random masks leave visible, weighed by what the network then makes of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from camcli.config.section import Positive, Section
from camcli.engine.methods.view import Batch, LayerView, pixel_method


class RandomMasks(Section):
    """Options of rise."""

    masks: Positive = Field(4000, description="Random masks.")
    grid: Positive = Field(7, description="Mask cells along each side.")
    keep: float = Field(0.5, gt=0, lt=1, description="Probability that a cell lets the image through.")


@pixel_method(
    "rise",
    ("scores",),
    "`masks` forwards",
    "https://arxiv.org/abs/1806.07421",
    options=RandomMasks,
    good_for="no gradients, any black box",
)
def rise(batch: Batch, views: Sequence[LayerView], options: RandomMasks) -> Tensor:
    """mean over random masks M of p(M x) M / keep, p the probability; x = 0 is the mean colour. All meet one set."""
    return batch.once(f"rise {options}", partial(_all_maps, batch, options))[batch.turn]


def _all_maps(batch: Batch, options: RandomMasks) -> Tensor:
    """[targets,B,H,W]: a mask is made once for all images, and its forward pass serves every target of an image."""
    rounds = torch.stack(list(batch.rounds or [batch.target_weights]))
    total = batch.inputs.new_zeros(*rounds.shape[:2], *batch.inputs.shape[-2:])
    rows = rounds.any(dim=2).any(dim=0).nonzero()[:, 0].tolist()
    for masks in random_masks(batch.inputs.shape[-2:], options, batch.chunk):
        masks = masks.to(batch.inputs.device)
        for row in rows:
            p = batch.probabilities(batch.logits_of([masks[:, None] * batch.inputs[row]]))
            total[:, row] += torch.einsum("rk,nk,nhw->rhw", rounds[:, row], p, masks)
    return total / (options.masks * options.keep)


def random_masks(size: Sequence[int], options: RandomMasks, chunk: int) -> Iterator[Tensor]:
    """[n,H,W] in 0..1, at most `chunk` at a time: enlarged random grids, shifted by less than a cell.

    All that is random is drawn before the first chunk, so that the masks are the same for every `chunk`.
    """
    generator, (height, width), side = torch.Generator().manual_seed(0), size, options.grid
    cells = -(-height // side), -(-width // side)
    grids = (torch.rand(options.masks, 1, side, side, generator=generator) < options.keep).float()
    tops, lefts = (torch.randint(0, cell, (options.masks,), generator=generator) for cell in cells)
    large = [(side + 1) * cell for cell in cells]
    for some, y, x in zip(*(torch.split(drawn, chunk) for drawn in (grids, tops, lefts)), strict=True):
        enlarged = F.interpolate(some, large, mode="bilinear", align_corners=False)[:, 0]
        corners = zip(enlarged, y.tolist(), x.tolist(), strict=True)
        yield torch.stack([one[top : top + height, left : left + width] for one, top, left in corners])
