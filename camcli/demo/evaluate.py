"""Measures the embedded model on scenes that training never saw.

    python -m camcli.demo.evaluate --scenes 1000 --seed 1 --json
    python -m camcli.demo.evaluate --weights tests/weights/vit.safetensors

present         share of the shapes in the images that are scored above 0.5
absent          share of the shapes not in the images that are scored below 0.5
pointing_game   share of (image, shape in it) pairs where Grad-CAM's peak for the shape lies inside the shape's exact
                mask or at most 8 px beside it (https://arxiv.org/abs/1608.00507, tolerance scaled to 128 px images)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from camcli.demo.nets import build
from camcli.demo.scenes import Scene, scene
from camcli.engine.engine import Engine
from camcli.engine.layers import resolve_layer
from camcli.engine.methods import METHODS
from camcli.engine.targets import Target
from camcli.errors import ItemError
from camcli.images.preprocess import Preprocess
from camcli.models.demo import LABELS, MEAN, SIZE, STD, WEIGHTS
from camcli.models.loaded import LoadedModel
from camcli.records import Heatmap

TOLERANCE = 8
BATCH = 50


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured over `pairs` pairs of an image and a shape in it; shares are 0..1."""

    scenes: int
    seed: int
    pairs: int
    present: float
    absent: float
    pointing_game: float


def evaluate(scenes: int = 1000, seed: int = 1, weights: Path = WEIGHTS) -> Quality:
    """The quality of `weights` on the first `scenes` images of `seed`; ValueError if training used that seed."""
    if training(weights)["seed"] == str(seed):
        raise ValueError(f"{weights} was trained on scenes of seed {seed}; choose another")
    model = load(weights)
    engine = Engine(model, [resolve_layer(model.module, (SIZE, SIZE))], [METHODS.get("gradcam")])
    present, absent, hits = [], [], []
    for drawn, maps in _explained(engine, scenes, seed):
        masks = dict(drawn.shapes)
        for label, heatmap in enumerate(maps):
            assert heatmap.target is not None
            probability = heatmap.target.probability
            if label in masks:
                present.append(probability > 0.5)
                hits.append(points_at(heatmap, masks[label]))
            else:
                absent.append(probability < 0.5)
    shares = (float(np.mean(values)) for values in (present, absent, hits))
    return Quality(scenes, seed, len(hits), *shares)


def training(weights: Path) -> dict[str, str]:
    """How `weights` were made: arch, seed, scenes and epochs, from the file's metadata."""
    with safe_open(weights, "numpy") as file:
        return dict(file.metadata())


def load(weights: Path) -> LoadedModel:
    """The network of `weights`, ready to explain."""
    arch = training(weights)["arch"]
    module = build(arch)
    module.load_state_dict(load_file(weights))
    size = (SIZE, SIZE)
    preprocess = Preprocess(size, size, MEAN, STD, "bilinear", "center")
    return LoadedModel(
        module.eval().requires_grad_(False), "demo", arch, LABELS, "sigmoid", preprocess, str(weights), None
    )


def _explained(engine: Engine, scenes: int, seed: int) -> Iterator[tuple[Scene, tuple[Heatmap, ...]]]:
    """Each image with one heatmap per label, in order of LABELS."""
    targets = [Target(index) for index in range(len(LABELS))]
    for start in range(0, scenes, BATCH):
        drawn = [scene(seed, index) for index in range(start, min(start + BATCH, scenes))]
        pixels = torch.from_numpy(np.stack([d.image for d in drawn]))
        for one, explanation in zip(drawn, engine.explain(pixels, lambda _: targets), strict=True):
            if isinstance(explanation, ItemError):
                raise explanation
            yield one, explanation.heatmaps


def points_at(heatmap: Heatmap, mask: NDArray[np.bool_]) -> bool:
    """The peak, bilinear at the image's size, is at most TOLERANCE pixels from a pixel of `mask` [H,W]."""
    if heatmap.empty:
        return False
    heat = torch.from_numpy(heatmap.heat)[None, None]
    full = F.interpolate(heat, mask.shape, mode="bilinear")[0, 0].numpy()
    peak = np.unravel_index(full.argmax(), full.shape)
    return bool(np.hypot(*(np.argwhere(mask) - peak).T).min() <= TOLERANCE)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    quality = evaluate(args.scenes, args.seed, args.weights)
    print(json.dumps(asdict(quality)) if args.json else report(quality))


def report(quality: Quality) -> str:
    """A line for each figure."""
    return "\n".join(
        [
            f"{quality.scenes} scenes of seed {quality.seed}, {quality.pairs} shapes",
            f"present shapes above 0.5   {quality.present:.1%}",
            f"absent shapes below 0.5    {quality.absent:.1%}",
            f"Grad-CAM points at shape   {quality.pointing_game:.1%}",
        ]
    )


if __name__ == "__main__":
    main()
