"""One forward, the tail's backward for each target, and every method's maps from the two.

The graph begins at the target layer: the parameters are frozen, and a hook hands the rest of the network a
copy of the layer's output that alone asks for gradients. The backbone so leaves nothing behind for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from camcli.errors import ItemError
from camcli.layers import Tap, TargetLayer
from camcli.methods import LayerView, Method
from camcli.models.loaded import LoadedModel
from camcli.records import Heatmap, Prediction
from camcli.targets import Chooser, ranked

TOP = 5
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the engine found for one picture: predictions, most probable first, and heatmaps by target and method."""

    top: tuple[Prediction, ...]
    heatmaps: tuple[Heatmap, ...]


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
                output = _kept(output, tap.item, tap, kept)
        return output

    return hook


def _kept(output: Any, item: tuple[int | str, ...], tap: Tap, kept: dict[Tap, Tensor]) -> Any:
    """`output` with the tensor at `item` kept and replaced by its clone."""
    if not item:
        kept[tap] = output if output.requires_grad else output.detach().requires_grad_()
        return kept[tap].clone()
    if isinstance(output, dict):
        return {**output, item[0]: _kept(output[item[0]], item[1:], tap, kept)}
    values = [_kept(v, item[1:], tap, kept) if i == item[0] else v for i, v in enumerate(output)]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)


class Engine:
    """Explains batches with one model, its target layers and a list of methods."""

    def __init__(
        self,
        model: LoadedModel,
        layers: Sequence[TargetLayer],
        methods: Sequence[Method],
        device: torch.device | str = "cpu",
        precision: str = "fp32",
    ) -> None:
        self.model = model
        self.methods = tuple(methods)
        self.taps = tuple(dict.fromkeys(tap for layer in layers for tap in layer.taps))
        self.layer = ", ".join(layer.name for layer in layers)
        self.device = torch.device(device)
        self.module = model.module.to(self.device)
        self.precision = precision
        self._mean = torch.tensor(model.preprocess.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(model.preprocess.std, device=self.device).view(1, 3, 1, 1)

    def explain(self, pixels: Tensor, choose: Chooser) -> list[Explanation | ItemError]:
        """Top predictions and heatmaps for uint8 [B,H,W,3]; an ItemError for a picture with logits not finite."""
        inputs = self.normalise(pixels)
        logits, kept = self._forward(inputs)
        probabilities = self._probabilities(logits)
        finite = torch.isfinite(logits).all(dim=1).tolist()
        chosen = [choose(p) if ok else [] for p, ok in zip(probabilities, finite, strict=True)]
        rounds = [self._round(inputs, logits, kept, chosen, r) for r in range(max(map(len, chosen)))]
        scores = logits.detach().cpu().numpy()
        return [
            self._explanation(i, probabilities[i], scores[i], chosen[i], rounds) if finite[i] else _not_finite()
            for i in range(len(chosen))
        ]

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B,H,W,3] -> float32 [B,3,H,W] on the device, as the weights were trained."""
        moved = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return (moved.float() / 255 - self._mean) / self._std

    def _forward(self, inputs: Tensor) -> tuple[Tensor, dict[Tap, Tensor]]:
        with cut(self.module, self.taps) as kept, torch.enable_grad(), self._autocast():
            logits = self.module(inputs)
        return logits.float(), kept

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def _probabilities(self, logits: Tensor) -> NDArray[np.float32]:
        scores = logits.detach()
        values = scores.softmax(dim=1) if self.model.activation == "softmax" else scores.sigmoid()
        return values.cpu().numpy()

    def _round(
        self, inputs: Tensor, logits: Tensor, kept: dict[Tap, Tensor], chosen: list[list[int]], r: int
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
        """For the r-th target of every picture, each method's (heat [B,h,w], raw_min [B], raw_max [B])."""
        targets = torch.tensor([c[r] if r < len(c) else 0 for c in chosen], device=self.device)
        views = self._views(inputs, logits, kept, targets)
        return [_merge([m.compute(view) for view in views]) for m in self.methods]

    def _views(self, inputs: Tensor, logits: Tensor, kept: dict[Tap, Tensor], targets: Tensor) -> list[LayerView]:
        tensors = [kept[tap] for tap in self.taps]
        gradients: list[Tensor] = []

        def gradient(index: int) -> Tensor:
            if not gradients:
                score = logits.gather(1, targets[:, None]).sum()
                gradients.extend(torch.autograd.grad(score, tensors, retain_graph=True))
            return self.taps[index].layout.to_maps(gradients[index]).float()

        return [
            LayerView(
                inputs,
                logits.detach(),
                targets,
                tap.layout.to_maps(kept[tap].detach()).float(),
                lambda i=i: gradient(i),  # type: ignore[misc]
            )
            for i, tap in enumerate(self.taps)
        ]

    def _explanation(
        self,
        i: int,
        probabilities: NDArray[np.float32],
        logits: NDArray[np.float32],
        chosen: list[int],
        rounds: list[list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]],
    ) -> Explanation:
        def prediction(index: int) -> Prediction:
            return Prediction(index, self.model.labels[index], float(probabilities[index]), float(logits[index]))

        heatmaps = tuple(
            Heatmap(
                method.name,
                self.layer,
                prediction(index),
                heat[i],
                float(low[i]),
                float(high[i]),
                empty=not heat[i].any(),
            )
            for index, maps in zip(chosen, rounds, strict=False)
            for method, (heat, low, high) in zip(self.methods, maps, strict=True)
        )
        return Explanation(tuple(prediction(k) for k in ranked(probabilities)[:TOP]), heatmaps)


def _merge(raws: list[Tensor]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The mean of the layers' scaled maps at the finest layer's resolution, and the range of all raw maps."""
    size = max((raw.shape[-2:] for raw in raws), key=lambda s: s[0] * s[1])
    scaled = [scale(raw) for raw in raws]
    resized = [s if s.shape[-2:] == size else _resize(s, size) for s in scaled]
    heat = resized[0] if len(resized) == 1 else scale(torch.stack(resized).mean(dim=0))
    low = torch.stack([raw.amin(dim=(1, 2)) for raw in raws]).amin(dim=0)
    high = torch.stack([raw.amax(dim=(1, 2)) for raw in raws]).amax(dim=0)
    return heat.cpu().numpy(), low.cpu().numpy(), high.cpu().numpy()


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def scale(raw: Tensor) -> Tensor:
    """ReLU, then each map [h,w] of [B,h,w] to 0..1; a map that is constant has nothing to show and becomes 0."""
    positive = raw.relu()
    low, high = positive.amin(dim=(1, 2), keepdim=True), positive.amax(dim=(1, 2), keepdim=True)
    span = high - low
    flat = span <= 1e-6 * high
    return torch.where(flat, torch.zeros_like(positive), (positive - low) / span.clamp_min(1e-38))


def _not_finite() -> ItemError:
    return ItemError("forward", "NotFinite", "the model's logits are NaN or infinite for this picture")
