"""How well and how fast each method explains, and how fast its peers are.

    python -m tests.benchmarks.methods --demo                the embedded model on scenes that training never saw
    python -m tests.benchmarks.methods --peers               Ablation-CAM and Score-CAM on ResNet-50 against grad-cam
    python -m tests.benchmarks.methods --peers --share 0.06  the same from 6 % of the channels, times 1 / 0.06

Seconds are those of the process on one thread, so that other work on the machine does not count. In the table:

peak in mask    share of the (image, shape in it) pairs where the hottest pixel lies inside the shape's exact mask
energy          share of the heat that lies inside the mask, mean over the pairs; negative heat does not count
seconds         per image with all its shapes, the forward pass included
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig, OptionsConfig
from camcli.demo.scenes import Scene, scene
from camcli.engine.engine import Engine, Explanation
from camcli.engine.layers import Layout, Tap, TargetLayer, resolve_layer
from camcli.engine.methods import METHODS
from camcli.engine.targets import Target
from camcli.errors import MethodError
from camcli.images.preprocess import Preprocess
from camcli.models.demo import SIZE
from camcli.models.loaded import LoadedModel
from camcli.models.source import load_model
from camcli.records import Precision
from tests import peers

TARGET = 7
CHUNK = 16
LAYER4 = TargetLayer((Tap("layer4", Layout("nchw", (7, 7))),))


@dataclass(frozen=True)
class Row:
    """What was measured of one method; None where it refuses."""

    name: str
    peak: float
    energy: float
    seconds: float


def demo_table(scenes: int, seed: int) -> str:
    """Markdown: each method on the embedded model."""
    model = load_model(ModelConfig(), InputConfig())
    lines = ["| method | peak in mask | energy | seconds |", "|---|---|---|---|"]
    for name in METHODS:
        try:
            row = measured(model, name, scenes, seed)
        except MethodError:
            lines.append(f"| `{name}` | refuses | | |")
            continue
        lines.append(f"| `{row.name}` | {row.peak:.1%} | {row.energy:.1%} | {row.seconds:.3f} |")
    return "\n".join(lines)


def measured(model: LoadedModel, name: str, scenes: int, seed: int) -> Row:
    """One method on `scenes` images, each explained for the shapes in it."""
    engine = Engine(model, [resolve_layer(model.module, (SIZE, SIZE))], [METHODS.get(name)])
    hits, energies, seconds = [], [], 0.0
    for drawn in (scene(seed, index) for index in range(scenes)):
        start = time.process_time()
        heats = list(explained(engine, drawn))
        seconds += time.process_time() - start
        for heat, (_, mask) in zip(heats, drawn.shapes, strict=True):
            full = at_image_size(heat, mask.shape).clip(min=0)
            hits.append(bool(full.any() and mask.flat[full.argmax()]))
            energies.append(float((full * mask).sum() / max(full.sum(), 1e-12)))
    return Row(name, float(np.mean(hits)), float(np.mean(energies)), seconds / scenes)


def explained(engine: Engine, drawn: Scene) -> Iterator[NDArray[np.float32]]:
    """The heat of each shape in the image; a map of no class stands for all of them."""
    [answer] = engine.explain(
        torch.from_numpy(drawn.image)[None], lambda _: [Target(label) for label, _ in drawn.shapes]
    )
    assert isinstance(answer, Explanation)
    found = {heatmap.target.index if heatmap.target else None: heatmap.heat for heatmap in answer.heatmaps}
    return (found.get(label, found.get(None)) for label, _ in drawn.shapes)  # type: ignore[misc]


def at_image_size(heat: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """[h,w] -> [H,W], bilinear."""
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)


class Spent(Exception):
    """The share of the forward passes that was asked for is done."""


class Budget(nn.Module):
    """A network that stops after `passes` forward passes."""

    def __init__(self, module: nn.Module, passes: int) -> None:
        super().__init__()
        self.module, self.left = module, passes

    def forward(self, x: Tensor) -> Tensor:
        """As the network."""
        if not self.left:
            raise Spent
        self.left -= 1
        logits: Tensor = self.module(x)
        return logits


def peers_table(share: float, repeats: int) -> str:
    """Markdown: seconds per image of the grad-cam package and of ours at ResNet-50's last stage, and their ratio."""
    torch.manual_seed(0)
    module = torchvision.models.resnet50(weights=None).eval().requires_grad_(False)
    x = torch.randn(1, 3, 224, 224)
    lines = ["| method | precision | grad-cam, s | camcli, s | times faster |", "|---|---|---|---|---|"]
    for name in ("ablationcam", "scorecam"):
        part = 1.0 if name == "ablationcam" else share
        theirs = median(lambda name=name: their_seconds(name, module, x, share), repeats)  # type: ignore[misc]
        for precision in ("fp32", "bf16"):
            engine = our_engine(name, module, precision, part)
            ours = median(lambda engine=engine, part=part: our_seconds(engine, x) / part, repeats)  # type: ignore[misc]
            lines.append(f"| `{name}` | {precision} | {theirs:.1f} | {ours:.2f} | {theirs / ours:.1f} |")
    return "\n".join(lines)


def median(measure: Callable[[], float], repeats: int) -> float:
    """Of `repeats` measurements."""
    return statistics.median(measure() for _ in range(repeats))


def their_seconds(name: str, module: nn.Module, x: Tensor, share: float) -> float:
    """Process seconds of the package for one image, from `share` of its forward passes.

    The package exchanges the layer for another and, stopped midway, leaves it so.
    """
    layer4 = module.get_submodule("layer4")
    passes = max(1, round(share * 2048 / CHUNK))
    budget = Budget(module, passes + 2 if name == "ablationcam" else passes + 1)
    start = time.process_time()
    try:
        peers.grad_cam(name, budget, "module.layer4", x, TARGET, batch_size=CHUNK)
    except Spent:
        return (time.process_time() - start) / share
    finally:
        module.layer4 = layer4
        module.requires_grad_(False)
    return time.process_time() - start


def our_engine(name: str, module: nn.Module, precision: Precision, share: float) -> Engine:
    """For one method, with the package's chunk size."""
    preprocess = Preprocess((224, 224), (224, 224), (0, 0, 0), (1, 1, 1), "bilinear", "center")
    labels = tuple(map(str, range(1000)))
    model = LoadedModel(module, "torchvision", "resnet50", labels, "softmax", preprocess, "none", None)
    options = OptionsConfig(chunk=CHUNK, max_channels=round(2048 * share))
    return Engine(model, [LAYER4], [METHODS.get(name)], precision=precision, options=options)


def our_seconds(engine: Engine, x: Tensor) -> float:
    """Process seconds for one image."""
    start = time.process_time()
    done = engine.forward(x)
    target_weights = torch.zeros_like(done.logits)
    target_weights[:, TARGET] = 1
    engine.maps(done, [target_weights])
    return time.process_time() - start


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the channels that Score-CAM and the peers score")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.demo:
        print(demo_table(args.scenes, args.seed))
    if args.peers:
        print(peers_table(args.share, args.repeats))


if __name__ == "__main__":
    main()
