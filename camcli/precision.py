"""Whether 16 bits are enough: half precision where the hardware has it and the pictures do not notice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from camcli.engine import Engine, Explanation
from camcli.errors import ItemError
from camcli.geometry import Heat
from camcli.methods import METHODS
from camcli.targets import ranked

Precision = Literal["fp32", "bf16", "fp16"]
AGREEMENT = 0.99
_CHEAP = {"activations", "gradients"}
_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and why it was chosen."""

    used: Precision
    why: str


def native(device: torch.device) -> Precision | None:
    """The 16-bit format that `device` computes in hardware, if any."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major == 7 else None
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return "bf16" if any(able.get(name) for name in _CPU_BF16) else None
    return None


def choose_precision(engine: Engine, inputs: Tensor) -> Choice:
    """16 bits where `device` has them and they agree with fp32 on `inputs`, uint8 [B,H,W,3]; else fp32.

    To agree, every top-1 must be the same and every map of the top-1 correlate above 0.99. Costly methods are left
    out; without a cheap one Grad-CAM stands in.
    """
    half = native(engine.device)
    if half is None:
        return Choice("fp32", f"{engine.device.type} has no 16-bit arithmetic that torch knows of")
    if not len(inputs):
        return Choice("fp32", "there was no picture to compare precisions on")
    full, other = (_explained(engine, precision, inputs) for precision in ("fp32", half))
    pairs = [(one, two) for one, two in zip(full, other, strict=True) if isinstance(one, Explanation)]
    return _verdict(half, pairs)


def _verdict(half: Precision, pairs: Sequence[tuple[Explanation, Explanation | ItemError]]) -> Choice:
    """Of the explanations of the same pictures in fp32 and in `half`."""
    lowest = 1.0
    for full, other in pairs:
        if isinstance(other, ItemError):
            return Choice("fp32", f"{half} gives no finite answer for a picture: {other}")
        if full.top[0].index != other.top[0].index:
            return Choice("fp32", f"{half} changes a top-1 from {full.top[0].label} to {other.top[0].label}")
        maps = zip(full.heatmaps, other.heatmaps, strict=True)
        lowest = min([lowest, *(correlation(a.heat, b.heat) for a, b in maps)])
    if lowest <= AGREEMENT:
        return Choice("fp32", f"maps in {half} correlate by only {lowest:.4f} with those in fp32")
    return Choice(half, f"on {len(pairs)} pictures {half} gives the same top-1 and maps that correlate by {lowest:.4f}")


def _explained(engine: Engine, precision: str, inputs: Tensor) -> list[Explanation | ItemError]:
    probe = copy.copy(engine)
    probe.precision = precision
    cheap = tuple(method for method in engine.methods if _CHEAP.issuperset(method.needs))
    probe.methods = cheap or (METHODS.get("gradcam"),)
    return probe.explain(inputs, lambda probabilities: ranked(probabilities, 1))


def correlation(a: Heat, b: Heat) -> float:
    """Pearson over all cells; maps without heat agree with each other and with nothing else."""
    if not (np.ptp(a) and np.ptp(b)):
        return float(np.ptp(a) == np.ptp(b))
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
