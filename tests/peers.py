"""The reference packages, each called as its documentation says, with what they need to run at all."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytorch_grad_cam as pgc
    from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

GRAD_CAM = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcam-elementwise": "GradCAMElementWise",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "kpcacam": "KPCA_CAM",
    "fem": "FEM",
    "shapleycam": "ShapleyCAM",
    "finercam": "FinerCAM",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
    "fullgrad": "FullGrad",
}
"""Our name -> the class of the grad-cam package."""

Array = NDArray[np.float32]


def grad_cam(
    name: str,
    module: nn.Module,
    path: str,
    x: Tensor,
    target: int,
    reshape: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 16,
    **smoothing: bool,
) -> Array:
    """[B,H,W] from the grad-cam package; parameters are let free meanwhile, because its hooks need a graph."""
    layers = [] if name == "fullgrad" else [module.get_submodule(path)]
    module.requires_grad_(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            kwargs = {"ablation_layer": AblationLayerVit() if reshape else AblationLayer()}
            explain = getattr(pgc, GRAD_CAM[name])(
                module, layers, reshape_transform=reshape, **(kwargs if name == "ablationcam" else {})
            )
            if name == "finercam":
                return np.asarray(explain(x.clone(), target_idx=target))
            if name == "shapleycam":
                _let_go_gently(explain)
            explain.batch_size = batch_size
            return np.asarray(explain(x.clone(), [ClassifierOutputTarget(target)] * len(x), **smoothing))
    finally:
        module.requires_grad_(False)
        module.zero_grad()


def _let_go_gently(explain: object) -> None:
    """Only take its hooks out: its own release detaches views in place, which torch refuses."""
    held = explain.activations_and_grads  # type: ignore[attr-defined]
    held.release = lambda: [handle.remove() for handle in held.handles]


def guided_backprop(module: nn.Module, x: Tensor, target: int) -> Array:
    """[B,H,W]: the sum over colours of the grad-cam package's guided gradients."""
    explain = pgc.GuidedBackpropReLUModel(module, device="cpu")
    return np.stack([explain(one[None].clone(), target_category=target).sum(-1) for one in x])


def captum(name: str, module: nn.Module, x: Tensor, target: int, **options: object) -> Array:
    """[B,H,W]: the sum over colours of an attribution of the captum package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import captum.attr

        found = getattr(captum.attr, name)(module).attribute(x.clone().requires_grad_(), target=target, **options)
    return found.detach().sum(1).numpy()  # type: ignore[no-any-return]
