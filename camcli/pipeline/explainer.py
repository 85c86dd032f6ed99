"""Heatmaps for Python callers: images in, explanations out, nothing is written."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from camcli.config.file import LoadedConfig, config_of
from camcli.config.schema import OverlayConfig, RunConfig
from camcli.engine.backend import use_openvino
from camcli.engine.engine import Engine
from camcli.engine.layers import TargetLayer, resolve_layer
from camcli.engine.methods import methods_of
from camcli.engine.targets import chooser
from camcli.engine.tuning import compile_backbone, tune
from camcli.errors import ConfigError, ItemError, LayerError
from camcli.images import geometry
from camcli.images.decode import LoadedImage, prepare_image
from camcli.images.preprocess import Preprocess
from camcli.models.code import code_allowed
from camcli.models.loaded import LoadedModel
from camcli.models.source import load_model, model_from_module
from camcli.pipeline.prepare import device, network_key, resolve_layers
from camcli.records import Box, Heatmap, Prediction
from camcli.render.caption import captioned
from camcli.render.overlay import paint

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any]
RUNTIME = ("device", "batch_size", "precision", "backend")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a model says of one image, and where it looked.

    image: RGB, upright. seen: the part of it that the model saw, in its pixels.
    predictions: the most probable classes, most probable first.
    heatmaps: one for each target and method, `heat` being float32 [h, w] in 0..1 (signed methods: -1..1).
    """

    image: Image.Image
    seen: Box
    predictions: tuple[Prediction, ...]
    heatmaps: tuple[Heatmap, ...]
    input: NDArray[Any]

    def peak(self, index: int = 0) -> tuple[int, int] | None:
        """Pixel (x, y) of the image at the centre of the hottest location of a heatmap; None where it is empty."""
        return geometry.peak(self.heatmaps[index].heat.clip(min=0), self.seen, *self.image.size)

    def box(self, index: int = 0) -> Box | None:
        """Bounds of the region above half of a heatmap's maximum, pixels of the image; None where it is empty."""
        return geometry.hot_box(self.heatmaps[index].heat.clip(min=0), self.seen, *self.image.size)

    def overlay(self, index: int = 0, **look: Any) -> Image.Image:
        """The image with a heatmap on it; `look` are fields of `overlay` in a config, such as alpha=0.7."""
        heatmap, config = self.heatmaps[index], OverlayConfig.model_validate(look)
        image = LoadedImage(self.image, self.image.size, self.input, self.seen)
        painted = paint(image, heatmap.heat, config, heatmap.signed)
        return captioned(painted, heatmap, config) if config.caption else painted

    def _repr_png_(self) -> bytes:
        """What a notebook shows: all heatmaps beside each other."""
        shown = [self.overlay(index) for index in range(len(self.heatmaps))] or [self.image]
        sheet = Image.new("RGB", (sum(image.width for image in shown), shown[0].height))
        for index, image in enumerate(shown):
            sheet.paste(image, (index * image.width, 0))
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        return buffer.getvalue()


class Explainer:
    """One model, ready to explain any number of images.

    model: a name such as `timm/resnet50`, a config, or any nn.Module that maps float32 [B,3,H,W] to logits [B,K];
        the module is neither changed nor moved.
    layer: `auto`, a path, or the module itself, such as `model.layer4[-1]`.
    preprocess: how an image becomes the input of a module of one's own: a Preprocess, or a mapping with `size` and, if
        they differ from ImageNet's, `mean`, `std`, `interpolation`, `crop`; a module of timm brings its own.
    labels: a name for each class of a module of one's own.
    allow_code: whether a config may run the Python function that it names (`source: python`).
    settings: fields of a config, such as methods=["gradcam", "layercam"], targets={"top": 3}, device="cuda:0".

    Raises ConfigError, ModelError, LayerError or MethodError.

    >>> explainer = Explainer("demo", targets=["star"])
    >>> [found] = explainer(["sample_images/shapes/12-star.png"])
    >>> found.predictions[0].label
    'star'
    """

    def __init__(
        self,
        model: str | RunConfig | LoadedConfig | nn.Module = "demo",
        *,
        layer: str | Sequence[str] | nn.Module = "auto",
        preprocess: Preprocess | Mapping[str, Any] | None = None,
        labels: Sequence[str] | None = None,
        offline: bool = False,
        allow_code: bool = False,
        **settings: Any,
    ) -> None:
        path = _path_of(layer, model) if isinstance(layer, nn.Module) else layer
        self.config = _config(model, path, settings)
        self._device = device(self.config.runtime.device)
        if isinstance(model, nn.Module):
            loaded = model_from_module(_shared_copy(model, self._device), preprocess, labels)
        else:
            with code_allowed(allow_code):
                loaded = load_model(self.config.model, self.config.input, offline)
        self.engine = self._engine(loaded)
        self.labels = loaded.labels
        self._choose = chooser(self.config.targets, loaded.labels)

    def _engine(self, model: LoadedModel) -> Engine:
        config = self.config
        methods = methods_of(config.methods)
        precision = "fp32" if config.runtime.precision == "auto" else config.runtime.precision
        layers = _layers(model, config)
        engine = Engine(model, layers, methods, self._device, precision, config.options, config.smoothing)
        tune(engine)
        if config.runtime.backend == "compile":
            compile_backbone(engine)
        if config.runtime.backend == "openvino":
            choose, key = chooser(config.targets, model.labels), network_key(config, engine)
            use_openvino(engine, choose, self._size, key)
        return engine

    @property
    def _size(self) -> int:
        asked = self.config.runtime.batch_size
        return 16 if asked == "auto" else asked

    def __call__(self, images: ImageLike | Iterable[ImageLike], progress: bool = False) -> list[Explanation]:
        """Explain images: paths, PIL images, or uint8 arrays [H,W,3] or [H,W]; raises ItemError for one that fails.

        progress: show a bar, in a terminal or a notebook.
        """
        listed = [images] if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)) else list(images)
        with tqdm(total=len(listed), unit="image", disable=not progress) as bar:
            found: list[Explanation] = []
            for batch in self._batches(listed):
                found += self._explained(batch)
                bar.update(len(batch))
        return found

    def _batches(self, images: Sequence[ImageLike]) -> Iterator[list[LoadedImage]]:
        for start in range(0, len(images), self._size):
            yield [_load(image, self.engine.model.preprocess) for image in images[start : start + self._size]]

    def _explained(self, images: Sequence[LoadedImage]) -> Iterator[Explanation]:
        inputs = torch.from_numpy(np.stack([image.input for image in images]))
        for image, answer in zip(images, self.engine.explain(inputs, self._choose), strict=True):
            if isinstance(answer, ItemError):
                raise answer
            assert image.image is not None, "loaded whole"
            yield Explanation(image.image, image.seen, answer.predictions, answer.heatmaps, image.input)


def explain(
    images: ImageLike | Iterable[ImageLike],
    model: str | RunConfig | LoadedConfig | nn.Module = "demo",
    *,
    progress: bool = False,
    **settings: Any,
) -> list[Explanation]:
    """Explain images with a model; an Explainer for many calls spares loading the model again.

    images: as `Explainer.__call__` takes them; model, settings: as `Explainer` takes them.

    >>> [found] = explain(["sample_images/shapes/12-star.png"], targets=["star"])
    >>> found.heatmaps[0].heat.shape
    (16, 16)
    """
    return Explainer(model, **settings)(images, progress)


def _config(
    model: str | RunConfig | LoadedConfig | nn.Module, layer: str | Sequence[str], settings: Mapping[str, Any]
) -> RunConfig:
    """The settings as a config; raises ConfigError."""
    if isinstance(model, LoadedConfig):
        return _config(model.config, layer, settings)
    if not isinstance(model, (str, RunConfig, nn.Module)):
        raise ConfigError(f"model: {type(model).__name__} is neither a name nor a config nor a torch.nn.Module")
    values = dict(settings)
    runtime = {name: values.pop(name) for name in RUNTIME if name in values}
    if runtime:
        values["runtime"] = {**values.get("runtime", {}), **runtime}
    if isinstance(model, RunConfig):
        values = {**model.model_dump(), **values}
    elif isinstance(model, str):
        values["model"] = model
    if layer != "auto" or not isinstance(model, RunConfig):
        values["layer"] = layer
    return config_of(values)


def _path_of(layer: nn.Module, model: object) -> str:
    """Where `layer` is in `model`; raises LayerError."""
    for path, child in model.named_modules() if isinstance(model, nn.Module) else ():
        if child is layer:
            return str(path)
    raise LayerError("the layer is no module of the model: give model.layer4[-1], say, or its path as text")


def _shared_copy(module: nn.Module, target: torch.device) -> nn.Module:
    """A frozen copy in evaluation mode that shares the weights where they are on the device already."""
    tensors: Iterable[torch.Tensor] = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {}
    for tensor in tensors:
        moved = tensor.detach().to(target)
        memo[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(module, memo).eval()


def _layers(model: LoadedModel, config: RunConfig) -> list[TargetLayer]:
    if model.source != "module":
        return resolve_layers(model, config)
    paths = [None if path == "auto" else path for path in config.layer]
    with model.in_colour() as module:
        return [resolve_layer(module, model.preprocess.size, path) for path in paths]


def _load(image: ImageLike, preprocess: Preprocess) -> LoadedImage:
    """Raises ItemError for what is no image, and ConfigError for arrays of another shape."""
    if isinstance(image, np.ndarray):
        deep = image.dtype == np.uint16 and image.ndim == 2
        if not deep and (image.dtype != np.uint8 or image.ndim not in (2, 3)):
            raise ConfigError(
                f"an array of {image.dtype} {list(image.shape)}: give uint8 [H,W,3] or [H,W], or uint16 [H,W]"
            )
        image = Image.fromarray(image)
    return prepare_image(image if isinstance(image, Image.Image) else Path(image), preprocess)
