"""Deep feature factorisation of a folder: k concepts that all images share, each with a colour and its classes.

Three passes: the concepts from a sample of the images, the classes that each raises from a smaller one, and the
overlays of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camcli.config.schema import RunConfig
from camcli.engine.engine import Engine
from camcli.engine.methods import LayerView
from camcli.engine.methods.factors import DFF, concepts_of, weights_of
from camcli.errors import ItemError, NoInputsError
from camcli.images.decode import LoadedImage, decode, loading, shrunk
from camcli.images.find import Item
from camcli.images.libtiff import quiet_decoders
from camcli.images.memory import Budget, budget_size, cached_blocks
from camcli.models.source import load_model
from camcli.pipeline.limits import usable_memory
from camcli.pipeline.prepare import cores, device, resolve_layers
from camcli.records import Precision
from camcli.render.concepts import colours, concept_overlay
from camcli.render.overlay import encode, longest
from camcli.results.claim import CONCEPTS
from camcli.results.rundir import RunDir
from camcli.results.storage import fitted

SAMPLE = 256
BATCH = 16
EXAMINED = 32
CLASSES = 3
PAINTING_BYTES = 64  # for each pixel of an overlay, and two more for each concept
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RaisedClass:
    """A class and by how much its logit falls, on average, when the concept is taken out of the activations."""

    index: int
    label: str
    raised: float


@dataclass(frozen=True, slots=True)
class Concept:
    """colour: #rrggbb in the overlays. strongest: weight that has the full colour. classes: those that it raises."""

    index: int
    colour: str
    strongest: float
    classes: tuple[RaisedClass, ...]

    @property
    def label(self) -> str:
        """The classes in few words."""
        return ", ".join(c.label.split(",")[0] for c in self.classes) or "no class"


def factorise(config: RunConfig, items: Sequence[Item], out: Path, count: int, offline: bool = False) -> dict[str, Any]:
    """Write an overlay per image and concepts.json below `out`; returns what concepts.json says.

    Raises CamcliError when the run as a whole cannot go on; an image that fails is listed under `failures`.
    """
    with RunDir(out, kind="dff") as folder, quiet_decoders():
        factors = _Factors(config, count, offline)
        factors.learn(items)
        return factors.write(items, folder)


class _Factors:
    """The engine, and what has been learnt so far."""

    def __init__(self, config: RunConfig, count: int, offline: bool) -> None:
        self.config = config
        self.count = count
        model = load_model(config.model, config.input, offline)
        layer = resolve_layers(model, config)[:1]
        runtime = config.runtime
        memory = budget_size(runtime.memory, usable_memory())
        self.budget = Budget(memory - cached_blocks(memory))
        # Concepts of a whole folder cannot be checked image by image, so `auto` is fp32 here.
        precision: Precision = "fp32" if runtime.precision == "auto" else runtime.precision
        self.engine = Engine(model, layer, [DFF], device(runtime.device), precision, config.options)

    def learn(self, items: Sequence[Item]) -> None:
        """Find the concepts in a sample, then their classes and strengths in part of it."""
        sample = spread(items, SAMPLE)
        cells = [cells_of(self._look(images).activations) for images in self._images(sample)]
        if not cells:
            raise NoInputsError(f"none of {len(sample)} images could be read, so there is nothing to factorise")
        everything = torch.cat(cells)
        self.vectors = concepts_of(everything, self.count)
        self.strongest = weights_of(everything, self.vectors).amax(dim=0)
        raised = [self._raised(self._look(images)) for images in self._images(spread(sample, EXAMINED))]
        self.concepts = self._named(torch.cat(raised).mean(dim=0))

    def _named(self, raised: Tensor) -> list[Concept]:
        """The concepts with the classes that [k,K] `raised` says."""
        labels = self.engine.model.labels
        concepts = []
        for index, (row, colour) in enumerate(zip(raised, colours(self.count), strict=True)):
            best = [int(c) for c in row.argsort(descending=True)[:CLASSES] if row[c] > 0]
            classes = tuple(RaisedClass(c, labels[c], round(float(row[c]), 4)) for c in best)
            concepts.append(Concept(index, colour, float(self.strongest[index]), classes))
        return concepts

    def _raised(self, view: LayerView) -> Tensor:
        """[B,k,K]: logits less the logits without each concept."""
        rows = []
        for image, weights in enumerate(self._weights(view)):
            parts = torch.einsum("khw,kc->kchw", weights, self.vectors)
            rows.append(view.batch.logits[image] - view.tail(image, view.activations[image] - parts))
        return torch.stack(rows).cpu()

    def _weights(self, view: LayerView) -> Tensor:
        """[B,k,h,w]: how strong each concept is in each cell."""
        batch, _, height, width = view.activations.shape
        found = weights_of(cells_of(view.activations), self.vectors)
        return found.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def _look(self, images: Sequence[LoadedImage]) -> LayerView:
        pixels = torch.from_numpy(np.stack([image.input for image in images]))
        done = self.engine.forward(self.engine.normalise(pixels))
        _, [view, *_] = self.engine.views(done, torch.zeros_like(done.logits))
        return view

    def _images(self, items: Sequence[Item]) -> Iterator[list[LoadedImage]]:
        """Batches of the images that can be read."""
        for batch in self._loaded(items):
            images = [image for _, image in batch if isinstance(image, LoadedImage)]
            if images:
                yield images

    def _loaded(self, items: Sequence[Item]) -> Iterator[list[tuple[Item, LoadedImage | ItemError]]]:
        asked = self.config.runtime.batch_size
        size = BATCH if asked == "auto" else asked
        with ThreadPoolExecutor(cores(self.config)) as pool:
            for start in range(0, len(items), size):
                yield list(pool.map(self._load, items[start : start + size]))

    def _load(self, item: Item) -> tuple[Item, LoadedImage | ItemError]:
        """The image without its own pixels, since those of a whole batch may be too many."""
        try:
            with loading(item.path, self.engine.model.preprocess, True, self.budget) as image:
                return item, replace(image, image=None)
        except ItemError as error:
            return item, error

    def write(self, items: Sequence[Item], folder: RunDir) -> dict[str, Any]:
        """Overlays of all images, and concepts.json."""
        images: list[dict[str, Any]] = []
        failures: list[dict[str, str]] = []
        folder.write_json(CONCEPTS, self._summary(images, failures, "running"))
        for batch in self._loaded(items):
            loaded_images = [(item, image) for item, image in batch if isinstance(image, LoadedImage)]
            failures += [_failure(item, error) for item, error in batch if isinstance(error, ItemError)]
            heats = self._heats([image for _, image in loaded_images]) if loaded_images else []
            for (item, image), heat in zip(loaded_images, heats, strict=True):
                try:
                    images.append(self._paint(item, image, heat, folder))
                except ItemError as error:
                    failures.append(_failure(item, error))
        found = self._summary(images, failures, "finished")
        folder.write_json(CONCEPTS, found)
        return found

    def _heats(self, images: Sequence[LoadedImage]) -> Sequence[Any]:
        """float32 [k,h,w] in 0..1 for each image, on one scale for the folder."""
        weights = self._weights(self._look(images)) / self.strongest.clamp_min(1e-12)[:, None, None]
        return list(weights.clamp_max(1).cpu().numpy())

    def _paint(self, item: Item, image: LoadedImage, heat: Any, folder: RunDir) -> dict[str, Any]:
        look = self.config.overlay
        legend = [(concept.colour, concept.label) for concept in self.concepts]
        name = fitted(f"overlays/{item.id}.dff.{look.format}")
        folder.write(name, self._overlay(item, image, heat, legend))
        shares = [round(float(part), 4) for part in heat.mean(axis=(1, 2))]
        return {"id": item.id, "source": str(item.path), "overlay": name, "mean_heat": shares}

    def _overlay(self, item: Item, image: LoadedImage, heat: Any, legend: Sequence[tuple[str, str]]) -> bytes:
        """The encoded overlay; the image is read again for one of its own size."""
        look = self.config.overlay
        each = PAINTING_BYTES + 2 * len(heat)
        with self.budget.room(image.cost + each * image.size[0] * image.size[1]):
            own = decode(item.path) if longest(look) else None
            if own and own.size != image.size:
                raise ItemError("read", "Changed", f"{item.path}: changed while it was being read")
            whole = replace(image, image=shrunk(own, longest(look))) if own else image
            return encode(concept_overlay(whole, heat, legend, look), look)

    def _summary(self, images: list[dict[str, Any]], failures: list[dict[str, str]], status: str) -> dict[str, Any]:
        model = self.engine.model
        return {
            "schema_version": SCHEMA_VERSION,
            "status": status,
            "model": {"source": model.source, "name": model.name, "weights_sha256": model.weights_sha256},
            "layer": self.engine.layer,
            "concepts": [asdict(concept) for concept in self.concepts],
            "images": images,
            "failures": failures,
        }


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` items, evenly over the list."""
    step = max(1.0, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


def cells_of(activations: Tensor) -> Tensor:
    """[B,C,h,w] -> [B*h*w,C], negative values as 0."""
    return activations.relu().permute(0, 2, 3, 1).flatten(0, 2)


def _failure(item: Item, error: ItemError) -> dict[str, str]:
    return {"id": item.id, "source": str(item.path), "stage": error.stage, "kind": error.kind, "message": str(error)}
