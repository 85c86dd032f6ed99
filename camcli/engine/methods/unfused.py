"""Attention as softmax and products, with its maps in the graph, whatever kernel the network asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, slots=True)
class Attention:
    """weights [B,heads,queries,keys], each row adding up to one, and where their gradient arrives (None: no graph).

    The gradient has the weights' numbers in their order, but not always their shape.
    """

    weights: Tensor
    edge: GradientEdge | None


class Unfused(TorchFunctionMode):
    """Inside `with`, attention runs no fused kernel, which has neither maps nor a second derivative.

    met: every attention of the passes inside, in order. Functions are watched, not modules, and in this thread alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met: list[Attention] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        told = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._product(*args, **told)
        if func is F.multi_head_attention_forward:
            return self._module(func, args, told)
        result = func(*args, **told)
        if func in (Tensor.softmax, torch.softmax, F.softmax) and result.dim() == 4:
            self.met.append(Attention(result, _edge(result)))
        return result

    def _product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What F.scaled_dot_product_attention computes in evaluation, for queries [...,heads,N,d]."""
        if is_causal or enable_gqa:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
        weights = torch.softmax(scores, dim=-1).to(value.dtype)
        if weights.dim() == 4:
            self.met.append(Attention(weights, _edge(weights)))
        return weights @ value

    def _module(self, func: Any, args: Sequence[Any], told: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What nn.MultiheadAttention calls; asked for its weights, it takes no fused kernel."""
        asked = told.get("need_weights", True), told.get("average_attn_weights", True)
        output, weights = func(*args, **{**told, "need_weights": True, "average_attn_weights": False})
        self.met.append(Attention(weights, _edge_behind(weights)))
        if not asked[0]:
            return output, None
        return output, weights.mean(dim=-3) if asked[1] else weights


def _edge(tensor: Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _edge_behind(view: Tensor) -> GradientEdge | None:
    """Of the tensor that `view` is a view of: no path leads from the view to the logits."""
    node, number = view.grad_fn.next_functions[0] if view.grad_fn else (None, 0)
    return GradientEdge(node, number) if node else None
