"""The network before the target layer, computed by another engine than torch.

The graph of gradients begins at the target layer, so what comes before needs none. In its place stand the outputs of
the modules that had finished there: those that the rest of the network needs are computed, the others only have shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from camcli.engine.layers import Tap
from camcli.engine.tap import Call, Network, answering, before_first

TOLERANCE = 1e-3


class Compute(Protocol):
    """An inference engine: float32 [B,3,H,W] to the tensors that a Plan asks for, in their order."""

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        """New tensors each time."""

    def replica(self) -> Compute:
        """The same for another thread."""


class Inseparable(Exception):
    """The rest of a network cannot run on the outputs of modules alone."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A tensor that is computed, as the network has it there."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor that nothing depends on: `rows` for each image, of this shape.

    in_place: something is written to it, so it needs memory of its own.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    in_place: bool = False

    def of(self, images: int) -> Tensor:
        """Zeros."""
        size = (images * self.rows, *self.shape)
        return torch.zeros(size if self.in_place else (), dtype=self.dtype).expand(size)


@dataclass(frozen=True, slots=True)
class SparedCall:
    """The `number`-th call of the module at `path`, which is spared, and what it returns: tensors in a structure."""

    path: str
    number: int
    leaves: tuple[Any, ...]
    spec: TreeSpec

    def call(self, module: nn.Module, images: int, computed: Iterator[Tensor]) -> Call:
        """The call with its output; takes from `computed` what is asked for."""
        leaves = [_filled(leaf, images, computed) for leaf in self.leaves]
        return Call(module.get_submodule(self.path), self.number, tree_unflatten(leaves, self.spec))


def _filled(leaf: Any, images: int, computed: Iterator[Tensor]) -> Any:
    if isinstance(leaf, Asked):
        return next(computed).to(leaf.dtype)
    return leaf.of(images) if isinstance(leaf, Shape) else leaf


@dataclass(frozen=True, slots=True)
class Backbone:
    """What computes in place of the modules before the target layer."""

    spared: tuple[SparedCall, ...]
    compute: Compute

    def __call__(self, module: nn.Module, inputs: Tensor) -> list[Call]:
        """The calls of `module` that are spared for float32 [B,3,H,W]."""
        computed = iter(self.compute(inputs))
        return [one.call(module, len(inputs), computed) for one in self.spared]

    def replica(self) -> Backbone:
        """The same for another thread."""
        return replace(self, compute=self.compute.replica())


def plan(module: nn.Module, network: Network, taps: Sequence[Tap], inputs: Tensor) -> tuple[SparedCall, ...]:
    """What to spare so that `network` computes only what comes behind the first tap; raises Inseparable.

    network: runs `module` in the precision of a run, in which the outputs are given, too. inputs: two images to watch.
    """
    calls, logits = before_first(module, taps, network, inputs)
    paths = {child: path for path, child in module.named_modules()}
    needed = _needed(calls, network, inputs)
    for in_place in (False, True):
        spared = tuple(_spared(call, paths[call.module], needed, len(inputs), in_place) for call in calls)
        known = Backbone(spared, _Known([leaf for call in calls for leaf in _tensors(call) if id(leaf) in needed]))
        try:
            with torch.no_grad(), answering(known(module, inputs)):
                found = network(inputs)
        except RuntimeError:  # such as writing to what has no memory of its own
            continue
        if bool((found - logits).abs().max() <= TOLERANCE * logits.abs().max()):
            return spared
    raise Inseparable("its rest needs more than the outputs of modules before the layer")


@dataclass(frozen=True, slots=True)
class _Known:
    """Tensors that are there already."""

    tensors: Sequence[Tensor]

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        return [tensor.clone() for tensor in self.tensors]

    def replica(self) -> _Known:
        return self


def _tensors(call: Call) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(call.output)[0] if isinstance(leaf, Tensor)]


def _needed(calls: Sequence[Call], network: Network, inputs: Tensor) -> set[int]:
    """The ids of those of the calls' tensors that the logits depend on when all of them are given."""
    given = {
        id(t): t.detach().clone().requires_grad_() for call in calls for t in _tensors(call) if t.is_floating_point()
    }

    def stand_in(leaf: Any) -> Any:
        return given[id(leaf)].clone() if id(leaf) in given else leaf

    outputs = [tree_flatten(call.output) for call in calls]
    stand_ins = [tree_unflatten([stand_in(leaf) for leaf in leaves], spec) for leaves, spec in outputs]
    with torch.enable_grad(), answering([replace(c, output=o) for c, o in zip(calls, stand_ins, strict=True)]):
        logits = network(inputs)
    gradients = torch.autograd.grad(logits.sum(), list(given.values()), allow_unused=True)
    return {key for key, gradient in zip(given, gradients, strict=True) if gradient is not None}


def _spared(call: Call, path: str, needed: set[int], images: int, in_place: bool) -> SparedCall:
    def leaf_of(leaf: Any) -> Any:
        if id(leaf) in needed:
            return Asked(leaf.dtype)
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if len(leaf) % images:
            raise Inseparable(f"{path} returns a tensor that does not go by images")
        return Shape(len(leaf) // images, tuple(leaf.shape[1:]), leaf.dtype, in_place)

    leaves, spec = tree_flatten(call.output)
    return SparedCall(path, call.number, tuple(map(leaf_of, leaves)), spec)


class Wanted(nn.Module):
    """From float32 [B,H,W,3] to the tensors that `spared` calls ask for: what an inference engine is to compute."""

    def __init__(self, module: nn.Module, spared: Sequence[SparedCall]) -> None:
        super().__init__()
        self.module = module
        self.spared = [one for one in spared if any(isinstance(leaf, Asked) for leaf in one.leaves)]

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Copies, as the tensors are when their modules return them."""
        with _noted(self.module, self.spared) as found:
            self.module(inputs.permute(0, 3, 1, 2))
        return [tensor for one in self.spared for tensor in found[one.path, one.number]]


@contextmanager
def _noted(module: nn.Module, spared: Sequence[SparedCall]) -> Iterator[dict[tuple[str, int], list[Tensor]]]:
    found: dict[tuple[str, int], list[Tensor]] = {}
    times: Counter[str] = Counter()

    def noter(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(child: nn.Module, args: Any, output: Any) -> None:
            for one in spared:
                if (one.path, one.number) == (path, times[path]):
                    leaves = zip(tree_flatten(output)[0], one.leaves, strict=True)
                    found[path, times[path]] = [t.clone() for t, leaf in leaves if isinstance(leaf, Asked)]
            times[path] += 1

        return note

    with ExitStack() as hooks:
        for path in {one.path for one in spared}:
            hooks.callback(module.get_submodule(path).register_forward_hook(noter(path)).remove)
        yield found
