"""Methods that weigh activations A by the gradient g of the score; both [B,C,h,w], results the part of each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from camcli.methods.maps import principal
from camcli.methods.view import LayerView, Need, layer_method

NEEDS: tuple[Need, ...] = ("activations", "gradients")
COST = "1 backward of the tail"


@layer_method("gradcam", NEEDS, COST, "https://arxiv.org/abs/1610.02391")
def gradcam(view: LayerView) -> Tensor:
    """mean_hw(g_c) A_c: channels weighed by their average gradient."""
    return view.gradients.mean(dim=(2, 3), keepdim=True) * view.activations


@layer_method("gradcam++", NEEDS, COST, "https://arxiv.org/abs/1710.11063")
def gradcam_plus_plus(view: LayerView) -> Tensor:
    """sum_hw(relu(g) a) A_c with a = g² / (2 g² + S_c g³), S_c = sum_hw A_c: every cell weighs its own gradient."""
    g, total = view.gradients, view.activations.sum(dim=(2, 3), keepdim=True)
    alpha = torch.where(g != 0, g**2 / (2 * g**2 + total * g**3 + 1e-6), 0)
    return (g.relu() * alpha).sum(dim=(2, 3), keepdim=True) * view.activations


@layer_method("xgradcam", NEEDS, COST, "https://arxiv.org/abs/2008.02312")
def xgradcam(view: LayerView) -> Tensor:
    """(sum_hw g_c A_c / sum_hw A_c) A_c: gradients averaged where the channel is active."""
    a = view.activations
    return (view.gradients * a).sum(dim=(2, 3), keepdim=True) / (a.sum(dim=(2, 3), keepdim=True) + 1e-7) * a


@layer_method("hirescam", NEEDS, COST, "https://arxiv.org/abs/2011.08891")
def hirescam(view: LayerView) -> Tensor:
    """g_c A_c: every cell weighed by its own gradient."""
    return view.gradients * view.activations


@layer_method("layercam", NEEDS, COST, "https://doi.org/10.1109/TIP.2021.3089943")
def layercam(view: LayerView) -> Tensor:
    """relu(g_c) A_c: only where more activation raises the score."""
    return view.gradients.relu() * view.activations


@layer_method("gradcam-elementwise", NEEDS, COST, "https://arxiv.org/abs/1610.02391")
def gradcam_elementwise(view: LayerView) -> Tensor:
    """relu(g_c A_c): HiResCAM without the parts that speak against the class."""
    return (view.gradients * view.activations).relu()


@layer_method("eigengradcam", NEEDS, COST, "https://arxiv.org/abs/2008.00299")
def eigengradcam(view: LayerView) -> Tensor:
    """First principal component of the cells' vectors g A: Eigen-CAM, of one class."""
    return principal(view.gradients * view.activations)
