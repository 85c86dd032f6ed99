"""Classifiers of timm: `resnet50` with its default weights, or `resnet50.a1_in1k` with those of a tag.

Also what timm has saved itself: `local-dir:FOLDER`, or `hf-hub:user/model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.layers import to_2tuple
from torch import nn

from camcli.config.model import ModelConfig
from camcli.config.schema import Crop, InputConfig
from camcli.errors import CamcliError, ConfigError, ModelError, short
from camcli.images.preprocess import Preprocess
from camcli.models import hub, weights
from camcli.models.checkpoint import Checkpoint, read_checkpoint
from camcli.models.classes import descriptions
from camcli.models.fit import CHECK, Built, build_with, fitted, head_rows, shapes_of, unfit
from camcli.models.labels import labels_in, ordered
from camcli.models.loaded import Entry
from camcli.models.names import unknown

_SAVED = ("local-dir:", "hf-hub:", "hf_hub:")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_CROPS: dict[str, Crop] = {"center": "center", "squash": "squash", "border": "pad"}


def names() -> list[str]:
    """All architectures."""
    return list(timm.list_models())


def entry(name: str, count_parameters: bool) -> Entry:
    """What timm says of the default weights; parameters are counted on a module without storage."""
    cfg = _pretrained_cfg(name)
    if cfg is None:
        return Entry("timm", name, False, False, (224, 224), _parameters(name) if count_parameters else None)
    _, height, width = cfg.input_size
    pretrained = bool(cfg.hf_hub_id or cfg.url)
    cached = pretrained and _cached(cfg) is not None
    parameters = _parameters(name) if count_parameters else None
    return Entry("timm", name, pretrained, cached, (height, width), parameters, _tags().get(name, ()))


@cache
def _tags() -> dict[str, tuple[str, ...]]:
    """The names of published weights, by architecture."""
    found: dict[str, tuple[str, ...]] = {}
    for name in timm.list_pretrained():
        arch, _, tag = name.partition(".")
        found[arch] = (*found.get(arch, ()), *filter(None, [tag]))
    return found


def _parameters(name: str) -> int | None:
    """None where the libraries at hand cannot build the module without storage."""
    try:
        with torch.device("meta"):
            return sum(int(p.numel()) for p in timm.create_model(name).parameters())
    except (NotImplementedError, RuntimeError):
        return None


def _cached(cfg: Any) -> Path | None:
    """The file of the weights that `cfg` describes, if it is on this machine."""
    if cfg.hf_hub_id:
        return hub.cached(cfg.hf_hub_id, _hub_files(cfg))
    file = weights.hub_file(cfg.url)
    return file if file.exists() else None


def _hub_files(cfg: Any) -> tuple[str, ...]:
    return (cfg.hf_hub_filename,) if cfg.hf_hub_filename else _HUB_FILES


def check(config: ModelConfig) -> None:
    """Raises ConfigError for an unknown architecture or tag, ModelError where no weights are published."""
    if _is_saved(config):
        return
    cfg = _pretrained_cfg(config.name)
    if config.weights != "pretrained":
        return
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise ModelError(f"timm has no weights for {config.name}; set model.weights to a file or none")
    if config.num_classes not in (None, cfg.num_classes):
        raise ConfigError(
            f"model.num_classes is {config.num_classes}, but the weights of {config.name} know {cfg.num_classes} "
            "classes: leave it out, or give your own weights file"
        )


def pretrained_file(config: ModelConfig) -> Path:
    """The file of the published weights, downloaded when it must be and may be."""
    if _is_saved(config):
        return hub.weights_of(_folder(config, with_weights=True))
    check(config)
    cfg = _pretrained_cfg(config.name)
    if not cfg.hf_hub_id:
        return weights.cached_or_fetched(cfg.url)
    return _cached(cfg) or hub.fetched(cfg.hf_hub_id, _hub_files(cfg))


def build(config: ModelConfig, file: Path | None) -> Built:
    """The module with the weights of `file`, or random ones."""
    check(config)
    if file is None:
        return Built(_make(config, config.num_classes))
    if file.suffix == ".npz":
        weights.recognise(file)
        return Built(_by_timm(config, file, {"file": str(file), "custom_load": True}))
    checkpoint = read_checkpoint(file, config.checkpoint_key)
    if config.weights == "pretrained" and not _is_saved(config):
        return Built(_by_timm(config, file, {"state_dict": dict(checkpoint.tensors)}))
    try:
        return build_with(partial(_make, config), checkpoint, config.num_classes, f"timm's {config.name}")
    except ModelError as error:
        if (converted := _converted(config, checkpoint)) is None:
            raise error from None
        return converted


def _make(config: ModelConfig, classes: int | None) -> nn.Module:
    """With random weights, the same ones each time that a seed is set."""
    torch.manual_seed(torch.initial_seed())
    head = {} if classes is None else {"num_classes": classes}
    module: nn.Module = timm.create_model(_called(config), **head, **config.kwargs)
    return module


def _converted(config: ModelConfig, checkpoint: Checkpoint) -> Built | None:
    """With what timm makes of a file of another library or another input size; None where that does not fit either."""
    plain = _make(config, config.num_classes)
    fit = fitted(checkpoint, plain.state_dict())
    if config.num_classes is None and (rows := head_rows(fit.tensors, shapes_of(plain))):
        config = config.model_copy(update={"num_classes": rows})
        plain = _make(config, rows)
    try:
        module = _by_timm(config, checkpoint.path, {"state_dict": dict(fit.tensors)})
    except ModelError:
        return None
    if _untouched(fit.tensors, plain, module):
        return None
    return Built(module, checkpoint.labels, fit.notes(checkpoint.path))


def _by_timm(config: ModelConfig, file: Path, given: dict[str, Any]) -> nn.Module:
    """The module with what timm makes of weights, which it takes from nowhere else."""
    overlay: dict[str, Any] = {"url": None, "hf_hub_id": None, "source": "", **given}
    if config.weights != "pretrained" or _is_saved(config):
        # timm drops the head of a file whose class count differs from that of the published weights.
        overlay.update(num_classes=_make(config, config.num_classes).num_classes, label_offset=0)
    head = {} if config.num_classes is None else {"num_classes": config.num_classes}
    kwargs = {**head, **config.kwargs}
    torch.manual_seed(torch.initial_seed())
    try:
        module: nn.Module = timm.create_model(
            _called(config), pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
        )
    except CamcliError:
        raise
    except Exception as error:  # timm's converters of checkpoints raise many kinds on foreign ones
        if config.weights == "pretrained" and isinstance(error, TypeError):
            raise  # about model.kwargs
        raise unfit(file, f"timm's {config.name}", f"{short(error)}; {CHECK}") from None
    getattr(module, "pretrained_cfg", {}).pop("state_dict", None)
    return module


def _untouched(given: Mapping[str, torch.Tensor], plain: nn.Module, module: nn.Module) -> bool:
    """Some of timm's models pass over what a file lacks: it has no name there and is as random as in `plain`."""
    before = dict(plain.named_parameters())
    for name, after in module.named_parameters():
        untouched = name not in given and torch.equal(after, before[name])
        if untouched and bool((after != after.flatten()[0]).any()):
            return True
    return False


def preprocess(config: ModelConfig, module: nn.Module) -> Preprocess:
    """As timm's data config of the weights says."""
    data = resolve_data_config(model=module)
    height, width = to_2tuple(config.kwargs.get("img_size", data["input_size"][1:]))
    margin = data["crop_pct"]
    interpolation = data["interpolation"]
    return Preprocess(
        (height, width),
        (int(height / margin), int(width / margin)),
        tuple(data["mean"]),
        tuple(data["std"]),
        "bilinear" if interpolation == "random" else interpolation,
        _CROPS[data["crop_mode"]],
    ).override(InputConfig(channels=1 if config.kwargs.get("in_chans") == 1 else 3))


def labels(config: ModelConfig, module: nn.Module | None) -> tuple[str, ...] | None:
    """Those of a saved model, or the ImageNet labels that fit the head; None for another head."""
    if own := _own_labels(config):
        return own
    subset = infer_imagenet_subset(module or _head(config))
    return None if subset is None else descriptions(ImageNetInfo(subset))


def _head(config: ModelConfig) -> dict[str, Any]:
    """What tells the labels where there is no module."""
    if config.num_classes or "num_classes" in config.kwargs:
        return {"num_classes": config.kwargs.get("num_classes", config.num_classes)}
    if _is_saved(config):
        return {"num_classes": _told(config).get("num_classes")}
    cfg = _pretrained_cfg(config.name)
    return {"num_classes": cfg.num_classes if cfg else None}


def _is_saved(config: ModelConfig) -> bool:
    """Whether the model is a folder that timm has saved, here or on the hub."""
    return config.path is not None or config.name.startswith(_SAVED)


def _folder(config: ModelConfig, with_weights: bool) -> Path:
    """Where a saved model is; raises ConfigError or ModelError where it is not."""
    kind, _, place = ("local-dir", "", config.path) if config.path else config.name.partition(":")
    if kind == "local-dir":
        return hub.saved_folder(place, "timm.models.save_for_hf")
    return hub.folder_of(place, with_weights)


def _called(config: ModelConfig) -> str:
    """As timm builds it, from the disk alone."""
    return f"local-dir:{_folder(config, with_weights=False)}" if _is_saved(config) else config.name


def _own_labels(config: ModelConfig) -> tuple[str, ...] | None:
    """The `label_names` in the folder of a saved model."""
    told = _told(config) if _is_saved(config) else {}
    return ordered(told.get("label_names")) or labels_in(told)


def _told(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a saved model."""
    return hub.settings_in(_folder(config, with_weights=False), hub.CONFIG)


def _pretrained_cfg(name: str) -> Any:
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        raise unknown("timm", arch)
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = timm.list_pretrained(f"{arch}.*")
        raise ConfigError(f"timm's {arch} has no weights {tag!r} (known: {', '.join(known)})") from None
