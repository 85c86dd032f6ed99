"""Classifiers of torchvision: `resnet50` with its best weights, or `resnet50.IMAGENET1K_V1` with older ones."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from camcli.config.model import ModelConfig
from camcli.errors import ConfigError, ModelError
from camcli.images.preprocess import Preprocess
from camcli.models import weights
from camcli.models.checkpoint import Checkpoint, read_checkpoint
from camcli.models.fit import Built, build_with
from camcli.models.loaded import Entry
from camcli.models.names import unknown
from camcli.models.source import IMAGENET_MEAN, IMAGENET_STD

_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)(?=\.)")


def names() -> list[str]:
    """All classification models."""
    return list(torchvision.models.list_models(module=torchvision.models))


def entry(name: str, count_parameters: bool) -> Entry:
    """What torchvision says of its default weights."""
    default = _entry(name)
    if default is None:
        return Entry("torchvision", name, False, False, (224, 224), None)
    side = default.transforms().crop_size[0]
    cached = weights.hub_file(default.url).exists()
    tags = tuple(known.name for known in torchvision.models.get_model_weights(name))
    return Entry("torchvision", name, True, cached, (side, side), default.meta["num_params"], tags)


def check(config: ModelConfig) -> None:
    """Raises ConfigError for an unknown architecture or tag, ModelError where no weights are published."""
    if _entry(config.name) is None and config.weights == "pretrained":
        raise ModelError(f"torchvision has no weights for {config.name}; set model.weights to a file or none")


def pretrained_file(config: ModelConfig) -> Path:
    """The file of the published weights, downloaded when it must be and may be."""
    check(config)
    entry = _entry(config.name)
    assert entry is not None, "checked"
    return weights.cached_or_fetched(entry.url)


def build(config: ModelConfig, file: Path | None) -> Built:
    """The module with the weights of `file`, or random ones."""
    check(config)
    if file is None:
        return Built(_make(config, config.num_classes))
    checkpoint = _named_as_now(read_checkpoint(file, config.checkpoint_key))
    return build_with(partial(_make, config), checkpoint, config.num_classes, f"torchvision's {config.name}")


def _make(config: ModelConfig, classes: int | None) -> nn.Module:
    arch = config.name.partition(".")[0]
    module: nn.Module = torchvision.models.get_model(arch, weights=None, **_kwargs(config, arch, classes))
    return module


def _named_as_now(checkpoint: Checkpoint) -> Checkpoint:
    """The published weights of DenseNets are older than the names of its layers (`norm.1` is `norm1`)."""
    return replace(checkpoint, tensors={_OLD_NAME.sub(r"\1\2", name): t for name, t in checkpoint.tensors.items()})


def _kwargs(config: ModelConfig, arch: str, classes: int | None) -> dict[str, Any]:
    """What torchvision itself passes when it builds an architecture for its weights, and the user's own."""
    kwargs: dict[str, Any] = {}
    entry = _entry(config.name)
    if arch in _WITH_AUXILIARY_HEADS:
        kwargs.update(transform_input=config.weights != "none", init_weights=False)
    if arch.startswith("vit_") and entry is not None:
        kwargs.update(image_size=entry.meta["min_size"][0])
    if classes is not None:
        kwargs.update(num_classes=classes)
    return {**kwargs, **config.kwargs}


def preprocess(config: ModelConfig, module: nn.Module) -> Preprocess:
    """As `weights.transforms()` says."""
    entry = _entry(config.name)
    if entry is None:
        return Preprocess((224, 224), (256, 256), IMAGENET_MEAN, IMAGENET_STD, "bilinear", "center")
    recipe = entry.transforms()
    trained, resize = recipe.crop_size[0], recipe.resize_size[0]
    side = cast(int, config.kwargs.get("image_size", trained))
    resize = round(resize * side / trained)
    return Preprocess(
        (side, side),
        (resize, resize),
        tuple(recipe.mean),
        tuple(recipe.std),
        recipe.interpolation.value,
        "center",
    )


def labels(config: ModelConfig, module: nn.Module | None) -> tuple[str, ...] | None:
    """The categories that the published weights were trained on."""
    entry = _entry(config.name)
    return tuple(entry.meta["categories"]) if entry is not None else None


def _entry(name: str) -> WeightsEnum | None:
    """The weights that `name` stands for: those of its tag, else the default ones."""
    arch, _, tag = name.partition(".")
    if arch not in names():
        raise unknown("torchvision", arch)
    known = torchvision.models.get_model_weights(arch)
    if not tag:
        return known.DEFAULT if len(known) else None
    if tag not in known.__members__:
        raise ConfigError(f"torchvision's {arch} has no weights {tag!r} (known: {', '.join(known.__members__)})")
    return known[tag]
