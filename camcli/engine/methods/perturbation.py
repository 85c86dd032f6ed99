"""Methods that change something and look at the score again, without any gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from camcli.config.section import Positive, Section, Switch
from camcli.engine.methods.view import Batch, LayerView, layer_method, pixel_method

RESIDUE = 1e-6


class Channels(Section):
    """Options of methods that score channels one by one."""

    max_channels: Positive | None = Field(None, description="Score only the strongest channels; null: all.")


@layer_method(
    "scorecam",
    ("activations", "scores"),
    "1 forward per channel",
    "https://arxiv.org/abs/1910.01279",
    options=Channels,
    good_for="no gradients, when time permits",
)
def scorecam(view: LayerView, options: Channels) -> Tensor:
    """softmax_c(score of the image under channel c as a mask) A_c; a channel of zeros adds nothing and is skipped."""
    return _weighed(view, options, lambda image, channels: _scored(view, image, channels, options, 1.0))


def _weighed(view: LayerView, options: Channels, logits_of: Callable[[int, Tensor], Tensor]) -> Tensor:
    """softmax_c(score_c) A_c; logits_of: gives those [n,K] that an image has under each of n channels."""
    weights = torch.zeros(view.activations.shape[:2], device=view.activations.device)
    for image in view.batch.asked:
        channels = view.channels(image, options.max_channels)
        scores = logits_of(image, channels) @ view.batch.target_weights[image]
        weights[image, channels] = scores.softmax(dim=0)
    return weights[:, :, None, None] * view.activations


class Shares(Channels):
    """Options of iscam."""

    steps: Positive = Field(10, description="Points on the way from an empty mask to the whole one.")


@layer_method(
    "iscam",
    ("activations", "scores"),
    "`steps` forwards per channel",
    "https://arxiv.org/abs/2010.03023",
    options=Shares,
    good_for="Score-CAM where scores saturate",
)
def iscam(view: LayerView, options: Shares) -> Tensor:
    """softmax_c(mean_t score of the image under t times channel c as a mask) A_c, t = 1/steps, 2/steps, ..., 1."""
    shares = [(i + 1) / options.steps for i in range(options.steps)]

    def mean(image: int, channels: Tensor) -> Tensor:
        return torch.stack([_scored(view, image, channels, options, share) for share in shares]).mean(dim=0)

    return _weighed(view, options, mean)


def _scored(view: LayerView, image: int, channels: Tensor, options: Channels, share: float) -> Tensor:
    """[n,K] as `masked_logits`, once for every method and target that asks for this `share` of these masks."""
    key = f"masked {image} by {options.max_channels}, times {share}"
    return view.once(key, lambda: masked_logits(view, image, channels, lambda mask: share * mask))


class NoisyMasks(Channels):
    """Options of sscam."""

    samples: Positive = Field(35, description="Noisy copies of each mask.")
    mask_noise: float = Field(2.0, ge=0, description="Standard deviation, where the mask goes from 0 to 1.")


@layer_method(
    "sscam",
    ("activations", "scores"),
    "`samples` forwards per channel",
    "https://arxiv.org/abs/2006.14255",
    options=NoisyMasks,
    good_for="Score-CAM with less chance",
)
def sscam(view: LayerView, options: NoisyMasks) -> Tensor:
    """softmax_c(mean over noise n of the score of the image under channel c + n as a mask) A_c; all meet one noise."""

    def noisy(image: int, channels: Tensor) -> Tensor:
        key = f"noisy masks {image}: {options}"
        return view.once(key, lambda: _noisy_logits(view, image, channels, options))

    return _weighed(view, options, noisy)


def _noisy_logits(view: LayerView, image: int, channels: Tensor, options: NoisyMasks) -> Tensor:
    """[n,K], the mean over noisy masks."""
    generator, inputs = torch.Generator().manual_seed(0), view.batch.inputs
    total = torch.zeros(len(channels), view.batch.logits.shape[1], device=inputs.device)
    for _ in range(options.samples):
        noise = options.mask_noise * torch.randn(inputs.shape[-2:], generator=generator).to(inputs.device)
        total += masked_logits(view, image, channels, lambda mask, noise=noise: mask + noise)  # type: ignore[misc]
    return total / options.samples


def masked_logits(view: LayerView, row: int, channels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """[n,K] logits of the image under each of n `channels` as a changed mask; equal masks share one pass."""
    image = view.batch.inputs[row]
    maps = view.activations[row, channels]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    scaled = torch.where(high > low, (maps - low) / (high - low), 0)
    distinct, which = torch.unique(scaled, dim=0, return_inverse=True)
    chunks = torch.split(distinct, view.batch.chunk)
    return view.batch.logits_of(change(masks(chunk, image.shape[-2:])) * image for chunk in chunks)[which]


def masks(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[n,h,w] -> [n,1,*size] in 0..1, corner locations on the image's corners."""
    large = F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=True)
    low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (large - low) / (high - low), 0)


def _ablation_terms(view: LayerView, raw: Tensor) -> Tensor:
    """(largest |logit|) / |y| |A_c| of the channels that were taken out: logits are rounded by shares of their size."""
    batch, used = view.batch, (raw != 0).flatten(2).any(dim=2)[:, :, None, None]
    size = batch.logits.abs().amax(dim=1) / _size(batch)
    return size[:, None, None, None] * view.activations.abs() * used


def _size(batch: Batch) -> Tensor:
    """|y| [B], or where y is nothing but rounding, a millionth of the largest logit."""
    largest = batch.logits.abs().amax(dim=1)
    return torch.maximum(batch.scores.abs(), RESIDUE * torch.where(largest > 0, largest, 1))


@layer_method(
    "ablationcam",
    ("activations", "tail"),
    "1 forward of the tail per channel",
    "https://doi.org/10.1109/WACV45572.2020.9093360",
    terms=_ablation_terms,
    options=Channels,
    good_for="what each channel is worth",
)
def ablationcam(view: LayerView, options: Channels) -> Tensor:
    """(y - y without channel c) / |y| A_c: the paper divides by y, which turns the map around where y is negative."""
    weights = torch.zeros(view.activations.shape[:2], device=view.activations.device)
    for image in view.batch.asked:
        score, channels = view.batch.scores[image], view.channels(image, options.max_channels)
        logits = view.once(f"ablated {image}: {options}", partial(ablated_logits, view, image, channels))
        weights[image, channels] = score - logits @ view.batch.target_weights[image]
    weights = weights / _size(view.batch)[:, None]
    return weights[:, :, None, None] * view.activations


def ablated_logits(view: LayerView, image: int, channels: Tensor) -> Tensor:
    """[n,K] logits of the image with each of n `channels` set to zero in turn."""
    return torch.cat(
        [view.tail(image, without(view.activations[image], c)) for c in torch.split(channels, view.batch.chunk)]
    )


def without(activation: Tensor, channels: Tensor) -> Tensor:
    """[n,C,h,w]: copies of [C,h,w], in each of which one of `channels` [n] is zero."""
    copies = activation.repeat(len(channels), 1, 1, 1)
    copies[torch.arange(len(channels)), channels] = 0
    return copies


class Mosaic(Section):
    """Options of reciprocam."""

    gaussian: Switch | None = Field(None, description="Keep neighbours a little, too; null: only among tokens.")


def _logit_terms(batch: Batch, raw: Tensor) -> Tensor:
    """[B,1,h,w], the largest |logit|: logits are rounded by shares of their size."""
    return batch.logits.abs().amax(dim=1)[:, None, None, None].expand(-1, 1, *raw.shape[1:])


@layer_method(
    "reciprocam",
    ("activations", "tail"),
    "1 forward of the tail per location",
    "https://arxiv.org/abs/2209.14074",
    terms=lambda view, raw: _logit_terms(view.batch, raw),
    options=Mosaic,
    good_for="no gradients, CNN or ViT",
    contributions=False,
)
def reciprocam(view: LayerView, options: Mosaic) -> Tensor:
    """score with one location of A alone, all others zero, above the lowest such score; class tokens stay.

    Among tokens this is ViT-Recipro-CAM (https://arxiv.org/abs/2310.02588), with a Gaussian of 3x3 locations.
    """
    gaussian = view.layout.kind == "tokens" if options.gaussian is None else options.gaussian
    maps = torch.zeros_like(view.activations[:, 0])
    for image in view.batch.asked:
        logits = view.once(f"alone {image}: {gaussian}", partial(lone_logits, view, image, gaussian))
        scores = logits @ view.batch.target_weights[image]
        maps[image] = (scores - scores.min()).view(maps.shape[1:])
    return maps


def lone_logits(view: LayerView, image: int, gaussian: bool) -> Tensor:
    """[h*w,K] logits of the image with each location alone."""
    activation = view.activations[image]
    height, width = activation.shape[1:]
    alone = torch.eye(height * width, device=activation.device).view(-1, 1, height, width)
    if gaussian:
        line = alone.new_tensor([0.25, 0.5, 0.25])
        alone = F.conv2d(alone, (line[:, None] * line)[None, None], padding=1)
    return torch.cat([view.tail(image, mask * activation) for mask in torch.split(alone, view.batch.chunk)])


class Patches(Section):
    """Options of occlusion."""

    patch: Positive = Field(32, description="Side of the muted square, pixels of the model's input.")
    stride: Positive = Field(16, description="From one square to the next, pixels, at most `patch`.")

    @model_validator(mode="after")
    def _no_gaps(self) -> Patches:
        if self.stride > self.patch:
            raise ValueError("stride is larger than patch, which leaves pixels unseen between squares")
        return self


@pixel_method(
    "occlusion",
    ("scores",),
    "1 forward per patch",
    "https://arxiv.org/abs/1311.2901",
    terms=_logit_terms,
    options=Patches,
    good_for="proof by covering, any model",
)
def occlusion(batch: Batch, views: Sequence[LayerView], options: Patches) -> Tensor:
    """mean over the patches on a pixel of y - y with the patch muted to the mean colour."""
    patches = torch.stack(list(windows(batch.inputs.shape[-2:], options.patch, options.stride)))
    patches = patches.to(batch.inputs.device)
    cover = patches.sum(dim=0).clamp_min(1)
    maps = torch.zeros_like(batch.inputs[:, 0])
    for row in batch.asked:
        logits = batch.once(f"muted {row}: {options}", partial(muted_logits, batch, row, patches))
        falls = batch.scores[row] - logits @ batch.target_weights[row]
        maps[row] = torch.einsum("p,phw->hw", falls, patches.float()) / cover
    return maps


def muted_logits(batch: Batch, row: int, patches: Tensor) -> Tensor:
    """[P,K] logits of the image with each of the patches, bool [P,H,W], muted in turn."""
    chunks = torch.split(patches, batch.chunk)
    return batch.logits_of(batch.inputs[row] * ~chunk[:, None] for chunk in chunks)


def windows(size: Sequence[int], patch: int, stride: int) -> Iterator[Tensor]:
    """Bool [H,W], true inside one patch; a `stride` apart, the last ones cut off by the border."""
    height, width = size
    for top in starts(height, patch, stride):
        for left in starts(width, patch, stride):
            window = torch.zeros(height, width, dtype=torch.bool)
            window[top : top + patch, left : left + patch] = True
            yield window


def starts(length: int, patch: int, stride: int) -> range:
    """Where patches begin so that they reach the end of `length` pixels."""
    return range(0, max(length - patch, 0) + stride, stride)
