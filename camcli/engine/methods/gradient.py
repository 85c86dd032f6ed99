"""Methods that weigh activations A by the gradient g of the score; both [B,C,h,w], as are the channel contributions."""

from __future__ import annotations

import torch
from torch import Tensor

from camcli.engine.methods.maps import along, principal
from camcli.engine.methods.view import LayerView, Need, layer_method

NEEDS: tuple[Need, ...] = ("activations", "gradients")
COST = "1 backward of the tail"
POLE = 1e-3
RESIDUE = 1e-6


def gradcam_terms(view: LayerView, raw: Tensor) -> Tensor:
    """mean_hw |g_c| |A_c|."""
    return view.gradients.abs().mean(dim=(2, 3), keepdim=True) * view.activations.abs()


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
    """sum_hw(relu(g) a) A_c with a = g² / (2 g² + S_c g³), S_c = sum_hw A_c: every cell weighs its own gradient.

    a = 1 / (2 + S_c g). It has a pole where S_c g = -2, which only a channel with negative activations reaches: within
    a thousandth of the larger term from it a cell counts nothing, and beyond it a is negative, as the formula says.
    """
    g, product = view.gradients, view.activations.sum(dim=(2, 3), keepdim=True) * view.gradients
    at_pole = (2 + product).abs() <= POLE * product.abs().clamp_min(2)
    alpha = torch.where(at_pole, 0, 1 / (2 + product))
    return (g.relu() * alpha).sum(dim=(2, 3), keepdim=True) * view.activations


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
    """g_c A_c: every cell weighed by its own gradient."""
    return view.gradients * view.activations


@layer_method(
    "layercam", NEEDS, COST, "https://doi.org/10.1109/TIP.2021.3089943", good_for="finer maps from earlier layers"
)
def layercam(view: LayerView) -> Tensor:
    """relu(g_c) A_c: only where more activation raises the score."""
    return view.gradients.relu() * view.activations


@layer_method(
    "gradcam-elementwise", NEEDS, COST, "https://arxiv.org/abs/1610.02391", good_for="positive evidence, cell by cell"
)
def gradcam_elementwise(view: LayerView) -> Tensor:
    """relu(g_c A_c): HiResCAM without the parts that speak against the class."""
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
