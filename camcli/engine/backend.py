"""Which engine computes the network before the target layer, and a probe that it finds what torch finds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from camcli.engine import openvino
from camcli.engine.backbone import Backbone, plan
from camcli.engine.engine import Engine
from camcli.engine.precision import AGREEMENT, Answer, Choice, choose_precision, same
from camcli.engine.targets import Chooser, at_least_one, likeliest
from camcli.engine.tuning import noise
from camcli.errors import ConfigError
from camcli.records import BackendName

FP32_AGREEMENT = 0.9999
ROUNDED = {"fp32": 1e-3, "bf16": 1e-1}
"""By how much logits of noise may differ, in their own size; beyond that, something is broken."""
ROUNDS = 3
LEAST_GAIN = 0.2
EXPORT_SECONDS, READ_SECONDS = 10.0, 2.0
"""What exporting a network costs, and what one from the cache costs, at least."""


@dataclass(frozen=True, slots=True)
class Used:
    """A backend, and why it was chosen."""

    used: BackendName
    why: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What a backend is wanted for.

    images: how many there are to explain. probe: some of them, uint8 [B,H,W,3]. size: images per forward pass.
    streams: engines at the same time, each on a core. key: all that the network's weights and shape depend on, for the
    cache; None: nobody knows. together: whether others choose for the same run, who must come to the same.
    """

    images: int
    probe: Callable[[], Tensor]
    choose: Chooser
    size: int
    streams: int
    key: str | None
    together: bool = False


class Unfit(Exception):
    """OpenVINO cannot compute this network, or finds something else."""


def choose_backend(engine: Engine, asked: str, precision: Choice, trial: Trial) -> tuple[Used, Choice]:
    """Have OpenVINO compute what comes before the layer in `precision`, where it finds what torch finds in fp32.

    auto: only where it is also faster, and the start pays. Returns the precision with a guard for the backend.
    Raises ConfigError where OpenVINO is asked for and is not available.
    """
    if lack := _lack(engine, precision):
        if asked == "openvino":
            raise ConfigError(f"runtime.backend: {lack}, or set runtime.backend to torch")
        return Used("torch", lack), precision
    if asked == "auto" and (reason := _too_little(engine, trial)):
        return Used("torch", reason), precision
    try:
        engine.backbones = {precision.used: _backbone(engine, precision, trial)}
        guarded = _checked(engine, precision, trial)
        gain = _gain(engine, trial) if asked == "auto" else ""
    except Unfit as error:
        engine.backbones = {}
        return Used("torch", str(error)), precision
    return Used("openvino", gain or "as asked"), guarded


def use_openvino(engine: Engine, choose: Chooser, size: int, key: str | None) -> None:
    """Have OpenVINO compute what comes before the layer, unseen by images, in the engine's precision.

    Raises ConfigError where it is not available.
    """
    trial = Trial(0, lambda: torch.empty(0), choose, size, 1, key)
    choose_backend(engine, "openvino", Choice(engine.precision, "as asked"), trial)


def resume_backend(engine: Engine, precision: Choice, trial: Trial) -> None:
    """Have OpenVINO compute as it did in the run that goes on; raises ConfigError where it cannot any more."""
    lack = _lack(engine, precision)
    try:
        if lack:
            raise Unfit(lack)
        engine.backbones = {precision.used: _backbone(engine, precision, trial)}
    except Unfit as error:
        raise ConfigError(
            f"runtime.backend: the run was begun with openvino, and here {error}; go on where it was begun, or begin "
            "anew with --fresh"
        ) from None


def _lack(engine: Engine, precision: Choice) -> str:
    if not openvino.installed():
        return "openvino is not installed: python -m pip install 'camcli[openvino]'"
    if engine.device.type != "cpu":
        return "openvino is for a CPU: set runtime.device to cpu"
    return (
        "" if precision.used in openvino.HINTS else f"openvino has no {precision.used}: set runtime.precision to bf16"
    )


def _too_little(engine: Engine, trial: Trial) -> str:
    """Why a start would cost more than it saves, or why it is left alone; empty for neither."""
    if trial.together:
        return "parts of a run must choose alike: set runtime.backend to openvino in all of them"
    pixels = _batch(trial.probe(), trial.size)
    if not len(pixels):
        return "there was no image to compare backends on"
    saved = LEAST_GAIN * min(_seconds(engine, pixels) for _ in range(2)) / trial.size * trial.images / trial.streams
    cost = READ_SECONDS if openvino.known(trial.key) else EXPORT_SECONDS
    if saved < cost:
        return f"openvino would have to save more than its start of about {cost:.0f} s on {trial.images} images"
    return ""


def _backbone(engine: Engine, precision: Choice, trial: Trial) -> Backbone:
    """Raises Unfit; what was kept in the cache and is damaged is made anew."""
    if openvino.known(trial.key):
        with suppress(Unfit):
            return _attempt(engine, precision, trial)
        openvino.forget(trial.key)
    return _attempt(engine, precision, trial)


def _attempt(engine: Engine, precision: Choice, trial: Trial) -> Backbone:
    image = (*engine.model.preprocess.size, engine.model.preprocess.channels)
    alone = engine.at(precision.used)
    inputs = noise(engine, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spared = plan(alone.module, alone.network, alone.taps, inputs)
            network = openvino.exported(alone.module, spared, image, trial.key)
            found = Backbone(spared, openvino.compiled(network, precision.used, trial.size, image, trial.streams))
            expected = alone.forward(inputs).logits.detach()
            alone.backbones = {precision.used: found}
            logits = alone.forward(inputs).logits.detach()
    except Exception as error:  # exporters raise many kinds
        raise Unfit(f"openvino cannot compute this network: {_reason(error)}") from None
    largest = ROUNDED[precision.used] * expected.abs().max()
    if not bool((logits - expected).abs().max() <= largest):
        raise Unfit("openvino computes other logits than torch")
    return found


def _reason(error: Exception) -> str:
    """The first line of an error, or the one that names operations."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return next((line.strip(" -") for line in said if "No conversion rule" in line), said[0])


def _checked(engine: Engine, precision: Choice, trial: Trial) -> Choice:
    """The precision, where every image of the probe has the answer of torch in fp32; raises Unfit."""
    inputs = trial.probe()
    if precision.guard:
        guarded = choose_precision(engine, trial.images, lambda: inputs, trial.choose)
        if guarded.used == precision.used:
            return guarded
        raise Unfit(f"in openvino, {guarded.why}")
    exact = engine.at("fp32")
    exact.backbones = {}
    agreement = FP32_AGREEMENT if precision.used == "fp32" else AGREEMENT
    batches = torch.split(inputs, trial.size) if len(inputs) else ()
    full, ours = ([one for some in batches for one in _answers(e, some, trial)] for e in (exact, engine))
    different = sum(not same(a, b, trial.choose, agreement) for a, b in zip(full, ours, strict=True))
    if different:
        raise Unfit(f"openvino explains {different} of {len(inputs)} images otherwise than torch in fp32")
    return precision


def _answers(engine: Engine, inputs: Tensor, trial: Trial) -> list[Answer]:
    return engine.explain(inputs, at_least_one(trial.choose))


def _gain(engine: Engine, trial: Trial) -> str:
    """How much faster it is; raises Unfit where it is not. The two take turns, so that a busy machine is fair."""
    pixels = _batch(trial.probe(), trial.size)
    plain = engine.at(engine.precision)
    plain.backbones = {}
    taken = [(_seconds(plain, pixels), _seconds(engine, pixels)) for _ in range(ROUNDS)]
    before, after = (1000 * median(column) / trial.size for column in zip(*taken, strict=True))
    words = f"{after:.1f} ms an image on a core instead of {before:.1f}, and the answers of torch on the probe"
    if after >= before:
        raise Unfit(f"openvino takes {words}")
    return words


def _seconds(engine: Engine, pixels: Tensor) -> float:
    start = time.perf_counter()
    engine.explain(pixels, likeliest)
    return time.perf_counter() - start


def _batch(inputs: Tensor, size: int) -> Tensor:
    """`size` of the images, some of them several times where they are few."""
    return torch.cat([inputs] * -(-size // len(inputs)))[:size] if len(inputs) else inputs
