"""Methods at the resolution of the model's input x [B,3,H,W], from gradients that go all the way down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from camcli.config.section import Positive, Section, Unit
from camcli.engine.methods.biases import Bias, Biases
from camcli.engine.methods.gradient import gradcam, gradcam_terms
from camcli.engine.methods.lift import gradients_of
from camcli.engine.methods.maps import merge, resize, rounding, scale
from camcli.engine.methods.rectifier import Rectified, Rule, deconvolved, guided
from camcli.engine.methods.view import Batch, LayerView, pixel_method
from camcli.errors import MethodError


@pixel_method(
    "guided-backprop",
    ("pixels",),
    "1 forward and backward",
    "https://arxiv.org/abs/1412.6806",
    signed=True,
    good_for="fine edges, hardly class-specific",
)
def guided_backprop(batch: Batch, views: Sequence[LayerView]) -> Tensor:
    """sum_rgb of the gradient that keeps, at each rectifier, what is positive there in input and gradient."""
    return rectified(batch, guided).sum(dim=1)


@pixel_method(
    "deconvnet",
    ("pixels",),
    "1 forward and backward",
    "https://arxiv.org/abs/1311.2901",
    signed=True,
    good_for="comparing with the older literature",
)
def deconvnet(batch: Batch, views: Sequence[LayerView]) -> Tensor:
    """sum_rgb of the gradient that keeps, at each rectifier, what is positive in the gradient."""
    return rectified(batch, deconvolved).sum(dim=1)


@pixel_method(
    "guided-gradcam",
    ("activations", "gradients", "pixels"),
    "1 forward and backward",
    "https://arxiv.org/abs/1610.02391",
    signed=True,
    good_for="fine edges of one class",
)
def guided_gradcam(batch: Batch, views: Sequence[LayerView]) -> Tensor:
    """Guided backprop times Grad-CAM's heat: fine detail, only where the class is."""
    noises = [rounding(gradcam_terms(view, view.activations), view.number) for view in views]
    heat = merge([gradcam(view).sum(dim=1) for view in views], noises=noises).heat
    return guided_backprop(batch, views) * resize(heat, batch.inputs.shape[-2:])


def rectified(batch: Batch, rule: Rule) -> Tensor:
    """d score / dx, float32 [B,3,H,W], with `rule` at every rectifier; raises MethodError where there is none."""
    with Rectified(rule) as mode:
        gradients = batch.input_gradients(batch.inputs)
    if not mode.met and batch.asked:
        raise MethodError(
            "guided-backprop, deconvnet and guided-gradcam change the gradient at ReLU, LeakyReLU, ReLU6, ELU, SiLU, "
            "GELU, Mish and Hardswish, and this model has none of them; use 'smoothgrad' or 'integrated-gradients'"
        )
    return gradients


class Steps(Section):
    """Options of integrated-gradients."""

    steps: Positive = Field(32, description="Points on the way from the mean colour.")


@pixel_method(
    "integrated-gradients",
    ("pixels",),
    "`steps` forwards and backwards",
    "https://arxiv.org/abs/1703.01365",
    signed=True,
    options=Steps,
    good_for="pixels whose parts add up",
)
def integrated_gradients(batch: Batch, views: Sequence[LayerView], options: Steps) -> Tensor:
    """sum_rgb x mean_t(g(t x)), t in the middles of `steps` equal parts of 0..1; x = 0 is the mean colour."""
    steps = options.steps
    maps = torch.zeros_like(batch.inputs[:, 0])
    for row in batch.asked:
        x = batch.inputs[row]
        total = batch.variant_gradients(row, (x * ((i + 0.5) / steps) for i in range(steps)))
        maps[row] = (x * total / steps).sum(dim=0)
    return maps


class Noise(Section):
    """Options of smoothgrad."""

    samples: Positive = Field(16, description="Noisy copies.")
    noise: Unit = Field(0.15, description="Standard deviation, in parts of the input's range.")


@pixel_method(
    "smoothgrad",
    ("pixels",),
    "`samples` forwards and backwards",
    "https://arxiv.org/abs/1706.03825",
    options=Noise,
    good_for="pixel gradients with less noise",
)
def smoothgrad(batch: Batch, views: Sequence[LayerView], options: Noise) -> Tensor:
    """sum_rgb |mean over noise n of g(x + n)|, capped at the 99th percentile; every image meets the same noise."""
    noise, shape = torch.Generator().manual_seed(0), batch.inputs.shape[1:]
    samples = [torch.randn(shape, generator=noise).to(batch.inputs.device) for _ in range(options.samples)]
    maps = torch.zeros_like(batch.inputs[:, 0])
    for row in batch.asked:
        x = batch.inputs[row]
        deviation = options.noise * (x.amax() - x.amin())
        total = batch.variant_gradients(row, (x + deviation * sample for sample in samples))
        heat = (total / len(samples)).abs().sum(dim=0)
        maps[row] = heat.minimum(heat.flatten().quantile(0.99))
    return maps


@pixel_method(
    "fullgrad",
    ("pixels",),
    "1 forward and backward",
    "https://arxiv.org/abs/1905.00780",
    good_for="everything the network responds to",
)
def fullgrad(batch: Batch, views: Sequence[LayerView]) -> Tensor:
    """sum of all channels, each scaled to 0..1, of |x g(x)| and of |b g(b)| for every bias b that has a place."""
    return batch.in_chunks(batch.inputs, partial(_fullgrad, batch, views), lambda part: torch.zeros_like(part[:, 0]))


def _fullgrad(batch: Batch, views: Sequence[LayerView], inputs: Tensor, target_weights: Tensor) -> Tensor:
    with torch.enable_grad(), Biases() as biases:
        x = inputs.detach().requires_grad_()
        logits = batch.network(x.clone())
    met = [bias for bias in biases.met if bias.shape[0] == len(inputs)]
    gradients = gradients_of(logits, target_weights, [x, *(bias.edge for bias in met)], batch.number)
    total = channels(x.detach() * gradients[0], inputs.shape[-2:])
    pairs = zip(met, gradients[1:], strict=True)
    parts = [place for bias, gradient in pairs if (place := placed(bias, gradient, views)) is not None]
    if not parts:
        raise MethodError("fullgrad adds up gradients of biases, and this model has none with a place in the image")
    return total + torch.stack([channels(part, inputs.shape[-2:]) for part in parts]).sum(dim=0)


def placed(bias: Bias, gradient: Tensor, views: Sequence[LayerView]) -> Tensor | None:
    """bias * gradient as [B,C,h,w], or None where the output is no grid over the image."""
    if bias.axis == 1:
        return gradient.float() * bias.bias[:, None, None] if gradient.dim() == 4 else None
    part = gradient.float() * bias.bias
    if part.dim() == 4:
        return part.permute(0, 3, 1, 2)
    layouts = [view.layout for view in views if view.layout.kind == "tokens" and part.shape[1:2] == (view.tokens,)]
    return layouts[0].to_maps(part) if part.dim() == 3 and layouts else None


def channels(part: Tensor, size: Sequence[int]) -> Tensor:
    """[B,C,h,w] -> [B,*size]: magnitudes, each channel scaled to 0..1, summed. Resizing last gives the same sum."""
    return resize(scale(part.abs()).sum(dim=1), size)
