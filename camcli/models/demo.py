"""The embedded classifier of generated shapes: no download, multi-label."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from camcli import demo
from camcli.config.schema import ModelConfig
from camcli.images.decode import Preprocess
from camcli.models import weights
from camcli.models.loaded import Entry


def names() -> list[str]:
    """There is one."""
    return ["demo"]


def entry(name: str, count_parameters: bool) -> Entry:
    """It is always here."""
    parameters = sum(t.numel() for t in weights.read_state_dict(demo.WEIGHTS).values())
    return Entry("demo", name, True, True, (demo.SIZE, demo.SIZE), parameters)


def check(config: ModelConfig) -> None:
    """It is always here."""


def pretrained_file(config: ModelConfig, offline: bool) -> Path:
    """The weights in the package."""
    return demo.WEIGHTS


def build(config: ModelConfig, file: Path | None) -> nn.Module:
    """The module with the weights of `file`, or random ones."""
    import timm

    module: nn.Module = timm.create_model(demo.ARCH, num_classes=len(demo.LABELS), **demo.KWARGS)
    if file:
        weights.load(module, file, "the demo model")
    return module


def preprocess(config: ModelConfig, module: nn.Module) -> Preprocess:
    """As in training."""
    size = (demo.SIZE, demo.SIZE)
    return Preprocess(size, size, demo.MEAN, demo.STD, "bilinear", "center")


def labels(config: ModelConfig, module: nn.Module) -> tuple[str, ...] | None:
    """The names of the shapes."""
    return demo.LABELS
