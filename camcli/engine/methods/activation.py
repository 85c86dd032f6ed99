"""Methods that read the activations A [B,C,h,w] without any gradient."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from camcli.config.section import Section
from camcli.engine.methods.head import class_weights
from camcli.engine.methods.maps import along, kernel_principal, principal
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


class Kernel(Section):
    """Options of kpcacam."""

    gamma: float | None = Field(None, gt=0, description="Of the kernel tanh(gamma x·y + 1); null: 1 / channels.")


@layer_method(
    "kpcacam",
    ("activations",),
    "1 eigendecomposition of locations x locations",
    "https://arxiv.org/abs/2410.00267",
    class_specific=False,
    options=Kernel,
    good_for="what stands out, with curves",
    contributions=False,
)
def kpcacam(view: LayerView, options: Kernel) -> Tensor:
    """First principal component of the locations' vectors A under the kernel tanh(gamma x·y + 1); of no class."""
    return kernel_principal(view.activations, options.gamma or 1 / view.activations.shape[1])


class Deviations(Section):
    """Options of fem."""

    deviations: float = Field(
        2.0, ge=0, description="A location is strong this many deviations above its channel's mean."
    )


@layer_method(
    "fem",
    ("activations",),
    "nothing",
    "https://hal.science/hal-02963298",
    class_specific=False,
    options=Deviations,
    good_for="rare strong features, no class",
)
def fem(view: LayerView, options: Deviations) -> Tensor:
    """mean_hw(A_c) where A_c is above mean_hw(A_c) + k std_hw(A_c), and 0 elsewhere; of no class.

    The package grad-cam multiplies A_c by the share of such locations instead.
    """
    spread, mean = torch.std_mean(view.activations, dim=(2, 3), correction=0, keepdim=True)
    return mean * (view.activations > mean + options.deviations * spread)
