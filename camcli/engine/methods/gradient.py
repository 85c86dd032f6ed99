"""Methods that weigh activations A by the gradient g of the score; both [B,C,h,w], as are the channel contributions."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from camcli.config.section import Positive, Section, Unit
from camcli.engine.methods.maps import along, principal
from camcli.engine.methods.view import Batch, LayerView, Need, layer_method

NEEDS: tuple[Need, ...] = ("activations", "gradients")
COST = "1 backward of the tail"
POLE = 1e-3
RESIDUE = 1e-6


def gradcam_terms(view: LayerView, raw: Tensor) -> Tensor:
    """mean_hw |g_c| |A_c|."""
    return _mean_terms(view.gradients.abs(), view)


def _mean_terms(sizes: Tensor, view: LayerView) -> Tensor:
    """Of a map that multiplies A_c by a mean_hw of terms with these sizes."""
    return sizes.mean(dim=(2, 3), keepdim=True) * view.activations.abs()


@layer_method(
    "gradcam",
    NEEDS,
    COST,
    "https://arxiv.org/abs/1610.02391",
    terms=gradcam_terms,
    good_for="the default for any model",
)
def gradcam(view: LayerView) -> Tensor:
    """mean_hw(g_c) A_c: channels weighed by their average gradient."""
    return view.gradients.mean(dim=(2, 3), keepdim=True) * view.activations


@layer_method("gradcam++", NEEDS, COST, "https://arxiv.org/abs/1710.11063", good_for="several instances of one class")
def gradcam_plus_plus(view: LayerView) -> Tensor:
    """sum_hw(relu(g) a) A_c with a = g² / (2 g² + S_c g³), S_c = sum_hw A_c: every location weighs its own gradient.

    a = 1 / (2 + S_c g). It has a pole where S_c g = -2, which only a channel with negative activations reaches: within
    a thousandth of the larger term from it a location counts nothing, and beyond it a is negative, as the formula says.
    """
    g, total = view.gradients, view.activations.sum(dim=(2, 3), keepdim=True)
    return (g.relu() * _alpha(g, torch.ones_like(g), total)).sum(dim=(2, 3), keepdim=True) * view.activations


def _alpha(cubic: Tensor, square: Tensor, total: Tensor) -> Tensor:
    """square / (2 square + total cubic), zero within POLE of where the denominator is zero."""
    below, product = 2 * square + total * cubic, total * cubic
    at_pole = below.abs() <= POLE * torch.maximum(product.abs(), 2 * square)
    return torch.where(at_pole, 0, square / below)


def xgradcam_terms(view: LayerView, raw: Tensor) -> Tensor:
    """(sum_hw |g_c A_c| / |S_c| + |w_c| sum_hw |A_c| / |S_c|) |A_c|: both sums of the weight w_c may cancel."""
    a, g = view.activations, view.gradients
    size, whole = a.abs().sum(dim=(2, 3), keepdim=True), _active(a)
    weight = (g * a).sum(dim=(2, 3), keepdim=True) / whole
    return ((g * a).abs().sum(dim=(2, 3), keepdim=True) + weight.abs() * size) / whole.abs() * a.abs()


@layer_method(
    "xgradcam",
    NEEDS,
    COST,
    "https://arxiv.org/abs/2008.02312",
    terms=xgradcam_terms,
    good_for="Grad-CAM where activations matter most",
)
def xgradcam(view: LayerView) -> Tensor:
    """(sum_hw g_c A_c / S_c) A_c, S_c = sum_hw A_c: gradients averaged where the channel is active.

    A channel whose activations add up to nothing but rounding (a millionth of their magnitudes) counts nothing.
    """
    a = view.activations
    return (view.gradients * a).sum(dim=(2, 3), keepdim=True) / _active(a) * a


def _active(a: Tensor) -> Tensor:
    """sum_hw A_c [B,C,1,1], infinite where it is rounding alone."""
    total = a.sum(dim=(2, 3), keepdim=True)
    drowned = total.abs() <= RESIDUE * a.abs().sum(dim=(2, 3), keepdim=True)
    return torch.where(drowned, torch.inf, total)


@layer_method("hirescam", NEEDS, COST, "https://arxiv.org/abs/2011.08891", good_for="what the layer truly used")
def hirescam(view: LayerView) -> Tensor:
    """g_c A_c: every location weighed by its own gradient."""
    return view.gradients * view.activations


@layer_method(
    "layercam", NEEDS, COST, "https://doi.org/10.1109/TIP.2021.3089943", good_for="finer maps from earlier layers"
)
def layercam(view: LayerView) -> Tensor:
    """relu(g_c) A_c: only where more activation raises the score."""
    return view.gradients.relu() * view.activations


@layer_method(
    "gradcam-elementwise",
    NEEDS,
    COST,
    "https://arxiv.org/abs/1610.02391",
    good_for="positive evidence, location by location",
)
def gradcam_elementwise(view: LayerView) -> Tensor:
    """relu(g_c A_c): HiResCAM without the channel contributions against the class."""
    return (view.gradients * view.activations).relu()


def _eigengradcam_terms(view: LayerView, raw: Tensor) -> Tensor:
    """What each channel of g A adds to the component."""
    return along(view.gradients * view.activations, raw)


@layer_method(
    "eigengradcam",
    NEEDS,
    COST,
    "https://arxiv.org/abs/2008.00299",
    terms=_eigengradcam_terms,
    good_for="clean maps of one class",
)
def eigengradcam(view: LayerView) -> Tensor:
    """First principal component of the locations' vectors g A: Eigen-CAM, of one class."""
    return principal(view.gradients * view.activations)


def _shapley_terms(view: LayerView, raw: Tensor) -> Tensor:
    """mean_hw (|g_c| + |(H A)_c| / 2) |A_c|."""
    return _mean_terms(view.gradients.abs() + view.curvature.abs() / 2, view)


@layer_method(
    "shapleycam",
    (*NEEDS, "curvature"),
    "2 backwards of the tail",
    "https://arxiv.org/abs/2501.06261",
    terms=_shapley_terms,
    good_for="layers with nonlinear heads behind",
)
def shapleycam(view: LayerView) -> Tensor:
    """mean_hw(g_c - (H A)_c / 2) A_c, H the score's second derivative: Shapley values of channels, second order.

    Grad-CAM where the network behind the layer is linear piece by piece.
    """
    return (view.gradients - view.curvature / 2).mean(dim=(2, 3), keepdim=True) * view.activations


class Similar(Section):
    """Options of finercam."""

    similar: Positive = Field(3, description="Classes to tell the target from: those with the nearest logits.")
    strength: float = Field(1.0, ge=0, description="What their evidence counts; 0 is Grad-CAM.")


def _finer_terms(view: LayerView, raw: Tensor) -> Tensor:
    """mean_hw |g_c| |A_c|, g the gradient of FinerCAM's score."""
    return _mean_terms(_finer_gradients(view, view.batch.told("finercam", Similar)).abs(), view)


@layer_method(
    "finercam",
    NEEDS,
    "1 backward of the tail",
    "https://arxiv.org/abs/2501.11309",
    terms=_finer_terms,
    options=Similar,
    good_for="telling apart classes alike",
)
def finercam(view: LayerView, options: Similar) -> Tensor:
    """Grad-CAM of y - strength * sum_k q_k y_k, k the classes whose logits are nearest to y, q their softmax."""
    return _finer_gradients(view, options).mean(dim=(2, 3), keepdim=True) * view.activations


def _finer_gradients(view: LayerView, options: Similar) -> Tensor:
    """[B,C,h,w] of FinerCAM's score; all layers ask for the same tensor, so that one backward serves them."""
    batch = view.batch
    return view.differentiate(batch.once(f"finercam {batch.turn} {options}", lambda: finer_weights(batch, options)))


def finer_weights(batch: Batch, options: Similar) -> Tensor:
    """[B,K]: the gradient of FinerCAM's score by the logits; rows that ask nothing are zero."""
    logits, asked = batch.logits, batch.target_weights
    distance = (logits - batch.scores[:, None]).abs().masked_fill(asked != 0, torch.inf)
    nearest = distance.argsort(dim=1, stable=True)[:, : options.similar]
    near, own = logits.gather(1, nearest), asked.gather(1, nearest) != 0
    share = near.masked_fill(own, -torch.inf).softmax(dim=1).masked_fill(own, 0)
    slope = share * (1 + near - (share * near).sum(dim=1, keepdim=True))
    others = torch.zeros_like(logits).scatter(1, nearest, slope)
    return asked - options.strength * others * asked.any(dim=1, keepdim=True)


class NoisyPlus(Section):
    """Options of smooth-gradcam++."""

    samples: Positive = Field(4, description="Noisy copies.")
    noise: Unit = Field(0.07, description="Standard deviation, in parts of the input's range.")


@layer_method(
    "smooth-gradcam++",
    NEEDS,
    "`samples` forwards, as many backwards of the tail",
    "https://arxiv.org/abs/1908.01224",
    options=NoisyPlus,
    good_for="Grad-CAM++ where gradients are noisy",
)
def smooth_gradcam_plus_plus(view: LayerView, options: NoisyPlus) -> Tensor:
    """sum_hw(relu(m1) a) A_c with a = m2 / (2 m2 + S_c m3), m_p the mean of g^p over noisy copies of the image.

    The paper writes m1 above the fraction, with which no noise would not give Grad-CAM++. All images meet the same
    noise, and the copies serve every target.
    """
    moments = view.batch.once(f"noisy moments {options}", lambda: _moments(view, options))
    first, second, third = moments[view.batch.turn][view.index]
    total = view.activations.sum(dim=(2, 3), keepdim=True)
    return (first.relu() * _alpha(third, second, total)).sum(dim=(2, 3), keepdim=True) * view.activations


def _moments(view: LayerView, options: NoisyPlus) -> list[list[list[Tensor]]]:
    """For each target of the batch and each layer the means of g, g² and g³ [B,C,h,w] over noisy copies."""
    inputs, generator = view.batch.inputs, torch.Generator().manual_seed(0)
    deviation = options.noise * (inputs.amax(dim=(1, 2, 3), keepdim=True) - inputs.amin(dim=(1, 2, 3), keepdim=True))
    rounds = view.batch.rounds or [view.batch.target_weights]
    sums: list[list[list[Tensor]]] = [[] for _ in rounds]
    for _ in range(options.samples):
        noise = torch.randn(inputs.shape[1:], generator=generator).to(inputs.device)
        layers = view.at(inputs + deviation * noise)
        for weights, total in zip(rounds, sums, strict=True):
            gradients = [layer.differentiate(weights) for layer in layers]
            total[:] = total or [[torch.zeros_like(g) for _ in range(3)] for g in gradients]
            for g, powers in zip(gradients, total, strict=True):
                for power, one in enumerate(powers, 1):
                    one += g**power / options.samples
    return sums
