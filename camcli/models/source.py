"""Model sources: each is one module here, found by its name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import torch
from pydantic import ValidationError
from torch import nn

from camcli.config.model import ModelConfig, Source
from camcli.config.schema import InputConfig
from camcli.errors import CamcliError, ConfigError, ModelError, short
from camcli.images.preprocess import Preprocess
from camcli.models.fit import Built
from camcli.models.labels import given_labels
from camcli.models.loaded import Entry, LoadedModel
from camcli.models.offline import no_network
from camcli.models.output import described, pick
from camcli.models.weights import recognise, refuse_onnx, sha256
from camcli.registry import did_you_mean

SOURCES = get_args(Source)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ModelSource(Protocol):
    """What a module in this package offers."""

    def names(self) -> list[str]:
        """All architectures."""

    def entry(self, name: str, count_parameters: bool) -> Entry:
        """What is known of one model; raises ConfigError for an unknown name."""

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError or ModelError where no such model, or none with such weights, is known."""

    def pretrained_file(self, config: ModelConfig) -> Path | None:
        """The file of the published weights, None where `build` has them; raises ModelError when it cannot be had."""

    def build(self, config: ModelConfig, file: Path | None) -> Built:
        """The module with the weights of `file` (None: random); raises ConfigError or ModelError."""

    def preprocess(self, config: ModelConfig, module: nn.Module) -> Preprocess | Mapping[str, Any] | None:
        """What the weights were trained with, whole or as fields of `input`; None where that is not known."""

    def labels(self, config: ModelConfig, module: nn.Module | None) -> tuple[str, ...] | None:
        """The model's own labels, if it has any; without a module, None too where only that would tell."""


def list_models(pattern: str | None) -> list[Entry]:
    """The models whose `source/name` or name fits the glob `pattern`, or has it in it where it is no glob.

    Parameters are counted only for a pattern. Raises ConfigError where no model fits.
    """
    known = [(source, name) for source in SOURCES for name in model_source(source).names()]
    exact = not pattern or set("*?[") & set(pattern) or tuple(pattern.split("/")) in known
    glob = (pattern or "*") if exact else f"*{pattern}*"
    found = [(source, name) for source, name in known if fnmatch(name, glob) or fnmatch(f"{source}/{name}", glob)]
    if not found:
        near = did_you_mean(str(pattern), {name for _, name in known})
        raise ConfigError(f"no model fits {pattern!r}{near or '; `camcli models` lists all'}")
    return [model_source(source).entry(name, pattern is not None) for source, name in found]


def fetch(model: str, offline: bool = False) -> Path:
    """The file of the published weights of `model` (`timm/resnet50.a1_in1k`), downloaded if need be."""
    source, _, name = model.partition("/")
    if source not in SOURCES or not name:
        raise ConfigError(f"{model}: write it as source/name, such as timm/resnet50 (sources: {', '.join(SOURCES)})")
    config = ModelConfig.model_validate(model)
    with no_network(offline):
        file = model_source(config.source).pretrained_file(config)
    if file is None:
        raise ConfigError(f"{model}: has no published weights")
    return file


def labels_of(config: ModelConfig, offline: bool = False) -> tuple[str, ...]:
    """The labels of a model, which is built without published weights where nothing else tells them."""
    with no_network(offline):
        return _labels_of(config)


def _labels_of(config: ModelConfig) -> tuple[str, ...]:
    if config.labels:
        return given_labels(config.labels)
    if config.source in ("python", "exported") or config.weights not in ("pretrained", "none"):
        return load_model(config, InputConfig()).labels
    source, bare = model_source(config.source), config.model_copy(update={"weights": "none"})
    source.check(bare)
    own = source.labels(bare, None) or ()
    return own if own and config.num_classes in (None, len(own)) else load_model(bare, InputConfig()).labels


def model_source(name: str) -> ModelSource:
    """The source called `name`; imports its library."""
    return cast(ModelSource, importlib.import_module(f"camcli.models.{name}"))


def load_model(config: ModelConfig, inputs: InputConfig, offline: bool = False) -> LoadedModel:
    """The classifier of `config`, in eval mode and frozen, and how images become its input.

    Random weights are the same ones each time, so that a run can be resumed.
    Raises ConfigError for what the user can set right and ModelError for weights that cannot be had.
    """
    with no_network(offline):
        return _loaded(model_source(config.source), config, inputs)


def _loaded(source: ModelSource, config: ModelConfig, inputs: InputConfig) -> LoadedModel:
    file = _weights_file(source, config)
    _check_hash(config, file)
    built = _built(source, config, file)
    module = built.module.eval().requires_grad_(False)
    if config.output is not None:
        module = pick(module, config.output)
    preprocess = _preprocess(source.preprocess(config, module), inputs, module, config.name)
    classes = _class_count(module, config.name, preprocess)
    default: Literal["softmax", "sigmoid"] = "sigmoid" if config.source == "demo" else "softmax"
    return LoadedModel(
        module,
        config.source,
        config.name,
        _labels(source, config, built, classes),
        config.activation or default,
        preprocess,
        str(file or built.code or "none"),
        sha256(file) if file else built.weights_sha256,
        _notes(config, built, classes),
        str(built.code) if built.code else None,
        built.code_sha256,
    )


def model_from_module(
    module: nn.Module, preprocess: Preprocess | Mapping[str, Any] | None, labels: Sequence[str] | None
) -> LoadedModel:
    """A frozen classifier of one's own; raises ConfigError where its input or its labels are not known."""
    name = type(module).__name__
    wanted = _preprocess(preprocess, InputConfig(), module, name)
    classes = _class_count(module, name, wanted)
    named = tuple(labels) if labels is not None else tuple(f"class_{i}" for i in range(classes))
    if len(named) != classes:
        raise ConfigError(f"{len(named)} labels for {classes} classes: give one for each")
    return LoadedModel(module, "module", name, named, "softmax", wanted, "as given", None)


def _preprocess(
    known: Preprocess | Mapping[str, Any] | None, inputs: InputConfig, module: nn.Module, name: str
) -> Preprocess:
    """What the user says in `inputs` and then in `known`, on top of what timm says of its own modules or is usual."""
    if isinstance(known, Preprocess):
        return known.override(inputs)
    try:
        told = InputConfig.model_validate({**(known or {}), **inputs.model_dump(exclude_none=True)})
    except ValidationError as error:
        raise ConfigError(f"preprocess: {error.errors()[0]['msg']} (known: size, mean, std, …)") from None
    if hasattr(module, "pretrained_cfg"):
        usual = model_source("timm").preprocess(ModelConfig(source="timm", name=name), module)
        assert isinstance(usual, Preprocess), "timm always knows"
        return usual.override(told)
    if told.size is None:
        raise ConfigError(
            f"{name}: set input.size (from Python: preprocess={{'size': 224}}), with mean and std if they are not "
            "ImageNet's"
        )
    return Preprocess(told.size, told.size, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "center").override(told)


def _built(source: ModelSource, config: ModelConfig, file: Path | None) -> Built:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return source.build(config, file)
        except CamcliError:
            raise
        except Exception as error:  # constructors raise many kinds for what they are not made for
            raise ConfigError(
                f"{config.source}/{config.name} cannot be built ({type(error).__name__}: {short(error)}); "
                "check model.kwargs and model.num_classes"
            ) from None


def _check_hash(config: ModelConfig, file: Path | None) -> None:
    """Before weights are read; raises ModelError where the config names others."""
    wanted = config.weights_sha256
    if wanted is None:
        return
    digest = sha256(file) if file else None
    if digest != wanted.lower():
        raise ModelError(f"{file or 'random weights'}: has SHA-256 {digest}, but model.weights_sha256 is {wanted}")


def _device(module: nn.Module) -> torch.device:
    """Where its weights are, which is not the CPU for every module that a user hands over."""
    return next((t.device for t in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def _class_count(module: nn.Module, name: str, preprocess: Preprocess) -> int:
    """K of the logits [1,K] for one empty input; raises ConfigError when the model does not take the size."""
    try:
        with torch.inference_mode():
            logits = module(torch.zeros(1, preprocess.channels, *preprocess.size, device=_device(module)))
    except CamcliError:
        raise
    except Exception as error:  # as above
        size, channels = preprocess.size, preprocess.channels
        if "channels" in str(error):
            raise ConfigError(
                f"{name} does not take images of {channels} channels ({short(error)}); set input.channels to 1 or 3, "
                "or model.kwargs.in_chans"
            ) from None
        raise ConfigError(
            f"{name} does not take an input of {size[0]}x{size[1]} px ({short(error)}); set input.size, "
            "or the size that it is built for in model.kwargs (often img_size or image_size)"
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        hint = "" if isinstance(logits, torch.Tensor) else "; set model.output to the one that is the logits"
        raise ConfigError(
            f"{name} gives {described(logits)}, no logits of shape [batch, classes], so there is no class to "
            f"explain{hint}"
        )
    return logits.shape[1]


def _weights_file(source: ModelSource, config: ModelConfig) -> Path | None:
    if config.weights == "none":
        return None
    if config.weights == "pretrained":
        return source.pretrained_file(config)
    return weights_file(config)


def weights_file(config: ModelConfig) -> Path:
    """The file that `model.weights` names; raises ModelError where it is missing or no such file."""
    file = Path(os.path.expanduser(config.weights))
    if not file.is_file():
        raise ModelError(f"{file}: no such weights file; model.weights is a file, `pretrained` or `none`")
    recognise(file)
    refuse_onnx(file)
    return file


def _labels(source: ModelSource, config: ModelConfig, built: Built, classes: int) -> tuple[str, ...]:
    """One for each class: the user's, those beside the weights, the model's own, or class_17."""
    if config.labels:
        labels = given_labels(config.labels)
        if len(labels) != classes:
            where = f"{config.labels} has" if isinstance(config.labels, str) else "there are"
            raise ConfigError(f"model.labels: {where} {len(labels)} labels, the model {classes} classes")
        return labels
    for own in (built.labels, source.labels(config, built.module)):
        if own and len(own) == classes:
            return own
    return tuple(f"class_{i}" for i in range(classes))


def _notes(config: ModelConfig, built: Built, classes: int) -> tuple[str, ...]:
    """What was unwrapped, and labels beside the weights that could not be taken."""
    if not built.labels or config.labels or len(built.labels) == classes:
        return built.notes
    return (*built.notes, f"its {len(built.labels)} labels are not taken, because the model has {classes} classes")
