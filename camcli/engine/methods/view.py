"""What a method sees of one batch, and what a method is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from camcli.engine.methods.lift import gradients_of
from camcli.errors import MethodError
from camcli.registry import Registry

if TYPE_CHECKING:
    from camcli.engine.layers import Layout

T = TypeVar("T")
Options = TypeVar("Options", bound=BaseModel)
Need = Literal["activations", "gradients", "curvature", "tail", "scores", "pixels"]
Activation = Literal["softmax", "sigmoid"]
Resolution = Literal["layer", "pixel"]
Network = Callable[[Tensor], Tensor]
Tail = Callable[[int, Tensor], Tensor]


class Remembering:
    """What keeps results in a `memo`, by keys that say what they are and which options they were made with."""

    memo: dict[str, Any]

    def once(self, key: str, make: Callable[[], T]) -> T:
        """The result of `make`, made for the first target and kept for the others."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Batch(Remembering):
    """A batch and what is asked of it.

    inputs: float32 [B,3,H,W] as the model takes them. logits: float32 [B,K], without graph.
    target_weights: float32 [B,K]; the score of an image is the product of its logits with its row, so a 1 asks for a
        class, and a -1 beside it asks why not rather that one. A row of zeros asks nothing.
    module: the model. network: [N,3,H,W] -> float32 [N,K], in the precision of the run. number: that precision.
    chunk: rows per forward pass. options: what methods are told, by their names.
    memo: results that hold for every target of the same batch. rounds: the target weights of every target that the
        batch is explained for, these among them; none given: these alone.
    activation: what makes probabilities of the logits.
    """

    inputs: Tensor
    logits: Tensor
    target_weights: Tensor
    module: nn.Module
    network: Network
    chunk: int = 16
    options: Mapping[str, BaseModel] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)
    number: torch.dtype = torch.float32
    rounds: Sequence[Tensor] = ()
    activation: Activation = "softmax"

    @property
    def turn(self) -> int:
        """Which of `rounds` this is; raises ValueError where it is none of them."""
        for number, weights in enumerate(self.rounds or (self.target_weights,)):
            if weights is self.target_weights:
                return number
        raise ValueError("the target weights of a batch are those of none of its rounds")

    @property
    def asked(self) -> list[int]:
        """The rows that ask something; costly methods spend forward passes on these alone."""
        rows: list[int] = self.target_weights.any(dim=1).nonzero()[:, 0].tolist()
        return rows

    def told(self, name: str, options: type[Options]) -> Options:
        """The options of the method called `name`."""
        return self.options.get(name) or options()  # type: ignore[return-value]

    @property
    def scores(self) -> Tensor:
        """What the maps explain: float32 [B]."""
        return (self.logits * self.target_weights).sum(dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[N,K] of logits [N,K], in float32."""
        return torch.softmax(logits.float(), dim=1) if self.activation == "softmax" else torch.sigmoid(logits.float())

    def for_every_target(self, key: str, compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The rows of this round of what `compute` gives for all images and all of their targets at once.

        compute: inputs [N,3,H,W] and target weights [N,K] of everything that is asked, in rounds -> [N,...]. Rows that
        ask nothing are zero.
        """
        rounds = self.rounds or (self.target_weights,)
        asked = [weights.any(dim=1).nonzero()[:, 0] for weights in rounds]
        mine, first = asked[self.turn], sum(map(len, asked[: self.turn]))
        if not len(mine):
            return torch.zeros_like(self.inputs[:, 0])
        weights = torch.cat([weights[rows] for weights, rows in zip(rounds, asked, strict=True)])
        found = self.once(key, lambda: compute(self.inputs[torch.cat(asked)], weights))
        maps = found.new_zeros(len(self.inputs), *found.shape[1:])
        maps[mine] = found[first : first + len(mine)]
        return maps

    def logits_of(self, variants: Iterable[Tensor]) -> Tensor:
        """Chunks [n,3,H,W] of changed images -> float32 [N,K], one forward pass for each chunk.

        Colours go last in memory, which convolutions on a CPU take up to a third less time for.
        """
        with torch.no_grad():
            chunks = (chunk.contiguous(memory_format=torch.channels_last) for chunk in variants)
            return torch.cat([self.network(chunk) for chunk in chunks])

    def input_gradients(self, inputs: Tensor) -> Tensor:
        """d score / d input at `inputs`, float32 [B,3,H,W], a chunk at a time; zeros where nothing is asked."""
        return self.in_chunks(inputs, self._gradients, torch.zeros_like)

    def variant_gradients(self, row: int, variants: Iterable[Tensor]) -> Tensor:
        """The sum of d score / d input over changed copies [N,3,H,W] of one image: float32 [3,H,W]."""
        copies = torch.stack(list(variants)).contiguous(memory_format=torch.channels_last)
        chunks = torch.split(copies, self.chunk)
        target_weights = self.target_weights[row : row + 1]
        sums = [self._gradients(chunk, target_weights.expand(len(chunk), -1)).sum(dim=0) for chunk in chunks]
        return torch.stack(sums).sum(dim=0)

    def probability_gradients(self, inputs: Tensor, target_weights: Tensor) -> tuple[Tensor, Tensor]:
        """The targets' probabilities [N] for [N,3,H,W] and target weights [N,K], and their gradients [N,3,H,W]."""
        probabilities, gradients = self._derived(inputs, target_weights, self.probabilities)
        return (probabilities * target_weights).sum(dim=1), gradients

    def in_chunks(
        self, inputs: Tensor, compute: Callable[[Tensor, Tensor], Tensor], idle: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What `compute` gives for [n,3,H,W] and target weights [n,K], at most `chunk` rows at a time, joined.

        All chunks have the same size, filled up with copies, and the same layout in memory, because rounding depends on
        both; `idle` stands in for those that ask nothing.
        """
        count = -(-len(inputs) // self.chunk)
        missing = -len(inputs) % count
        filled = torch.cat([inputs, inputs[-1:].expand(missing, -1, -1, -1)])
        filled = filled.contiguous(memory_format=torch.channels_last)
        target_weights = torch.cat([self.target_weights, torch.zeros_like(self.target_weights[:missing])])
        chunks = zip(filled.chunk(count), target_weights.chunk(count), strict=True)
        found = [compute(chunk, weights) if weights.any() else idle(chunk) for chunk, weights in chunks]
        return torch.cat(found)[: len(inputs)]

    def _gradients(self, inputs: Tensor, target_weights: Tensor) -> Tensor:
        return self._derived(inputs, target_weights, lambda logits: logits)[1]

    def _derived(
        self, inputs: Tensor, target_weights: Tensor, read: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What `read` makes of the logits, [N,K], and the gradients [N,3,H,W] of its product with the weights."""
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            values = read(self.network(leaf.clone()))
        return values.detach(), gradients_of(values, target_weights, [leaf], self.number)[0]


@dataclass(frozen=True)
class LayerView(Remembering):
    """A batch at one target layer.

    activations: float32 [B,C,h,w].
    differentiate: target weights [B,K] -> float32 [B,C,h,w], the gradient of the scores that they ask for.
    bend: gives float32 [B,C,h,w], the second derivative of the scores along the activations.
    at: other inputs [B,3,H,W] -> all target layers' views of them, for the same target; index: which of them this is.
    tail: (image, float32 [N,C,h,w]) -> float32 [N,K], the logits of that image with other activations here.
    layout, tokens: how the stored tensor is read, and the size of its second axis. number: what it was stored as.
    memo: results that hold for every target of the same batch.
    """

    batch: Batch
    activations: Tensor
    differentiate: Callable[[Tensor], Tensor]
    bend: Callable[[], Tensor]
    at: Callable[[Tensor], list[LayerView]]
    tail: Tail
    layout: Layout
    tokens: int
    number: torch.dtype = torch.float32
    memo: dict[str, Any] = field(default_factory=dict)
    index: int = 0

    @cached_property
    def gradients(self) -> Tensor:
        """d score / d activation, float32 [B,C,h,w]."""
        return self.differentiate(self.batch.target_weights)

    @cached_property
    def curvature(self) -> Tensor:
        """H a, H the second derivative of the score by the activations a (prefix tokens too): float32 [B,C,h,w].

        Zeros where the network behind the layer is linear, piece by piece. For methods that need `curvature`.
        """
        return self.bend()

    def channels(self, image: int, most: int | None = None) -> Tensor:
        """Indices of the channels worth scoring: not zero everywhere, at most `most`, strongest first."""
        strength = self.activations[image].abs().sum(dim=(1, 2))
        order = strength.argsort(descending=True, stable=True)
        return order[strength[order] > 0][:most]


LayerTerms = Callable[[LayerView, Tensor], Tensor]
PixelTerms = Callable[[Batch, Tensor], Tensor]
Terms = Callable[[Batch, Sequence[LayerView], Sequence[Tensor]], list[Tensor]]
LayerCompute = TypeVar("LayerCompute", bound=Callable[..., Tensor])
PixelCompute = TypeVar("PixelCompute", bound=Callable[..., Tensor])
Compute = Callable[[Batch, Sequence[LayerView]], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to explain.

    compute: raw maps before ReLU and scaling, for a method at layer resolution one for each layer, else one:
        [B,h,w], or [B,C,h,w] channel contributions, whose sum is the map.
    cost: what an image costs beside its forward pass. signed: negative values are shown, too.
    class_specific: the map depends on the class that is asked; otherwise there is one for each image.
    formula: the first line of the function's docstring.
    terms: for each raw map the magnitudes [B,N,h,w] of all that was added up to it, the N of a place being its
        summands; None where nothing is known of them.
    options: the model of what the method can be told in a config, each field with a default; None: nothing.
    good_for: when to choose it, in at most five words.
    contributions: whether its raw maps are channel contributions, or the first component of some; what a
        `smoothing: eigen` is made of.
    """

    name: str
    compute: Compute
    needs: tuple[Need, ...]
    cost: str
    paper: str
    resolution: Resolution
    signed: bool
    formula: str
    class_specific: bool = True
    terms: Terms | None = None
    options: type[BaseModel] | None = None
    good_for: str = ""
    contributions: bool = True


METHODS: Registry[Method] = Registry("method")


def layer_method(
    name: str,
    needs: tuple[Need, ...],
    cost: str,
    paper: str,
    class_specific: bool = True,
    terms: LayerTerms | None = None,
    options: type[BaseModel] | None = None,
    good_for: str = "",
    contributions: bool = True,
) -> Callable[[LayerCompute], LayerCompute]:
    """Registers a function from the view of a layer to raw maps; terms: from the view and its raw maps to terms.

    options: a pydantic model, each field with a default, an instance of which the function gets as a second argument.
    contributions: False where the raw maps are neither channel contributions nor their first component.
    """

    def decorate(compute: LayerCompute) -> LayerCompute:
        def each(batch: Batch, views: Sequence[LayerView]) -> list[Tensor]:
            return [compute(view, *_told(batch, name, options)) for view in views]

        def all_terms(batch: Batch, views: Sequence[LayerView], raws: Sequence[Tensor]) -> list[Tensor]:
            return [terms(view, raw) if terms else _contributions(raw) for view, raw in zip(views, raws, strict=True)]

        about = name, each, needs, cost, paper, "layer", False, _formula(compute), class_specific
        METHODS.add(name, Method(*about, all_terms, options, good_for, contributions))  # type: ignore[arg-type]
        return compute

    return decorate


def pixel_method(
    name: str,
    needs: tuple[Need, ...],
    cost: str,
    paper: str,
    signed: bool = False,
    terms: PixelTerms | None = None,
    options: type[BaseModel] | None = None,
    good_for: str = "",
) -> Callable[[PixelCompute], PixelCompute]:
    """Registers a function from a batch to raw maps [B,H,W] at the resolution of the model's input.

    options: as for `layer_method`; the function gets them as its third argument.
    """

    def decorate(compute: PixelCompute) -> PixelCompute:
        def one(batch: Batch, views: Sequence[LayerView]) -> list[Tensor]:
            return [compute(batch, views, *_told(batch, name, options))]

        def its_terms(batch: Batch, views: Sequence[LayerView], raws: Sequence[Tensor]) -> list[Tensor]:
            return [terms(batch, raw) for raw in raws] if terms else []

        about = name, one, needs, cost, paper, "pixel", signed, _formula(compute), True
        METHODS.add(name, Method(*about, its_terms if terms else None, options, good_for, False))  # type: ignore[arg-type]
        return compute

    return decorate


def _told(batch: Batch, name: str, options: type[BaseModel] | None) -> list[BaseModel]:
    """The argument for a method's options, where it has any."""
    return [batch.told(name, options)] if options else []


def load_plugins() -> None:
    """Import what other packages name under the entry point `camcli.methods`; each import registers its methods.

    Raises MethodError for one that cannot be imported.
    """
    for plugin in entry_points(group="camcli.methods"):
        try:
            plugin.load()
        except Exception as error:  # other people's code raises many kinds
            reason = f"{type(error).__name__}: {error}"
            raise MethodError(f"entry point camcli.methods {plugin.value!r} cannot be loaded: {reason}") from None


def _contributions(raw: Tensor) -> Tensor:
    """[B,C,h,w] of channel contributions, or of a map [B,h,w] that is a sum of nothing else."""
    return raw if raw.dim() == 4 else raw[:, None]


def _formula(compute: Callable[..., Tensor]) -> str:
    return (inspect.getdoc(compute) or "").partition("\n")[0]
