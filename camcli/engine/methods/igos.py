"""Masks that are searched for with integrated gradients: where little must be hidden for the answer to fall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from camcli.config.section import Positive, Section, Switch
from camcli.engine.methods.blur import blurred
from camcli.engine.methods.view import Batch, LayerView, pixel_method

EDGE = 0.01
"""How soon the bilateral total variation lets the mask change where the image does, in squares of its units."""
SLOPE, SHRINK, TRIES = 1e-4, 0.3, 8
"""Line search: the part of the promised fall that is asked for, the next try's step, and how many there are."""


class Search(Section):
    """Options of igos."""

    side: int = Field(28, ge=7, le=224, description="Mask cells along each side.")
    iterations: Positive = Field(20, description="Steps of the search, at most.")
    steps: Positive = Field(15, description="Points on the way from the baseline to the masked image.")
    l1: float = Field(1.0, ge=0, description="Weight of what is hidden, mean of 1 - mask.")
    tv: float = Field(20.0, ge=0, description="Weight of the total variation, mean squared difference of neighbours.")
    bilateral: Switch = Field(False, description="Let the mask change where the image does.")
    baseline: Literal["blur", "noise"] = Field("blur", description="What stands where the mask hides the image.")
    blur: float = Field(0.1, gt=0, description="Deviation of the blurred baseline, in parts of the image's long side.")
    jitter: float = Field(0.2, ge=0, description="Deviation of noise on the masked images, units of the model's input.")


class SearchBoth(Search):
    """Options of igos++."""

    iterations: Positive = Field(15, description="Steps of the search, at most.")
    steps: Positive = Field(20, description="Points on the way from the baseline to the masked image.")
    bilateral: Switch = Field(True, description="Let the mask change where the image does.")


@pixel_method(
    "igos",
    ("pixels",),
    "`iterations` x `steps` forwards and backwards, some forwards more",
    "https://arxiv.org/abs/1905.00954",
    options=Search,
    good_for="the least that must go",
)
def igos(batch: Batch, views: Sequence[LayerView], options: Search) -> Tensor:
    """1 - M, M the mask with least mean_t p(x under t M) + l1 mean(1 - M) + tv TV(M), by integrated gradients."""
    return _searched(batch, "igos", options, 1)


@pixel_method(
    "igos++",
    ("pixels",),
    "4 x `iterations` x `steps` forwards and backwards, some forwards more",
    "https://arxiv.org/abs/2012.15783",
    options=SearchBoth,
    good_for="what suffices and is needed",
)
def igos_plus_plus(batch: Batch, views: Sequence[LayerView], options: SearchBoth) -> Tensor:
    """1 - D I, masks D and I of which each alone and both as a product delete p where they hide and insert it there."""
    return _searched(batch, "igos++", options, 2)


def _searched(batch: Batch, name: str, options: Search, masks: int) -> Tensor:
    def compute(inputs: Tensor, target_weights: Tensor) -> Tensor:
        rows = max(1, min(len(batch.inputs), batch.chunk // options.steps))
        found = []
        for group in torch.split(torch.arange(len(inputs), device=inputs.device), rows):
            filled = torch.cat([group, group[-1:].expand(rows - len(group))])
            problem = Problem.of(batch, inputs[filled], target_weights[filled], options, masks)
            found.append(1 - problem.shown(minimised(problem, options.iterations))[: len(group)])
        return torch.cat(found)

    return batch.for_every_target(f"{name} {options}", compute)


@dataclass(frozen=True)
class Problem:
    """What the masks [R,M,s,s] of R images and targets have to minimise; M is 1, or 2 for deletion and insertion.

    Every group has the same number of rows, filled up with copies, because rounding depends on it.
    """

    batch: Batch
    image: Tensor
    baseline: Tensor
    target_weights: Tensor
    jitter: Tensor
    edges: tuple[Tensor, Tensor]
    options: Search
    masks: int

    @classmethod
    def of(cls, batch: Batch, image: Tensor, target_weights: Tensor, options: Search, masks: int) -> Problem:
        """For images [R,3,H,W]; noise is the same for all images and in every run."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, *image.shape[1:], generator=generator).to(image.device)
        baseline = blurred(image, options.blur * max(image.shape[-2:])) if options.baseline == "blur" else noise
        jitter = torch.randn(options.steps, *image.shape[1:], generator=generator).to(image.device) * options.jitter
        across, down = image.diff(dim=-1), image.diff(dim=-2)
        edges = tuple((-(d**2).mean(dim=1, keepdim=True) / EDGE).exp() for d in (across, down))
        about = target_weights, jitter, edges, options, masks
        return cls(batch, image, baseline.expand_as(image), *about)  # type: ignore[arg-type]

    def start(self) -> Tensor:
        """Masks [R,M,s,s] that hide nothing."""
        return self.image.new_ones(len(self.image), self.masks, self.options.side, self.options.side)

    def shown(self, masks: Tensor) -> Tensor:
        """[R,H,W]: how much of each pixel all masks together let through."""
        return self._large(masks).prod(dim=1)

    def objective(self, masks: Tensor) -> Tensor:
        """[R], without a gradient."""
        with torch.no_grad():
            ways = self._ways(self._large(masks))
            total = torch.stack([sign * self._along(mask, insertion)[0] for sign, mask, insertion in ways]).sum(dim=0)
            return total / len(ways) * self.masks + self._regular(masks)

    def gradient(self, masks: Tensor) -> Tensor:
        """Of the objective, [R,M,s,s]: integrated gradients through the network, autograd for the rest."""
        leaf = masks.detach().requires_grad_()
        with torch.enable_grad():
            ways = self._ways(self._large(leaf))
            outer = self._regular(leaf).sum()
            for sign, mask, insertion in ways:
                slope = self._along(mask.detach(), insertion)[1]
                outer = outer + sign * (slope * mask).sum() / len(ways) * self.masks
        return torch.autograd.grad(outer, leaf)[0]

    def _large(self, masks: Tensor) -> Tensor:
        size = tuple(self.image.shape[-2:])
        return F.interpolate(masks, size, mode="bilinear", align_corners=True)

    def _ways(self, large: Tensor) -> list[tuple[int, Tensor, bool]]:
        """(sign, mask [R,H,W], whether it inserts) of each path whose mean score counts."""
        if self.masks == 1:
            return [(1, large[:, 0], False)]
        both = large.prod(dim=1)
        return [(1, large[:, 0], False), (-1, large[:, 1], True), (1, both, False), (-1, both, True)]

    def _along(self, mask: Tensor, insertion: bool) -> tuple[Tensor, Tensor]:
        """The mean over t of p with t times the `mask` [R,H,W]: its value [R], and its slope [R,H,W] where wanted."""
        kept, other = (self.baseline, self.image) if insertion else (self.image, self.baseline)
        steps, rows = self.options.steps, len(mask)
        values, slopes = mask.new_zeros(rows), torch.zeros_like(mask)
        parts = -(-steps * rows // max(self.batch.chunk, rows))
        for number in torch.arange(steps, device=mask.device).chunk(parts):
            t = ((number + 1) / steps).view(1, -1, 1, 1, 1)
            change = (kept - other)[:, None]
            images = other[:, None] + t * mask[:, None, None] * change + self.jitter[number]
            weights = self.target_weights.repeat_interleave(len(number), dim=0)
            value, slope = self._score(images.flatten(0, 1), weights)
            values += value.view(rows, -1).sum(dim=1) / steps
            if slope is not None:
                slopes += (slope.view_as(images) * change * t).sum(dim=(1, 2)) / steps
        return values, slopes

    def _score(self, images: Tensor, target_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """p [n] of the targets, and where gradients are wanted d p / d image [n,3,H,W]."""
        if not torch.is_grad_enabled():
            p = self.batch.probabilities(self.batch.network(images))
            return (p * target_weights).sum(dim=1), None
        return self.batch.probability_gradients(images, target_weights)

    def _regular(self, masks: Tensor) -> Tensor:
        """[R]: l1 mean(1 - M) + tv TV(M) of the masks' product M."""
        product = masks.prod(dim=1, keepdim=True)
        hidden = (1 - product).mean(dim=(1, 2, 3))
        variation = (product.diff(dim=-1) ** 2).mean(dim=(1, 2, 3)) + (product.diff(dim=-2) ** 2).mean(dim=(1, 2, 3))
        if self.options.bilateral:
            large = self._large(product)
            soft = [e * large.diff(dim=d) ** 2 for e, d in zip(self.edges, (-1, -2), strict=True)]
            variation = (variation + sum(s.mean(dim=(1, 2, 3)) for s in soft)) / 2
        return self.options.l1 * hidden + self.options.tv * variation


def minimised(problem: Problem, iterations: int) -> Tensor:
    """The masks after at most so many steps; every step that is taken lowers the objective of its row."""
    masks = problem.start()
    value = problem.objective(masks)
    moving = torch.ones_like(value, dtype=torch.bool)
    step = torch.full_like(value, torch.inf)
    for _ in range(iterations):
        gradient = problem.gradient(masks)
        largest = gradient.abs().amax(dim=(1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny)
        step = torch.minimum(1 / largest, step / SHRINK)
        masks, value, step, moving = _stepped(problem, masks, value, gradient, step, moving)
        if not moving.any():
            break
    return masks


def _stepped(
    problem: Problem, masks: Tensor, value: Tensor, gradient: Tensor, step: Tensor, moving: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks one step on, their objectives, the steps, and which rows moved; what once has not moved stays."""
    best, reached, waiting = masks, value, moving
    for _ in range(TRIES):
        tried = (masks - step[:, None, None, None] * gradient).clamp(0, 1)
        found = problem.objective(tried)
        promised = ((masks - tried) * gradient).sum(dim=(1, 2, 3))
        good = waiting & (found < value) & (found <= value - SLOPE * promised)
        best = torch.where(good[:, None, None, None], tried, best)
        reached = torch.where(good, found, reached)
        waiting = waiting & ~good
        if not waiting.any():
            break
        step = torch.where(waiting, step * SHRINK, step)
    return best, reached, step, moving & ~waiting
