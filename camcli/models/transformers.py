"""Image classifiers of Hugging Face's transformers: by a name of the hub, or as a folder that was saved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from camcli.config.model import ModelConfig
from camcli.config.schema import Crop, Interpolation
from camcli.errors import ConfigError, short
from camcli.images.preprocess import Preprocess
from camcli.models import hub
from camcli.models.checkpoint import Checkpoint, read_checkpoint
from camcli.models.fit import Built, build_with, fitted, head_rows, shapes_of
from camcli.models.labels import ordered
from camcli.models.loaded import Entry
from camcli.models.output import pick

_INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_SQUASHED_FROM = 384
"""ConvNeXts cut nothing away from this size on."""
_FOREIGN_CODE = ("trust_remote_code", "code_revision")
"""Arguments that have the library run Python from a folder or from the hub."""
_NO_CODE = (
    "camcli runs no Python that comes with a model of transformers; write a function that loads it, for source: "
    "python, which asks for --allow-code"
)
_UNKNOWN_PREPROCESSING = (
    f"no {hub.PROCESSOR} says how images are prepared; mean and std are ImageNet's where input does not say them"
)


def names() -> list[str]:
    """None: there are as many as the hub and the disk hold."""
    return []


def entry(name: str, count_parameters: bool) -> Entry:
    """Nothing is known before the folder is there."""
    return Entry("transformers", name, True, False, (224, 224), None)


def check(config: ModelConfig) -> None:
    """Raises ConfigError where the library or a folder is missing, or where code would be fetched or run."""
    _library()
    if named := [name for name in _FOREIGN_CODE if name in config.kwargs]:
        raise ConfigError(f"model.kwargs.{named[0]}: {_NO_CODE}")
    if "/" in str(config.kwargs.get("attn_implementation", "")):  # a compiled kernel of the hub
        raise ConfigError(f"model.kwargs.attn_implementation: {_NO_CODE}")
    _local(config)


def pretrained_file(config: ModelConfig) -> Path:
    """The weights in the folder, which is downloaded when it must be and may be."""
    check(config)
    return hub.weights_of(_folder(config, with_weights=True))


def build(config: ModelConfig, file: Path | None) -> Built:
    """The module with the weights of `file`, or random ones; it returns plain logits."""
    check(config)
    folder = _folder(config)
    if _local(config) is None and not (folder / hub.PROCESSOR).is_file():
        hub.complete(config.name, hub.PROCESSOR)
    if file is None:
        built = Built(_make(config, folder, config.num_classes))
    else:
        built = _with_weights(config, folder, read_checkpoint(file, config.checkpoint_key))
    settings = hub.settings_in(folder, hub.PROCESSOR)
    if settings.get("do_flip_channel_order"):
        built.module.register_forward_pre_hook(_flipped)
    pick(built.module, "logits")
    return built if settings else replace(built, notes=(*built.notes, f"{config.name}: {_UNKNOWN_PREPROCESSING}"))


def _with_weights(config: ModelConfig, folder: Path, checkpoint: Checkpoint) -> Built:
    """Under the names that the library gives them in files, which it translates itself, or those of its modules."""
    plain = _make(config, folder, config.num_classes)
    fit = fitted(checkpoint, plain.state_dict())
    rows = head_rows(fit.tensors, shapes_of(plain)) if config.num_classes is None else None
    settings = _config(config, folder, config.num_classes or rows)
    with _quiet():
        module, found = type(plain).from_pretrained(  # type: ignore[attr-defined]
            None, config=settings, state_dict=dict(fit.tensors), output_loading_info=True, ignore_mismatched_sizes=True
        )
    if not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return Built(module, checkpoint.labels, fit.notes(checkpoint.path))
    called = f"transformers' {config.name}"
    return build_with(lambda n: _make(config, folder, n), checkpoint, config.num_classes, called)


def _make(config: ModelConfig, folder: Path, classes: int | None) -> nn.Module:
    settings, auto = _config(config, folder, classes), _library().AutoModelForImageClassification
    with _quiet(), _without_code(folder):
        module: nn.Module = auto.from_config(settings, trust_remote_code=False)
    return module


def _config(config: ModelConfig, folder: Path, classes: int | None) -> Any:
    """The library's own; raises ConfigError for a folder of another kind."""
    head = {} if classes is None else {"num_labels": classes}
    told = {"local_files_only": True, "trust_remote_code": False, **head, **config.kwargs}
    try:
        with _quiet(), _without_code(folder):
            return _library().AutoConfig.from_pretrained(folder, **told)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: {short(error)}") from None


@contextmanager
def _without_code(folder: Path) -> Iterator[None]:
    """Inside, a network that only code in its folder can build is a ConfigError."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ConfigError(f"{folder}: its network is built by code beside it: {_NO_CODE}") from None


def _flipped(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Blue, green and red for networks that were trained on them in this order."""
    return (args[0].flip(1), *args[1:])


def labels(config: ModelConfig, module: nn.Module | None) -> tuple[str, ...] | None:
    """The `id2label` of the folder's config, if it names its classes."""
    told = hub.settings_in(_folder(config), hub.CONFIG).get("id2label")
    found = ordered(told) if told else None
    return None if found and all(name == f"LABEL_{i}" for i, name in enumerate(found)) else found


def preprocess(config: ModelConfig, module: nn.Module) -> Preprocess | Mapping[str, Any] | None:
    """As the folder's image processor does it; without one, the size that the network was built for."""
    settings = hub.settings_in(_folder(config), hub.PROCESSOR)
    if settings:
        return preprocess_of(settings)
    side = getattr(getattr(module, "config", None), "image_size", None)
    return {"size": side} if side else None


def preprocess_of(settings: Mapping[str, Any]) -> Preprocess:
    """What the words of a preprocessor_config.json mean; raises ConfigError for some that have no size."""
    size, cut = _sides(settings.get("size")), _sides(settings.get("crop_size"))
    if size is None:
        raise ConfigError("preprocessor_config.json: has no size; set input.size, mean, std, interpolation and crop")
    crop: Crop = "center" if _is_shortest(settings.get("size")) else "squash"
    if settings.get("do_center_crop", False) and cut:
        window, resize = cut, size
    elif crop == "center" and "crop_pct" in settings and size[0] < _SQUASHED_FROM:
        margin = int(size[0] / settings["crop_pct"])
        window, resize = size, (margin, margin)
    else:
        window, resize, crop = size, size, "squash"
    interpolation = _INTERPOLATIONS.get(settings.get("resample", 2), "bilinear")
    return Preprocess(window, resize, *_scaling(settings), interpolation, crop)


def _scaling(settings: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation on a 0..1 scale, whatever the pixels are multiplied by."""
    factor = 255 * float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 255.0
    normal = settings.get("do_normalize", "image_mean" in settings)
    mean = settings.get("image_mean") if normal else None
    std = settings.get("image_std") if normal else None
    offset = 1.0 if settings.get("rescale_offset") else 0.0
    means = tuple((m + offset) / factor for m in mean or (0.0, 0.0, 0.0))
    again = bool(settings.get("include_top"))  # EfficientNets divide by the deviation twice
    stds = tuple((s * s if again else s) / factor for s in std or (1.0, 1.0, 1.0))
    return means, stds  # type: ignore[return-value]


def _sides(value: object) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and {"height", "width"} <= value.keys():
        return int(value["height"]), int(value["width"])
    return (int(value["shortest_edge"]),) * 2 if _is_shortest(value) else None  # type: ignore[index]


def _is_shortest(value: object) -> bool:
    return isinstance(value, Mapping) and "shortest_edge" in value


def _local(config: ModelConfig) -> Path | None:
    """The folder that the config names, None for a name of the hub; raises ConfigError for a folder of another kind."""
    named = config.path or config.name
    if not config.path and not os.path.isdir(os.path.expanduser(named)):
        return None
    return hub.saved_folder(named, "save_pretrained")


def _folder(config: ModelConfig, with_weights: bool = False) -> Path:
    return _local(config) or hub.folder_of(config.name, with_weights)


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "source transformers needs a package that is not installed: python -m pip install transformers"
        ) from None
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the library draws no progress bars and says only what is an error."""
    logging: Any = _library().utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
