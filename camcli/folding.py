"""Batch norm folded into the convolution before it: the same network with fewer passes over memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Pair:
    """A convolution whose output goes to one batch norm and nowhere else; rest: what the norm does after scaling."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    rest: Callable[[Tensor], Tensor]


def fold(module: nn.Module, inputs: Tensor, spare: Collection[nn.Module]) -> int:
    """Fold every such pair of `module` in evaluation mode but those with a member in `spare`; returns how many.

    inputs: [B,3,H,W] to watch a forward pass with; where folding changes its logits, nothing stays folded.
    """
    with torch.no_grad():
        before, pairs = _watch(module, inputs)
        folded = [pair for pair in pairs if pair.convolution not in spare and pair.norm not in spare]
        weights = [(pair.convolution.weight, pair.convolution.bias) for pair in folded]
        for pair in folded:
            _fold(pair)
        if not folded or _close(module(inputs), before):
            return len(folded)
    for pair, (weight, bias) in zip(folded, weights, strict=True):
        pair.convolution.weight, pair.convolution.bias = weight, bias
        del pair.norm.forward
    return 0


def _fold(pair: Pair) -> None:
    conv, norm = pair.convolution, pair.norm
    assert norm.running_mean is not None, "only norms with running statistics are paired"
    assert norm.running_var is not None, "as above"
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    norm.forward = pair.rest  # type: ignore[method-assign, assignment]


def _close(logits: Tensor, before: Tensor) -> bool:
    return bool((logits - before).abs().max() <= TOLERANCE * before.abs().max())


@dataclass(slots=True)
class _Sightings:
    """What a forward pass showed: who made a tensor, which norm took it, and how often each module ran."""

    makers: dict[int, tuple[nn.Conv2d, Tensor]] = field(default_factory=dict)
    takers: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = field(default_factory=list)
    runs: Counter[nn.Module] = field(default_factory=Counter)
    uses: Counter[nn.Module] = field(default_factory=Counter)

    def before(self, module: nn.Module, args: Sequence[Any]) -> None:
        """Hook before a module runs."""
        self.runs[module] += 1
        if isinstance(module, nn.BatchNorm2d) and args and (made := self.makers.get(id(args[0]))):
            self.takers.append((made[0], module))

    def after(self, module: nn.Module, args: Sequence[Any], output: Any) -> None:
        """Hook after a module ran; the tensor is kept, so that no other one gets its id."""
        if type(module) is nn.Conv2d and isinstance(output, Tensor):
            self.makers[id(output)] = module, output


class _Uses(TorchFunctionMode):
    """Counts, inside `with`, the operations on the outputs of convolutions."""

    def __init__(self, seen: _Sightings) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (Tensor, tuple, list)):
            for value in _tensors([*args, *(kwargs or {}).values()]):
                if made := self.seen.makers.get(id(value)):
                    self.seen.uses[made[0]] += 1
        return result


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _watch(module: nn.Module, inputs: Tensor) -> tuple[Tensor, list[Pair]]:
    """The logits, and the pairs that can be folded."""
    seen = _Sightings()
    with ExitStack() as hooks:
        for child in module.modules():
            if isinstance(child, (nn.Conv2d, nn.BatchNorm2d)):
                hooks.callback(child.register_forward_pre_hook(seen.before).remove)
                hooks.callback(child.register_forward_hook(seen.after).remove)
        hooks.enter_context(_Uses(seen))
        logits: Tensor = module(inputs)
    pairs = []
    for conv, norm in seen.takers:
        rest = _rest(norm)
        if rest and seen.uses[conv] == seen.runs[conv] == seen.runs[norm] == 1:
            pairs.append(Pair(conv, norm, rest))
    return logits, pairs


def _rest(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor] | None:
    """What is left of a norm whose scaling is folded; None for kinds that are not known and without statistics."""
    if norm.running_mean is None or norm.training:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity().forward
    if type(norm).__name__ == "BatchNormAct2d":  # of timm, which need not be loaded
        rest = [part for name, part in norm.named_children() if name in ("drop", "act")]
        return nn.Sequential(*(part for part in rest if not isinstance(part, nn.Identity))).forward
    return None
