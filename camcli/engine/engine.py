"""One forward, the tail's backward for each target, and every method's maps from the two.

The graph begins at the target layer: the parameters are frozen, and a hook hands the rest of the network a
copy of the layer's output that alone asks for gradients. The backbone so leaves nothing behind for backward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camcli.config.schema import OptionsConfig, Smoothing
from camcli.engine.backbone import Backbone
from camcli.engine.layers import Tap, TargetLayer
from camcli.engine.methods import Batch, LayerView, Method
from camcli.engine.methods.lift import curvatures_of, gradients_of
from camcli.engine.methods.maps import REASONS, Maps, along, mean_of, merge, principal, rounding
from camcli.engine.methods.options import options_of
from camcli.engine.methods.unfused import Unfused
from camcli.engine.tap import Past, Tail, answering, cut, noting
from camcli.engine.targets import Chooser, Target, ranked, target_weights
from camcli.errors import ItemError, MethodError
from camcli.models.loaded import LoadedModel
from camcli.records import Heatmap, Precision, Prediction

TOP = 5
COPIES = tuple((mirrored, factor) for mirrored in (False, True) for factor in (1.0, 0.9, 1.1))
"""What `smoothing: aug` averages over: the plain image first; the factor multiplies the model's input."""
Timing = Callable[[Literal["forward", "backward"]], AbstractContextManager[None]]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


Asked = tuple[Tensor, Sequence[Method]]
"""A round: [B,K] with one target of each image, and the methods that are to explain it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the engine found for one image: predictions, most probable first, and heatmaps by target and method.

    A map that is the same for every class stands once, beside those of the first target.
    logits, probabilities: float32 [K], of all classes, as a forward pass in `precision` gives them.
    """

    predictions: tuple[Prediction, ...]
    heatmaps: tuple[Heatmap, ...]
    logits: NDArray[np.float32] = field(compare=False, repr=False)
    probabilities: NDArray[np.float32] = field(compare=False, repr=False)
    precision: Precision = "fp32"


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward: inputs [B,3,H,W], float32 logits [B,K]; for each tap its tensor, what came before, its memo.

    memo: of the batch as a whole.
    """

    inputs: Tensor
    logits: Tensor
    kept: dict[Tap, Tensor]
    past: dict[Tap, Past]
    memos: tuple[dict[str, Any], ...]
    memo: dict[str, Any]


class Engine:
    """Explains batches with one model, its target layers and a list of methods.

    backbones: what computes the network before the layer instead of torch, by precision; at first, nothing does.
    timing: gives a context for each of its two steps, for whoever measures; nobody does at first. passing: is called
    after each forward pass of the network, on the engine's thread, for whoever shows progress.
    options: of each method that has any, checked. Raises ConfigError for those that no method has, and MethodError for
    methods that cannot be smoothed as asked.
    """

    def __init__(
        self,
        model: LoadedModel,
        layers: Sequence[TargetLayer],
        methods: Sequence[Method],
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        options: OptionsConfig | None = None,
        smoothing: Smoothing = "none",
    ) -> None:
        self.model = model
        self.methods = tuple(methods)
        self.taps = tuple(dict.fromkeys(tap for layer in layers for tap in layer.taps))
        self.layer = ", ".join(layer.name for layer in layers)
        self.device = torch.device(device)
        self.module = model.module.to(self.device)
        self.precision = precision
        asked = options or OptionsConfig()
        self.chunk = asked.chunk
        self.options = options_of(self.methods, asked)
        self.smoothing = smoothing
        self.backbones: dict[Precision, Backbone] = {}
        self.timing: Timing = _untimed
        self.passing: Callable[[], None] = _unnoticed
        self._mean = torch.tensor(model.preprocess.mean, device=self.device).view(1, -1, 1, 1)
        self._std = torch.tensor(model.preprocess.std, device=self.device).view(1, -1, 1, 1)
        self._refuse_unsmoothable()

    def replica(self) -> Engine:
        """An engine that shares the weights and may run at the same time on another thread."""
        shared = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        replica = copy.copy(self)
        replica.module = copy.deepcopy(self.module, shared)
        replica.model = replace(self.model, module=replica.module)
        replica.backbones = {precision: one.replica() for precision, one in self.backbones.items()}
        return replica

    def at(self, precision: Precision) -> Engine:
        """This engine, module and all, with forward passes in another precision."""
        other = copy.copy(self)
        other.precision = precision
        return other

    def running(self, methods: Sequence[Method]) -> Engine:
        """This engine, module, options and all, with other methods."""
        other = copy.copy(self)
        other.methods = tuple(methods)
        return other

    def _refuse_unsmoothable(self) -> None:
        for method in self.methods:
            if self.smoothing == "eigen" and not method.contributions:
                raise MethodError(f"smoothing: eigen needs channel contributions, which {method.name!r} has not")

    def explain(self, pixels: Tensor, choose: Chooser, count: int | None = None) -> list[Explanation | ItemError]:
        """Top predictions and heatmaps for uint8 [B,H,W,3]; an ItemError where logits or maps are not finite.

        count: only the first so many are asked for, and the others fill up the batch: they share its forward pass,
        and nothing else is spent on them.
        """
        with self.timing("forward"):
            plain = self.forward(self.normalise(pixels))
            probabilities = self.probabilities(plain)[:count]
        with self.timing("backward"):
            return self.explanations(plain, probabilities, choose)

    def explanations(
        self, plain: Pass, probabilities: NDArray[np.float32], choose: Chooser
    ) -> list[Explanation | ItemError]:
        """As `explain`, of the first images of a pass: those that have a row in `probabilities` [B,K]."""
        logits = plain.logits.detach()
        finite = torch.isfinite(logits).all(dim=1).tolist()[: len(probabilities)]
        targets = [choose(p) or [Target()] if ok else [] for p, ok in zip(probabilities, finite, strict=True)]
        asked = self._asked([target_weights(one_each, logits) for one_each in zip_longest(*targets)])
        if all(target.index is None for one in targets for target in one):
            asked = [(weights, [m for m in methods if not m.class_specific]) for weights, methods in asked]
        rounds = [
            list(zip(methods, maps, strict=True))
            for (_, methods), maps in zip(asked, _arrays(self._maps(plain, asked)), strict=True)
        ]
        scores = logits.cpu().numpy()
        return [
            self._explanation(i, probabilities[i], scores[i], targets[i], rounds) if finite[i] else not_finite("logits")
            for i in range(len(targets))
        ]

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B,H,W,3] -> float32 [B,3,H,W] on the device, as the weights were trained."""
        moved = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return (moved.float() / 255 - self._mean) / self._std

    def network(self, inputs: Tensor) -> Tensor:
        """[N,3,H,W] -> float32 [N,K] in the run's precision."""
        with self._autocast():
            logits: Tensor = self.module(inputs).float()
        self.passing()
        return logits

    def forward(self, inputs: Tensor) -> Pass:
        """One forward pass; its graph begins at the taps, and there is none where no method asks for gradients."""
        needs = {need for method in self.methods for need in method.needs}
        with ExitStack() as stack:
            if backbone := self.backbones.get(self.precision):
                stack.enter_context(answering(backbone(self.module, inputs)))
            past = stack.enter_context(noting(self.module, self.taps)) if "tail" in needs else {}
            kept = stack.enter_context(cut(self.module, self.taps))
            stack.enter_context(torch.set_grad_enabled("gradients" in needs))
            if "curvature" in needs:
                stack.enter_context(Unfused())
            logits = self.network(inputs)
        return Pass(inputs, logits, kept, past, tuple({} for _ in self.taps), {})

    @property
    def _number(self) -> torch.dtype:
        return _AUTOCAST.get(self.precision, torch.float32)

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def probabilities(self, plain: Pass) -> NDArray[np.float32]:
        """float32 [B,K] of a pass."""
        logits = plain.logits.detach()
        values = logits.softmax(dim=1) if self.model.activation == "softmax" else logits.sigmoid()
        return values.cpu().numpy()

    def maps(self, plain: Pass, target_weights: Sequence[Tensor]) -> list[list[Maps]]:
        """The methods' maps for each round of `target_weights`; those of no class are in the first one alone."""
        return self._maps(plain, self._asked(target_weights))

    def _asked(self, target_weights: Sequence[Tensor]) -> list[Asked]:
        specific = [method for method in self.methods if method.class_specific]
        return [(target_weight, specific if i else self.methods) for i, target_weight in enumerate(target_weights)]

    def _maps(self, plain: Pass, asked: Sequence[Asked]) -> list[list[Maps]]:
        rounds = [weights for weights, _ in asked]
        first = [self._round(plain, *one, rounds) for one in asked]
        if self.smoothing != "aug":
            return first
        heats = [[[maps.heat] for maps in methods] for methods in first]
        for mirrored, factor in COPIES[1:]:
            copy = self.forward((plain.inputs.flip(-1) if mirrored else plain.inputs) * factor)
            for one, methods in zip(asked, heats, strict=True):
                for heat, maps in zip(methods, self._round(copy, *one, rounds), strict=True):
                    heat.append(maps.heat.flip(-1) if mirrored else maps.heat)
        return [
            [mean_of(of, method.signed, one) for method, one, of in zip(methods, maps, copies, strict=True)]
            for (_, methods), maps, copies in zip(asked, first, heats, strict=True)
        ]

    def _round(
        self, done: Pass, target_weights: Tensor, methods: Sequence[Method], rounds: Sequence[Tensor]
    ) -> list[Maps]:
        """Each method's maps for one target of every image, of all that the `rounds` ask for."""
        batch, views = self.views(done, target_weights, rounds)
        return [self._merged(method, batch, views) for method in methods]

    def _merged(self, method: Method, batch: Batch, views: Sequence[LayerView]) -> Maps:
        raws = method.compute(batch, views)
        maps = [self._one_map(raw) for raw in raws]
        return merge(maps, method.signed, self._noises(method, batch, views, raws, maps))

    def _one_map(self, raw: Tensor) -> Tensor:
        """[B,h,w] from itself or from channel contributions [B,C,h,w]."""
        if raw.dim() == 3:
            return raw
        return principal(raw) if self.smoothing == "eigen" else raw.sum(dim=1)

    def _noises(
        self,
        method: Method,
        batch: Batch,
        views: Sequence[LayerView],
        raws: Sequence[Tensor],
        maps: Sequence[Tensor],
    ) -> list[Tensor]:
        """What rounding may have added to each of `maps`, where the method says what it adds up."""
        if method.terms is None:
            return []
        terms = method.terms(batch, views, raws)
        if self.smoothing == "eigen":
            terms = [along(raw, one) if raw.dim() == 4 else t for raw, one, t in zip(raws, maps, terms, strict=True)]
        logits = method.resolution == "pixel" or not {"tail", "scores"}.isdisjoint(method.needs)
        numbers = [batch.number] * len(terms) if logits else [view.number for view in views]
        return [rounding(t, number) for t, number in zip(terms, numbers, strict=True)]

    def views(self, done: Pass, target_weights: Tensor, rounds: Sequence[Tensor] = ()) -> tuple[Batch, list[LayerView]]:
        """What methods see of a pass for `target_weights` [B,K]; one backward serves all layers and methods.

        rounds: the target weights of all targets that this pass is explained for.
        """
        about = done.inputs, done.logits.detach(), target_weights, self.module, self.network, self.chunk, self.options
        batch = Batch(*about, done.memo, self._number, rounds, self.model.activation)
        tensors = [done.kept[tap] for tap in self.taps]
        about_score = tensors, self._number, self._to_maps
        latest: list[tuple[Tensor, list[Tensor]]] = []
        curvatures: list[Tensor] = []

        def differentiate(index: int, weights: Tensor) -> Tensor:
            if not latest or latest[0][0] is not weights:
                latest[:] = [(weights, gradients_of(done.logits, weights, *about_score, retain=True))]
            return latest[0][1][index]

        def bend(index: int) -> Tensor:
            if not curvatures:
                curvatures.extend(curvatures_of(done.logits, target_weights, *about_score))
            return curvatures[index]

        def at(inputs: Tensor) -> list[LayerView]:
            return self.views(self.forward(inputs), target_weights, rounds)[1]

        views = [
            self._view(batch, done, index, partial(differentiate, index), partial(bend, index), at)
            for index in range(len(self.taps))
        ]
        return batch, views

    def _to_maps(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """[B,C,h,w] of each tap's tensor."""
        return [tap.layout.to_maps(tensor) for tap, tensor in zip(self.taps, tensors, strict=True)]

    def _view(
        self,
        batch: Batch,
        done: Pass,
        index: int,
        differentiate: Callable[[Tensor], Tensor],
        bend: Callable[[], Tensor],
        at: Callable[[Tensor], list[LayerView]],
    ) -> LayerView:
        tap, memo = self.taps[index], done.memos[index]
        stored = done.kept[tap].detach()

        def tail(image: int, maps: Tensor) -> Tensor:
            run = view.once("tail", lambda: Tail(tap, stored, done.past[tap], done.inputs, batch.logits, self.network))
            return run(image, maps)

        about = tap.layout, stored.shape[1], stored.dtype, memo, index
        view = LayerView(batch, tap.layout.to_maps(stored).float(), differentiate, bend, at, tail, *about)
        return view

    def _explanation(
        self,
        i: int,
        probabilities: NDArray[np.float32],
        logits: NDArray[np.float32],
        targets: Sequence[Target],
        rounds: Sequence[Sequence[tuple[Method, Maps]]],
    ) -> Explanation | ItemError:
        def prediction(index: int) -> Prediction:
            return Prediction(index, self.model.labels[index], float(probabilities[index]), float(logits[index]))

        heatmaps = []
        for target, found in zip(targets, rounds, strict=False):
            for method, maps in found:
                if target.index is None and method.class_specific:
                    continue
                heat, low, high = maps.heat[i].numpy(), float(maps.low[i]), float(maps.high[i])
                if not (np.isfinite(heat).all() and np.isfinite([low, high]).all()):
                    return not_finite(f"{method.name} map")
                reason = REASONS[int(maps.reason[i])]
                classes = (target.index, target.against) if method.class_specific else (None, None)
                of, against = (None if index is None else prediction(index) for index in classes)
                raw = heat, low, high, bool(reason), method.signed
                heatmaps.append(Heatmap(method.name, self.layer, of, *raw, against, reason))
        predictions = tuple(prediction(k) for k in ranked(probabilities, TOP))
        return Explanation(predictions, tuple(heatmaps), logits, probabilities, self.precision)


def _unnoticed() -> None:
    pass


def _untimed(step: str) -> AbstractContextManager[None]:
    return nullcontext()


def _arrays(rounds: list[list[Maps]]) -> list[list[Maps]]:
    """The same on the CPU."""
    return [
        [Maps(maps.heat.cpu(), maps.low.cpu(), maps.high.cpu(), maps.reason.cpu()) for maps in methods]
        for methods in rounds
    ]


def not_finite(what: str) -> ItemError:
    """The error of an image whose `what` cannot be shown."""
    return ItemError("forward", "NotFinite", f"the {what} of this image: NaN or infinite values")
