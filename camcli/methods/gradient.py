"""Methods that weigh activations A by the gradient g of the target logit; both [B,C,h,w]."""

from __future__ import annotations

from torch import Tensor

from camcli.methods.view import LayerView, method


@method("gradcam", needs=("activations", "gradients"), paper="https://arxiv.org/abs/1610.02391")
def gradcam(view: LayerView) -> Tensor:
    """sum_c mean_hw(g_c) A_c: channels weighed by their average gradient."""
    weights = view.gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * view.activations).sum(dim=1)
