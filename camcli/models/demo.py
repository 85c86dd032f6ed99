"""The embedded classifier: a small network, trained here, that names the shapes in generated scenes; no download.

Any number of shapes may be in an image: every label has its own sigmoid.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from camcli.config.model import ModelConfig
from camcli.errors import ConfigError
from camcli.images.preprocess import Preprocess
from camcli.models.checkpoint import read_checkpoint
from camcli.models.fit import Built, filled
from camcli.models.loaded import Entry

LABELS = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "heart",
    "crescent",
    "hexagon",
    "arrow",
    "semicircle",
    "bolt",
)
ARCH = "test_resnet"
KWARGS = {"output_stride": 8}
SIZE = 128
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
WEIGHTS = Path(__file__).with_name("demo.safetensors")


def names() -> list[str]:
    """The name of the only model."""
    return ["demo"]


def entry(name: str, count_parameters: bool) -> Entry:
    """What is known of it; its weights are in the package."""
    parameters = sum(t.numel() for t in read_checkpoint(WEIGHTS).tensors.values())
    return Entry("demo", name, True, True, (SIZE, SIZE), parameters)


def check(config: ModelConfig) -> None:
    """It is always here; raises ConfigError for another head or other arguments, which it does not take."""
    if config.kwargs or config.num_classes not in (None, len(LABELS)):
        raise ConfigError(f"the demo model has {len(LABELS)} classes and takes no kwargs; name a model, to have others")


def pretrained_file(config: ModelConfig) -> Path:
    """The weights in the package."""
    return WEIGHTS


def build(config: ModelConfig, file: Path | None) -> Built:
    """The module with the weights of `file`, or random ones."""
    import timm

    check(config)
    module: nn.Module = timm.create_model(ARCH, num_classes=len(LABELS), **KWARGS)
    if file is None:
        return Built(module)
    return filled(module, read_checkpoint(file, config.checkpoint_key), None, "the demo model")


def preprocess(config: ModelConfig, module: nn.Module) -> Preprocess:
    """As in training."""
    size = (SIZE, SIZE)
    return Preprocess(size, size, MEAN, STD, "bilinear", "center")


def labels(config: ModelConfig, module: nn.Module | None) -> tuple[str, ...] | None:
    """The names of the shapes."""
    return LABELS
