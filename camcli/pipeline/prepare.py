"""From a config to engines that are ready: model, layers, devices, precision, backend, batch size and cores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camcli.config.schema import RunConfig
from camcli.engine.backend import Trial, Used, choose_backend, resume_backend
from camcli.engine.batch_size import even_batches, find_batch_size
from camcli.engine.concepts import factorising
from camcli.engine.engine import Engine
from camcli.engine.layers import Candidate, TargetLayer, list_candidates, resolve_cached
from camcli.engine.methods import METHODS, methods_of
from camcli.engine.methods.options import options_of
from camcli.engine.precision import Choice, Guard, choose_precision
from camcli.engine.targets import chooser
from camcli.engine.tuning import compile_backbone, looking_inside, replicas, tune, warm_up
from camcli.errors import ConfigError, ItemError, NoGradientError
from camcli.images.decode import load_image
from camcli.images.find import Item
from camcli.images.preprocess import Preprocess
from camcli.models.loaded import LoadedModel
from camcli.models.source import load_model
from camcli.pipeline.engines import redo_size
from camcli.pipeline.faults import device_faults
from camcli.pipeline.limits import cores
from camcli.pipeline.stopwatch import Stopwatch
from camcli.results.manifest import Manifest
from camcli.results.versions import versions

PROBED = 16
_WITH_GRADIENTS = {"gradients", "pixels", "curvature"}
MOST_ENGINES = 8
GPU_ENGINES = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """Engines that are equal and may run at the same time, and what was found out on the way to them.

    batch_size: images per forward pass of each engine. devices: where the run is to be done, one process each.
    """

    engines: Sequence[Engine]
    layers: Sequence[TargetLayer]
    precision: Choice
    backend: Used
    batch_size: int
    devices: Sequence[torch.device]
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def model(self) -> LoadedModel:
        """What they explain."""
        return self.engines[0].model

    def start_clock(self) -> None:
        """From now on, each engine's steps are measured, and nothing that was before counts."""
        self.stopwatch.restart()
        for engine in self.engines:
            engine.timing = self.stopwatch.timing

    def tell_of_passes(self, passed: Callable[[], None]) -> None:
        """From now on, call `passed` after each forward pass of any engine, on that engine's thread."""
        for engine in self.engines:
            engine.passing = passed

    def settled(self, config: RunConfig) -> RunConfig:
        """`config` without a batch size or a backend left to find."""
        chosen = {"batch_size": self.batch_size, "backend": self.backend.used}
        return config.model_copy(update={"runtime": config.runtime.model_copy(update=chosen)})


def prepare(
    config: RunConfig,
    items: Sequence[Item],
    offline: bool = False,
    earlier: Manifest | None = None,
    batch_size: int | None = None,
    precision: Choice | None = None,
    together: bool = False,
) -> Prepared:
    """Ready to explain `items`; earlier: manifest of a run with the same requested config, whose choices are kept.

    batch_size: exactly so many images per forward pass, however few there are. precision: as chosen before.
    together: whether other processes prepare parts of the same run.
    Raises ConfigError, ModelError, LayerError or MethodError, and DeviceError where the device is lost or too small.
    """
    devices = devices_of(config.runtime.device)
    with device_faults(devices[0]):
        engine, layers = _engine(config, devices[0], offline)
        tune(engine)
        precision = precision or _precision(config, engine, items, earlier)
        engine.precision = precision.used
        engines = _at_once(config, devices)
        if config.runtime.backend == "compile":
            compile_backbone(engine)
        size = batch_size or _batch_size(config, engine, len(items), engines * len(devices), earlier)
        if config.runtime.backend == "compile":
            _warm_up(engine, size, precision)
        probe = cache(lambda: _some_inputs(items, engine.model.preprocess))
        choose, key = chooser(config.targets, engine.model.labels), network_key(config, engine)
        trial = Trial(len(items), probe, choose, size, engines, key, together)
        backend, precision = _backend(config, engine, precision, trial, earlier)
        if len(devices) > 1:
            engine.module.to("cpu")  # each process has an engine of its own
        return Prepared(replicas(engine, engines), layers, precision, backend, size, devices)


def _warm_up(engine: Engine, size: int, precision: Choice) -> None:
    """Compile all that the run needs."""
    warm_up(engine, size)
    if precision.guard:
        warm_up(engine.at("fp32"), redo_size(size))


def rehearse(config: RunConfig, offline: bool = False) -> None:
    """Load what a run of `config` would load; raises what it would raise before its first image."""
    device = devices_of(config.runtime.device)[0]
    with device_faults(device):
        _engine(config, device, offline)


def _engine(config: RunConfig, device: torch.device, offline: bool) -> tuple[Engine, list[TargetLayer]]:
    methods = methods_of(config.methods)
    options_of(methods, config.options)  # raises before weights are loaded
    model = _model(config, offline)
    chooser(config.targets, model.labels)  # raises before layers are searched
    layers = resolve_layers(model, config)
    engine = Engine(model, layers, methods, device, "fp32", config.options, config.smoothing)
    return factorising(engine) if config.finds_concepts else engine, layers


def _model(config: RunConfig, offline: bool) -> LoadedModel:
    """The model; says of one without gradients which methods would need none."""
    try:
        return load_model(config.model, config.input, offline)
    except NoGradientError as error:
        free = ", ".join(name for name, method in METHODS.items() if not _WITH_GRADIENTS & set(method.needs))
        raise NoGradientError(
            f"{error}, and camcli needs modules of PyTorch: give the network itself with source: python, its state "
            f"dict as model.weights, or what torch.export.save writes as source: exported. Methods that need no "
            f"gradient ({free}) need its layers or its scores as well"
        ) from None


def _precision(config: RunConfig, engine: Engine, items: Sequence[Item], earlier: Manifest | None) -> Choice:
    asked = config.runtime.precision
    if asked != "auto":
        return Choice(asked, "as asked")
    if config.finds_concepts:
        return Choice("fp32", "what all images share cannot be checked image by image")
    if earlier and (known := earlier.precision):
        return Choice(known.used, known.why, Guard(known.guard.logits, known.guard.maps) if known.guard else None)
    choose = chooser(config.targets, engine.model.labels)
    return choose_precision(engine, len(items), lambda: _some_inputs(items, engine.model.preprocess), choose)


def _backend(
    config: RunConfig, engine: Engine, precision: Choice, trial: Trial, earlier: Manifest | None
) -> tuple[Used, Choice]:
    asked = config.runtime.backend
    if asked in ("torch", "compile"):
        return Used(asked, "as asked"), precision
    with torch_threads(1):  # as in the run
        if earlier and (known := earlier.backend):
            if known.used == "openvino":
                resume_backend(engine, precision, trial)
            return Used(known.used, known.why), precision
        return choose_backend(engine, asked, precision, trial)


def network_key(config: RunConfig, engine: Engine) -> str | None:
    """What the cache knows a network by: its source, weights, layers, size and what is folded; None: by nothing."""
    model = engine.model
    if model.weights_sha256 is None:
        return None
    taps = [asdict(tap) for tap in engine.taps]
    about = config.model.model_dump(mode="json", exclude={"weights", "labels"})
    files, folded = (model.weights_sha256, model.code_sha256), not looking_inside(engine)
    return json.dumps([about, files, model.preprocess.size, taps, versions(), folded])


def _some_inputs(items: Sequence[Item], preprocess: Preprocess) -> Tensor:
    """The model's inputs, uint8 [B,H,W,3], of images from all over the run that can be read."""
    found: list[NDArray[Any]] = []
    step = max(1, len(items) // PROBED)
    for item in islice(chain.from_iterable(items[start::step] for start in range(step)), 4 * PROBED):
        if len(found) == PROBED:
            break
        try:
            found.append(load_image(item.path, preprocess, keep=0).input)
        except ItemError:
            continue  # the run itself records why
    return torch.from_numpy(np.stack(found)) if found else torch.empty(0)


def _batch_size(config: RunConfig, engine: Engine, images: int, at_once: int, earlier: Manifest | None) -> int:
    asked = config.runtime.batch_size
    if asked != "auto":
        return even_batches(images, asked, at_once)
    if earlier and earlier.batch_size and earlier.inputs.images == images:
        return earlier.batch_size
    return even_batches(images, find_batch_size(engine, images // at_once), at_once)


def _at_once(config: RunConfig, devices: Sequence[torch.device]) -> int:
    """Engines for each device.

    A CPU computes several batches on one core each with less waiting than one on all. A GPU computes the next batch
    while the results of the last one are read.
    """
    if devices[0].type == "cpu" and config.runtime.backend != "compile":
        return max(1, min(cores(config) // len(devices), MOST_ENGINES))
    return GPU_ENGINES if devices[0].type == "cuda" else 1


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, each engine computes on `count` threads of torch's own."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def candidates(config: RunConfig, offline: bool = False) -> list[Candidate]:
    """The layers of the model of `config` that maps can be read from."""
    with device_faults(torch.device("cpu")):
        model = load_model(config.model, config.input, offline)
        with model.in_colour() as module:
            return list_candidates(module, model.preprocess.size)


def resolve_layers(model: LoadedModel, config: RunConfig) -> list[TargetLayer]:
    """The target layers that a config names, from the cache where they were found before; raises LayerError."""
    size = model.preprocess.size
    asked = [config.model.model_dump(exclude={"weights", "labels"}), model.weights_sha256, model.code_sha256, size]
    paths = [None if path == "auto" else path for path in config.layer]
    with model.in_colour() as module:
        return [resolve_cached(json.dumps([*asked, versions(), path]), module, size, path) for path in paths]


def devices_of(names: str) -> list[torch.device]:
    """The devices of `runtime.device`: one, several with commas, or `all` GPUs; raises ConfigError."""
    if names == "all":
        names = ",".join(f"cuda:{i}" for i in range(torch.cuda.device_count())) or "cuda"
    return [device(name) for name in names.split(",")]


def device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one; raises ConfigError for a device that torch does not have."""
    found = _found(name)
    if found.type == "cuda":
        # Convolutions round their inputs to 10 bits (TF32) unless told otherwise, and fp32 is to be fp32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return found


def _found(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"runtime.device: {name!r} is not available here: {reason}") from None
