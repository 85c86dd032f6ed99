"""Methods that read the activations A [B,C,h,w] without any gradient."""

from __future__ import annotations

from torch import Tensor

from camcli.engine.methods.head import class_weights
from camcli.engine.methods.maps import along, principal
from camcli.engine.methods.view import LayerView, layer_method


@layer_method(
    "cam", ("activations",), "nothing", "https://arxiv.org/abs/1512.04150", good_for="the classic, no gradient needed"
)
def cam(view: LayerView) -> Tensor:
    """W_c A_c, W the row of the linear head behind global average pooling: channel contributions."""
    weights = view.batch.target_weights @ view.once("head", lambda: class_weights(view))
    return weights[:, :, None, None] * view.activations


def _eigencam_terms(view: LayerView, raw: Tensor) -> Tensor:
    """What each channel adds to the component."""
    return along(view.activations, raw)


@layer_method(
    "eigencam",
    ("activations",),
    "1 eigendecomposition",
    "https://arxiv.org/abs/2008.00299",
    class_specific=False,
    terms=_eigencam_terms,
    good_for="what stands out, no class",
)
def eigencam(view: LayerView) -> Tensor:
    """First principal component of the locations' vectors A: one map of no class, the same whatever is asked."""
    return principal(view.activations)
