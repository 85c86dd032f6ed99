"""Taking a layer's tensors out of a forward pass, and running the rest of the network on others in their place."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from camcli.engine.layers import Tap
from camcli.errors import MethodError

TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-2

Item = tuple[int | str, ...]
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Call:
    """The `number`-th call of `module` in a forward pass, and what it returned."""

    module: nn.Module
    number: int
    output: Any


Past = tuple[Call, ...]
"""Calls in the order in which they finished, those inside a finished call left out; a tap's own call is the last."""


@contextmanager
def cut(module: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Inside, one forward of `module` fills the yielded dict with each tap's tensor, which asks for gradients.

    The first tap that a path reaches is a leaf; a later one depends on it. The network goes on with a clone,
    because an in-place operation that follows would overwrite the kept tensor.
    """
    kept: dict[Tap, Tensor] = {}
    with ExitStack() as hooks:
        for path in dict.fromkeys(tap.path for tap in taps):
            hook = _keeper([tap for tap in taps if tap.path == path], kept)
            hooks.callback(module.get_submodule(path).register_forward_hook(hook).remove)
        yield kept


def _keeper(taps: Sequence[Tap], kept: dict[Tap, Tensor]) -> Callable[[nn.Module, Any, Any], Any]:
    calls = count()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        call = next(calls)
        for tap in taps:
            if tap.call == call:
                tensor = inside(output, tap.item)
                kept[tap] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
                output = with_inside(output, tap.item, kept[tap].clone())
        return output

    return hook


def inside(output: Any, item: Item) -> Tensor:
    """The tensor at `item` of a module's output."""
    for key in item:
        output = output[key]
    return output  # type: ignore[no-any-return]


def with_inside(output: Any, item: Item, tensor: Tensor) -> Any:
    """`output` with `tensor` at `item`."""
    if not item:
        return tensor
    if isinstance(output, dict):
        other = copy.copy(output)  # of its own type, whose attributes may be its keys
        other[item[0]] = with_inside(output[item[0]], item[1:], tensor)
        return other
    values = [with_inside(v, item[1:], tensor) if i == item[0] else v for i, v in enumerate(output)]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)


@contextmanager
def noting(module: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, Past]]:
    """Inside, one forward of `module` fills the yielded dict with what had been computed when each tap was reached."""
    past: dict[Tap, Past] = {}
    finished: list[Call] = []
    open_calls: list[int] = []
    numbers: Counter[nn.Module] = Counter()
    wanted = [(tap, module.get_submodule(tap.path)) for tap in taps]

    def enter(child: nn.Module, args: Any) -> None:
        open_calls.append(len(finished))

    def leave(child: nn.Module, args: Any, output: Any) -> None:
        del finished[open_calls.pop() :]
        finished.append(Call(child, numbers[child], output))
        for tap, owner in wanted:
            if owner is child and tap.call == numbers[child]:
                past[tap] = tuple(finished)
        numbers[child] += 1

    with ExitStack() as hooks:
        for child in module.modules():
            hooks.callback(child.register_forward_pre_hook(enter).remove)
            hooks.callback(child.register_forward_hook(leave).remove)
        yield past


class Tail:
    """The network behind a tap, for a batch whose forward pass was kept.

    Modules that had finished before the tap answer with what they returned then, so only the tail is computed. Where
    that does not give the same logits (a skip connection that changes a tensor in place, windows that cross images),
    the whole network runs, and only the tap's tensor is exchanged.
    """

    def __init__(self, tap: Tap, tensor: Tensor, past: Past, inputs: Tensor, logits: Tensor, network: Network) -> None:
        self.tap = tap
        self.tensor = tensor
        self.inputs = inputs
        self.logits = logits
        self.network = network
        *before, self.own = past
        self.before: Sequence[Call] | None = None
        self._choices: Sequence[Sequence[Call]] = (before, ())

    @torch.no_grad()
    def __call__(self, image: int, maps: Tensor) -> Tensor:
        """float32 [N,C,h,w] in place of the image's activations -> float32 [N,K]; raises MethodError."""
        if self.before is None:
            self.before = self._choose(image)
        stored = self._stored(image, len(maps))
        self.tap.layout.to_maps(stored).copy_(maps)
        return self._run(image, stored, self.before)

    def _stored(self, image: int, copies: int) -> Tensor:
        return self.tensor[image].repeat(copies, *[1] * (self.tensor.dim() - 1))

    def _choose(self, image: int) -> Sequence[Call]:
        """The calls to skip with which the unchanged activations give the known logits."""
        expected = self.logits[image]
        tolerance = HALF_TOLERANCE if self.tensor.dtype.itemsize == 2 else TOLERANCE
        for before in self._choices:
            try:
                found = self._run(image, self._stored(image, 2), before)
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue
            if (
                found.shape == (2, *expected.shape)
                and (found - expected).abs().amax() <= tolerance * expected.abs().amax()
            ):
                return before
        raise MethodError(
            f"the network behind layer {self.tap.path!r} cannot be run alone, as ablationcam and reciprocam need it"
        )

    def _run(self, image: int, stored: Tensor, before: Sequence[Call]) -> Tensor:
        batch, copies = len(self.inputs), len(stored)

        def expand(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != batch:
                return value
            return value[image : image + 1].expand(copies, *value.shape[1:])

        own = with_inside(tree_map(expand, self.own.output), self.tap.item, stored)
        calls = [Call(c.module, c.number, tree_map(expand, c.output)) for c in before]
        with answering([*calls, Call(self.own.module, self.own.number, own)]):
            return self.network(expand(self.inputs))


def before_first(module: nn.Module, taps: Sequence[Tap], network: Network, inputs: Tensor) -> tuple[Past, Tensor]:
    """The calls that had finished when the first tap was reached, its own the last; and the logits. No gradients.

    network: runs `module` on inputs [B,3,H,W].
    """
    with torch.no_grad(), noting(module, taps) as past, cut(module, taps):
        logits = network(inputs)
    return min(past.values(), key=len), logits


@contextmanager
def answering(calls: Sequence[Call]) -> Iterator[None]:
    """Inside, these calls return their `output` at once, and all other calls run as ever."""
    answers: dict[nn.Module, dict[int, Any]] = defaultdict(dict)
    for call in calls:
        answers[call.module][call.number] = call.output
    with ExitStack() as undo:
        for module, outputs in answers.items():
            undo.callback(_restore, module, vars(module).get("forward"))
            module.forward = _answer(module.forward, outputs)
        yield


def _answer(forward: Callable[..., Any], outputs: Mapping[int, Any]) -> Callable[..., Any]:
    calls = count()

    def answer(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        return outputs[call] if call in outputs else forward(*args, **kwargs)

    return answer


def _restore(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
