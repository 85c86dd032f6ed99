"""Programs that torch.export has saved (.pt2): their modules are found again, so gradients and layers are there.

What has no gradient or no modules to look into is refused: ONNX graphs and TorchScript.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camcli.config.model import ModelConfig
from camcli.errors import ConfigError, ModelError, NoGradientError, short
from camcli.models.code import require_permission
from camcli.models.fit import Built
from camcli.models.loaded import Entry
from camcli.models.weights import refuse_onnx

_DYNAMIC = "torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim('batch')},))"


def names() -> list[str]:
    """None: files are no names."""
    return []


def entry(name: str, count_parameters: bool) -> Entry:
    """Nothing is known before the file is read."""
    return Entry("exported", name, False, False, (224, 224), None)


def check(config: ModelConfig) -> None:
    """Raises ConfigError or ModelError for what is no such file, as far as its first bytes tell."""
    file = _file(config)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; model.path is a file that torch.export.save has written")
    if config.weights not in ("pretrained", str(file)) or config.num_classes or config.kwargs:
        raise ConfigError(f"{file}: an exported program holds its weights: leave out weights, num_classes and kwargs")
    refuse_onnx(file)
    entries = _entries(file)
    if any("/code/" in f"/{name}" for name in entries) and any(name.endswith("constants.pkl") for name in entries):
        raise NoGradientError(f"{file}: a TorchScript archive, whose modules run where no layer can be looked into")


def _entries(file: Path) -> list[str]:
    """What the archive holds; raises ModelError for what is none, or a damaged one."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ModelError(f"{file}: not a file that torch.export.save has written, or damaged: {short(error)}") from None


def pretrained_file(config: ModelConfig) -> Path:
    """The file itself."""
    check(config)
    return _file(config)


def build(config: ModelConfig, file: Path | None) -> Built:
    """The program as a tree of modules; raises ConfigError where it takes batches of one size alone."""
    check(config)
    file = _file(config)
    require_permission(f"{file} may hold pickled Python code")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.load(file)
            module: Any = torch.export.unflatten(program)
        except Exception as error:  # of other versions, damaged or foreign
            raise ModelError(
                f"{file}: cannot be read by torch.export ({type(error).__name__}: {short(error)})"
            ) from None
    shape = _input_shape(file, program)
    for child in module.modules():
        for node in getattr(getattr(child, "graph", None), "nodes", ()):
            node.meta.clear()  # tensors without storage, which no copy can be made of
    module.requires_grad_(False)
    module.input_shape = shape
    _refuse_frozen(file, module, shape)
    return Built(module)


def _input_shape(file: Path, program: Any) -> tuple[int, int, int]:
    """(channels, height, width); raises ConfigError where the batch, too, has a fixed size."""
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    batch, *shape = inputs[-1].meta["val"].shape
    if isinstance(batch, int):
        raise ConfigError(f"{file}: takes batches of {batch} alone; export it for any number of images: {_DYNAMIC}")
    if len(shape) != 3 or not all(isinstance(side, int) for side in shape):
        raise ConfigError(
            f"{file}: takes inputs {[str(side) for side in (batch, *shape)]}, but [batch, C, H, W] is wanted"
        )
    return shape[0], shape[1], shape[2]


def _refuse_frozen(file: Path, module: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raises NoGradientError where the output does not depend on the image as far as gradients know."""
    with torch.enable_grad():
        logits = module(torch.zeros(2, *shape, requires_grad=True).clone())
    if isinstance(logits, Tensor) and not logits.requires_grad:
        raise NoGradientError(f"{file}: a frozen graph, through which no gradient flows")


def preprocess(config: ModelConfig, module: nn.Module) -> Mapping[str, Any]:
    """The size and the channels that it was exported for."""
    channels, height, width = module.input_shape  # type: ignore[misc]
    return {"size": (height, width), "channels": channels}


def labels(config: ModelConfig, module: nn.Module | None) -> tuple[str, ...] | None:
    """None: they are in `model.labels`."""
    return None


def _file(config: ModelConfig) -> Path:
    return Path(os.path.expanduser(config.path or config.name))
