"""Half precision where the hardware has it, and a guard that finds each image whose answer it may have changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camcli.engine.engine import Engine, Explanation
from camcli.engine.targets import Chooser, at_least_one, likeliest
from camcli.errors import ItemError
from camcli.images.geometry import Heat
from camcli.records import Heatmap, Precision

AGREEMENT = 0.99
WORTHWHILE = 64
MOST_REDONE = 1 / 3
# Measured on 1,000 crops of photographs with two ImageNet models, each bound taken from 16 of them, 1,000 times.
LOGIT_ERRORS = 7.0
MAP_ERRORS = 2.5 / math.sqrt(AGREEMENT**-2 - 1)
# Their maps are products of activations and gradients, so rounding moves them by about the same amount everywhere.
# A ratio or an eigenvector may be turned around by it, and nothing in the answer says so.
CHECKABLE = frozenset({"cam", "gradcam", "hirescam", "layercam", "gradcam-elementwise"})
_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")

Answer = Explanation | ItemError


@dataclass(frozen=True, slots=True)
class Guard:
    """What 16 bits are trusted with.

    logits: how far rounding may move the difference between two logits. maps: by method, the least spread (standard
        deviation, unit of the raw map) of a positive map that rounding does not visibly change.
    """

    logits: float
    maps: Mapping[str, float]

    def doubts(self, answer: Answer, choose: Chooser, activation: str) -> bool:
        """Whether fp32 might give another first class, other targets or another map; failures are always in doubt."""
        if isinstance(answer, ItemError):
            return True
        if any(spread(heatmap) < self.maps.get(heatmap.method, math.inf) for heatmap in answer.heatmaps):
            return True
        return not all(self._holds(answer, pick, activation) for pick in (likeliest, choose))

    def _holds(self, answer: Explanation, pick: Chooser, activation: str) -> bool:
        """Whether `pick` picks the same classes when these lose and all others gain, and when all lose or gain."""
        picked = _classes(pick, answer.probabilities)
        opposed = np.full(len(answer.logits), self.logits / 2, dtype=np.float32)
        opposed[picked] *= -1
        shifts = opposed, np.float32(-self.logits), np.float32(self.logits)
        return all(_classes(pick, _shifted(answer, shift, activation)) == picked for shift in shifts)


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, why it was chosen, and the guard of a run that was left to choose 16 bits."""

    used: Precision
    why: str
    guard: Guard | None = None


def native(device: torch.device) -> Literal["bf16", "fp16"] | None:
    """The 16-bit format that `device` computes in hardware, if any."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major == 7 else None
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return "bf16" if any(able.get(name) for name in _CPU_BF16) else None
    return None


def choose_precision(engine: Engine, images: int, probe: Callable[[], Tensor], choose: Chooser) -> Choice:
    """16 bits, with a guard, where `engine`'s device has them and they pay; else fp32.

    images: how many there are to explain. probe: some of them, uint8 [B,H,W,3], that both precisions explain.
    """
    half = native(engine.device)
    if half is None:
        return Choice("fp32", f"{engine.device.type} has no 16-bit arithmetic that torch knows of")
    if images < WORTHWHILE:
        return Choice("fp32", f"comparing precisions pays for {WORTHWHILE} images or more, not for {images}")
    if unchecked := _unchecked(engine):
        return Choice("fp32", f"whether {half} changes a map cannot be told image by image for {unchecked}")
    inputs = probe()
    if not len(inputs):
        return Choice("fp32", "there was no image to compare precisions on")
    return _judged(half, engine, inputs, choose)


def _unchecked(engine: Engine) -> str:
    """What the guard knows no test for."""
    methods = [method.name for method in engine.methods if method.name not in CHECKABLE]
    layers = ["the mean of several layers"] if len(engine.taps) > 1 else []
    smoothing = [f"smoothing: {engine.smoothing}"] if engine.smoothing != "none" else []
    return ", ".join([*methods, *layers, *smoothing])


def _judged(half: Literal["bf16", "fp16"], engine: Engine, inputs: Tensor, choose: Chooser) -> Choice:
    some = at_least_one(choose)
    activation = engine.model.activation
    pairs = list(zip(*(engine.at(p).explain(inputs, some) for p in ("fp32", half)), strict=True))
    whole = [(a, b) for a, b in pairs if isinstance(a, Explanation) and isinstance(b, Explanation)]
    guard = _measured(whole, activation)
    if guard is None:
        return Choice("fp32", f"{half} gives no answer that can be compared with one in fp32")
    doubtful = [guard.doubts(other, choose, activation) for _, other in pairs]
    if any(not doubt and not same(a, b, choose) for (a, b), doubt in zip(pairs, doubtful, strict=True)):
        return Choice("fp32", f"{half} changes an answer by more than could be foreseen")
    share = sum(doubtful) / len(doubtful)
    found = f"of {len(doubtful)} images {sum(doubtful)} would have to be explained again"
    if share > MOST_REDONE:
        return Choice("fp32", f"{half} is too coarse for this model: {found}")
    return Choice(half, f"{found}; the others have the same answers in fp32", guard)


def _measured(pairs: Sequence[tuple[Explanation, Explanation]], activation: str) -> Guard | None:
    """From the explanations of the same images in fp32 and in 16 bits; None where there is nothing to measure."""
    errors = [_logit_error(full, half, activation) for full, half in pairs]
    moved: dict[str, list[float]] = {}
    for full, half in pairs:
        for one, other in _maps(full, half):
            moved.setdefault(one.method, []).append(float(np.std(_positive(one) - _positive(other))))
    if not errors or not moved:
        return None
    return Guard(
        _rounded_up(LOGIT_ERRORS * _rms(errors)),
        {method: _rounded_up(MAP_ERRORS * _rms(found)) for method, found in sorted(moved.items())},
    )


def _logit_error(full: Explanation, half: Explanation, activation: str) -> float:
    """Standard deviation over the classes; a softmax does not see what all logits have in common."""
    error = half.logits - full.logits
    return float(np.std(error)) if activation == "softmax" else _rms(error)


def same(full: Answer, half: Answer, choose: Chooser, agreement: float = AGREEMENT) -> bool:
    """Whether both have the same first class and targets, and maps that correlate by at least `agreement`."""
    if isinstance(full, ItemError) or isinstance(half, ItemError):
        return isinstance(full, ItemError) and isinstance(half, ItemError)
    if any(_classes(pick, full.probabilities) != _classes(pick, half.probabilities) for pick in (likeliest, choose)):
        return False
    return all(correlation(one.heat, other.heat) >= agreement for one, other in _maps(full, half))


def _maps(full: Explanation, half: Explanation) -> list[tuple[Heatmap, Heatmap]]:
    """Those of the same method and class."""
    named = {(heatmap.method, heatmap.target and heatmap.target.index): heatmap for heatmap in half.heatmaps}
    keys = [(heatmap.method, heatmap.target and heatmap.target.index) for heatmap in full.heatmaps]
    return [(one, named[key]) for one, key in zip(full.heatmaps, keys, strict=True) if key in named]


def _classes(pick: Chooser, probabilities: NDArray[np.float32]) -> list[int]:
    return sorted(target.index for target in pick(probabilities) if target.index is not None)


def _shifted(answer: Explanation, shift: NDArray[np.float32] | np.float32, activation: str) -> NDArray[np.float32]:
    """The probabilities with logits moved by `shift`; of a softmax each by itself, so they do not add up to 1."""
    if activation == "softmax":
        return answer.probabilities * np.exp(shift)
    return np.asarray(torch.from_numpy(answer.logits + shift).sigmoid())


def spread(heatmap: Heatmap) -> float:
    """Standard deviation of a map's positive part before scaling."""
    return float(np.std(_positive(heatmap)))


def _positive(heatmap: Heatmap) -> Heat:
    low = max(heatmap.raw_min, 0.0)
    return heatmap.heat * (max(heatmap.raw_max, 0.0) - low) + low


def _rms(values: Sequence[float] | NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _rounded_up(value: float) -> float:
    """To the next power of the eighth root of 2, so that a bound does not follow the probe's last digits."""
    return float(2 ** (math.ceil(8 * math.log2(value)) / 8)) if value > 0 else 0.0


def correlation(a: Heat, b: Heat) -> float:
    """Pearson over all locations; maps without heat agree with each other and with nothing else."""
    if not (np.ptp(a) and np.ptp(b)):
        return float(np.ptp(a) == np.ptp(b))
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
