"""Batch norm folded into the convolution before it: the same network with fewer passes over memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from camcli.engine.layers import Tap
from camcli.engine.tap import cut

TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Pair:
    """A convolution whose output goes to one batch norm and nowhere else; rest: what the norm does after scaling."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    rest: Callable[[Tensor], Tensor]


def fold(module: nn.Module, inputs: Tensor, taps: Sequence[Tap] = ()) -> int:
    """Fold every such pair of `module` in evaluation mode that leaves what the taps see alone; returns how many.

    inputs: [B,3,H,W] to watch a forward pass with; where folding changes its logits or a tap's tensor, nothing stays
    folded.
    """
    with torch.no_grad():
        before, pairs = _watch(module, inputs, taps)
        weights = [(pair.convolution.weight, pair.convolution.bias) for pair in pairs]
        for pair in pairs:
            _fold(pair)
        if not pairs or _same(before, _seen(module, inputs, taps)):
            return len(pairs)
    for pair, (weight, bias) in zip(pairs, weights, strict=True):
        pair.convolution.weight, pair.convolution.bias = weight, bias
        del pair.norm.forward
    return 0


def _seen(module: nn.Module, inputs: Tensor, taps: Sequence[Tap]) -> list[Tensor]:
    """The logits, and each tap's tensor."""
    with cut(module, taps) as kept:
        logits: Tensor = module(inputs)
    return [logits, *(kept[tap] for tap in taps)]


def _same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Equal but for rounding."""
    pairs = zip(ours, theirs, strict=True)
    return all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs)


def _fold(pair: Pair) -> None:
    conv, norm = pair.convolution, pair.norm
    assert norm.running_mean is not None, "only norms with running statistics are paired"
    assert norm.running_var is not None, "as above"
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    norm.forward = pair.rest  # type: ignore[method-assign, assignment]


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


def _watch(module: nn.Module, inputs: Tensor, taps: Sequence[Tap]) -> tuple[list[Tensor], list[Pair]]:
    """What the forward pass shows (see `_seen`), and the pairs that can be folded.

    The network goes on behind a tap with a copy, which no convolution has made: so a convolution and a norm with a tap
    between them are no pair, whatever module the tap is at. For this the tap's hooks have to come last.
    """
    seen = _Sightings()
    with ExitStack() as hooks:
        for child in module.modules():
            if isinstance(child, (nn.Conv2d, nn.BatchNorm2d)):
                hooks.callback(child.register_forward_pre_hook(seen.before).remove)
                hooks.callback(child.register_forward_hook(seen.after).remove)
        hooks.enter_context(_Uses(seen))
        before = _seen(module, inputs, taps)
    pairs = []
    for conv, norm in seen.takers:
        rest = _rest(norm)
        if rest and seen.uses[conv] == seen.runs[conv] == seen.runs[norm] == 1:
            pairs.append(Pair(conv, norm, rest))
    return before, pairs


def _rest(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor] | None:
    """What is left of a norm whose scaling is folded; None for kinds that are not known and without statistics."""
    if norm.running_mean is None or norm.training:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity().forward
    if type(norm).__name__ == "BatchNormAct2d":  # of timm, which need not be loaded
        return nn.Sequential(*(part for name, part in norm.named_children() if name in ("drop", "act"))).forward
    return None
