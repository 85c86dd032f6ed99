"""Methods that follow attention from the class token down to the patches; A is an attention map [B,heads,N,N]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from camcli.engine.methods.lift import gradients_of
from camcli.engine.methods.unfused import Attention, Unfused
from camcli.engine.methods.view import Batch, LayerView, layer_method
from camcli.errors import MethodError

FREE = 1e-3
"""The part of its largest gradient with which a row of the last attention counts as read by the head."""


@dataclass(frozen=True)
class Layers:
    """Of one pass: attention maps [B,heads,N,N] and their gradients, the first layer first."""

    maps: list[Tensor]
    gradients: list[Tensor]


@layer_method(
    "attention-rollout",
    ("activations", "pixels"),
    "1 forward and backward",
    "https://arxiv.org/abs/2005.00928",
    class_specific=False,
    good_for="where a ViT gathers information",
    contributions=False,
)
def attention_rollout(view: LayerView) -> Tensor:
    """The class token's row of the product over layers of (mean_heads(A) + 1) / 2: the same for every class."""
    likeliest = F.one_hot(view.batch.logits.argmax(dim=1), view.batch.logits.shape[1]).float()
    asking = replace(view.batch, target_weights=likeliest)
    return view.once("rollout", lambda: _each(view, asking, _rollout))


def _rollout(layers: Layers) -> Tensor:
    flow = _identity(layers.maps[0])
    for attention in layers.maps:
        flow = (attention.mean(dim=1) + _identity(attention)) / 2 @ flow
    return flow


@layer_method(
    "attention-gradient",
    ("activations", "pixels"),
    "1 forward and backward",
    "https://arxiv.org/abs/2103.15679",
    good_for="one class in a ViT",
    contributions=False,
)
def attention_gradient(view: LayerView) -> Tensor:
    """The class token's row of R, from 1 by R += mean_heads(relu(g A)) R at each layer, g the score's gradient by A."""
    return _each(view, view.batch, _relevance)


def _relevance(layers: Layers) -> Tensor:
    relevance = _identity(layers.maps[0])
    for attention, gradient in zip(layers.maps, layers.gradients, strict=True):
        relevance = relevance + (gradient * attention).relu().mean(dim=1) @ relevance
    return relevance


def _identity(attention: Tensor) -> Tensor:
    return torch.eye(attention.shape[-1], device=attention.device)


def _each(view: LayerView, batch: Batch, gather: Callable[[Layers], Tensor]) -> Tensor:
    """[B,h,w]: the class token's row of what `gather` makes [B,N,N] of a pass; zero where nothing is asked."""

    def compute(inputs: Tensor, target_weights: Tensor) -> Tensor:
        flow = gather(_layers(view, inputs, target_weights))
        return view.layout.to_maps(flow[:, 0, :, None])[:, 0]

    def idle(inputs: Tensor) -> Tensor:
        return torch.zeros(len(inputs), *view.layout.grid, device=inputs.device)

    return batch.in_chunks(batch.inputs, compute, idle)


def _layers(view: LayerView, inputs: Tensor, target_weights: Tensor) -> Layers:
    """A forward and a backward pass; raises MethodError where no class token gathers what the others know."""
    with torch.enable_grad(), Unfused() as unfused:
        logits = view.batch.network(inputs.detach().requires_grad_())
    met = [one for one in unfused.met if one.edge]
    size = (len(inputs), view.tokens, view.tokens)
    if not view.layout.prefix or not met or any((len(a.weights), *a.weights.shape[2:]) != size for a in met):
        raise _refusal("its layers do not attend from class token and patches to class token and patches")
    gradients = _gradients(logits, target_weights, met, view.batch.number)
    others = gradients[-1][:, :, view.layout.prefix :].abs().amax()
    if others > FREE * gradients[-1].abs().amax():
        raise _refusal("the logits are read from the patches, not from the class token")
    return Layers([one.weights.detach().float() for one in met], gradients)


def _gradients(logits: Tensor, target_weights: Tensor, met: Sequence[Attention], number: torch.dtype) -> list[Tensor]:
    def read(found: Sequence[Tensor]) -> list[Tensor]:
        return [g.reshape(one.weights.shape) for g, one in zip(found, met, strict=True)]

    return gradients_of(logits, target_weights, [one.edge for one in met], number, read)


def _refusal(reason: str) -> MethodError:
    return MethodError(
        "attention-rollout and attention-gradient follow a class token's attention through a ViT of timm or "
        f"torchvision, read at a layer of its tokens; here {reason}. Use 'gradcam', which needs no class token"
    )
