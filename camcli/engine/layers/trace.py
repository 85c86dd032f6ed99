"""One recorded forward pass: every tensor that a module returned, and its place in the autograd graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from camcli.errors import LayerError

Item = tuple[int | str, ...]
Visitor = Callable[["Place", Tensor], None]


@dataclass(frozen=True, slots=True)
class Place:
    """The tensor at `item` in the `call`-th output of the module at `path`."""

    path: str
    call: int = 0
    item: Item = ()


@dataclass(frozen=True, slots=True)
class Output:
    """A recorded tensor: shape without the batch axis, and the edge of the graph that made it."""

    place: Place
    type: str
    shape: tuple[int, ...]
    edge: GradientEdge


@dataclass(slots=True)
class Trace:
    """A forward pass of one image; loss is the largest logit, source the image's edge."""

    loss: Tensor
    source: GradientEdge
    outputs: list[Output] = field(default_factory=list)

    def gradients(self, outputs: Sequence[Output]) -> list[Tensor | None]:
        """d loss / d output, [1, *shape] each; None where the loss does not depend on it."""
        edges = [output.edge for output in outputs]
        return list(torch.autograd.grad(self.loss, edges, retain_graph=True, allow_unused=True))


def record(module: nn.Module, inputs: Tensor) -> Trace:
    """Run `module` on `inputs` [1,3,H,W] with a graph from the logits down to the image."""
    outputs: list[Output] = []
    types = {path: type(child).__name__ for path, child in module.named_modules()}

    def visit(place: Place, tensor: Tensor) -> None:
        if tensor.requires_grad and tensor.dim() in (3, 4) and tensor.shape[0] == 1:
            shape = tuple(tensor.shape[1:])
            outputs.append(Output(place, types[place.path], shape, get_gradient_edge(tensor)))

    with torch.enable_grad():
        image = inputs.detach().requires_grad_(True)
        with visiting(module, visit):
            logits = module(image.clone())
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.requires_grad:
            raise LayerError("the model does not return logits [batch, classes] that depend on the image")
        return Trace(logits.max(), get_gradient_edge(image), outputs)


@contextmanager
def visiting(module: nn.Module, visit: Visitor) -> Iterator[None]:
    """Call `visit` with every tensor that a submodule returns, inside containers too."""
    calls: Counter[str] = Counter()

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def run(_module: nn.Module, _args: Any, result: Any) -> None:
            for item, tensor in leaves(result):
                visit(Place(path, calls[path], item), tensor)
            calls[path] += 1

        return run

    children = [(path, child) for path, child in module.named_modules() if path]
    handles = [child.register_forward_hook(hook(path)) for path, child in children]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def leaves(result: Any, item: Item = ()) -> Iterator[tuple[Item, Tensor]]:
    """(keys, tensor) for each tensor in a module's result, however it is nested."""
    if isinstance(result, Tensor):
        yield item, result
    elif isinstance(result, dict):
        for key, value in result.items():
            yield from leaves(value, (*item, key))
    elif isinstance(result, (list, tuple)):
        for index, value in enumerate(result):
            yield from leaves(value, (*item, index))


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; flags and random state as found afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    wants = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    devices = {parameter.device for parameter, _ in wants if parameter.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.inference_mode(False):
        try:
            module.eval()
            for parameter, _ in wants:
                parameter.requires_grad_(False)
            yield
        finally:
            for child, training in modes:
                child.training = training
            for parameter, wanted in wants:
                parameter.requires_grad_(wanted)
