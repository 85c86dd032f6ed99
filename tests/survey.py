"""Does `layer: auto` work for every architecture? Builds them with random weights and writes a table.

    python -m tests.survey --csv survey.csv --check-gradient
    python -m tests.survey --source timm --pattern 'vit*'
    python -m tests.survey --tuned --csv tuned.csv

timm: the smallest variant of every model module that has a classifier. torchvision: all classification models.
--tuned: are the maps of a tuned engine, its replica and 16 bits right, at 200 random places of 40 architectures?
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import gc
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from camcli.config.model import ModelConfig
from camcli.engine.layers import Tap, TargetLayer, resolve_layer
from camcli.engine.layers.probe import images
from camcli.engine.layers.trace import Place, undisturbed, visiting
from camcli.engine.layers.untrained import initialised
from camcli.engine.tap import cut
from camcli.errors import CamcliError
from camcli.images.preprocess import Preprocess
from camcli.models.source import model_source
from tests import tuned

MAX_REFUSED = 0.01
MAX_GRADIENT_ERROR = 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture: params in millions, input as HxW pixels, outcome resolved | refused | skipped."""

    source: str
    model: str
    params: float
    input: str
    outcome: str
    path: str = ""
    layout: str = ""
    grid: str = ""
    prefix: str = ""
    seconds: float = 0.0
    gradient_error: float | None = None
    reason: str = ""


def examine(source: str, name: str, check_gradient: bool) -> Row:
    """Resolve the layer of one architecture with random weights."""
    module, size = build(source, name)
    about = (source, name, round(parameters(module) / 1e6, 3), f"{size[0]}x{size[1]}")
    if not classifies(module, size):
        return Row(*about, "skipped", reason="returns no logits [batch, classes]")
    start = time.perf_counter()
    try:
        layer = resolve_layer(module, size)
    except CamcliError as error:
        return Row(*about, "refused", seconds=round(time.perf_counter() - start, 2), reason=str(error))
    seconds = round(time.perf_counter() - start, 2)
    worst = gradient_error(module, size, layer) if check_gradient else None
    return Row(*about, "resolved", *described(layer), seconds, worst)


def build(source: str, name: str) -> tuple[nn.Module, tuple[int, int]]:
    """The module with seeded random weights, frozen, and its input size (H, W)."""
    torch.manual_seed(0)
    config = ModelConfig(source=source, name=name, weights="none")
    library = model_source(source)
    module = library.build(config, None).module.eval().requires_grad_(False)
    preprocess = library.preprocess(config, module)
    assert isinstance(preprocess, Preprocess)
    return module, preprocess.size


def classifies(module: nn.Module, size: tuple[int, int]) -> bool:
    """The module returns [1, K] with K above 1."""
    with torch.no_grad():
        logits = module(images(module, size, 1))
    return isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[1] > 1


def described(layer: TargetLayer) -> tuple[str, str, str, str]:
    """Path, layout, grid and prefix as the table shows them."""
    layouts = [tap.layout for tap in layer.taps]
    kinds = [layout.kind for layout in layouts]
    grids = [f"{layout.grid[0]}x{layout.grid[1]}" for layout in layouts]
    prefixes = [str(layout.prefix) if layout.kind == "tokens" else "" for layout in layouts]
    return layer.name, " + ".join(kinds), " + ".join(grids), " + ".join(filter(None, prefixes))


def gradient_error(module: nn.Module, size: tuple[int, int], layer: TargetLayer) -> float:
    """Largest relative error, over the taps, of the engine's Grad-CAM against that of a full backward."""
    with undisturbed(module):
        module = initialised(module, images(module, size))
        inputs = images(module, size, 1)
        pairs = zip(
            cams_of_cut(module, inputs, layer.taps), cams_of_full_backward(module, inputs, layer.taps), strict=True
        )
        return max(float((ours - full).norm() / full.norm()) for ours, full in pairs)


def cams_of_cut(module: nn.Module, inputs: Tensor, taps: Sequence[Tap]) -> list[Tensor]:
    """Weighted sums [1,h,w] with the graph cut at the layer, as in a run."""
    with cut(module, taps) as kept:
        score = module(inputs).max()
    gradients = torch.autograd.grad(score, [kept[tap] for tap in taps])
    return [cam(tap, kept[tap], gradient) for tap, gradient in zip(taps, gradients, strict=True)]


def cams_of_full_backward(module: nn.Module, inputs: Tensor, taps: Sequence[Tap]) -> list[Tensor]:
    """The same by an ordinary backward pass down to the image."""
    wanted = {Place(tap.path, tap.call, tap.item): tap for tap in taps}
    seen: dict[Tap, tuple[torch.autograd.graph.GradientEdge, Tensor]] = {}

    def visit(place: Place, tensor: Tensor) -> None:
        if place in wanted:
            edge = torch.autograd.graph.get_gradient_edge(tensor)
            seen[wanted[place]] = edge, tensor.detach().clone()

    with visiting(module, visit):
        score = module(inputs.clone().requires_grad_()).max()
    gradients = torch.autograd.grad(score, [seen[tap][0] for tap in taps])
    return [cam(tap, seen[tap][1], gradient) for tap, gradient in zip(taps, gradients, strict=True)]


def cam(tap: Tap, activation: Tensor, gradient: Tensor) -> Tensor:
    """[1,h,w] sum over channels, each weighted by its mean gradient (Grad-CAM before the ReLU)."""
    weights = tap.layout.to_maps(gradient).mean((2, 3), keepdim=True)
    return (weights * tap.layout.to_maps(activation.detach())).sum(1)


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def names(source: str, pattern: str) -> Iterator[str]:
    """The architectures to examine, those that match `pattern` where it is given."""
    if source == "torchvision" or pattern:
        known = model_source(source).names()
        yield from fnmatch.filter(known, pattern or "*")
    else:
        yield from map(smallest, timm.list_modules())


def smallest(family: str) -> str:
    """The architecture of a timm module that has the fewest parameters, with a classifier if any has one."""
    sizes: dict[str, tuple[bool, int]] = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            module = timm.create_model(name)
        sizes[name] = getattr(module, "num_classes", 0) == 0, parameters(module)
    return min(sizes, key=lambda name: sizes[name])


def write(rows: Sequence[Row] | Sequence[tuned.Agreement], file: Path) -> None:
    """The table as CSV."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [column.name for column in fields(rows[0])])
        table.writeheader()
        table.writerows(asdict(row) for row in rows)


def summary(rows: Sequence[Row]) -> str:
    """Counts by outcome and by layout, the worst gradient error, and every refusal."""
    outcomes = Counter(row.outcome for row in rows)
    tried = len(rows) - outcomes["skipped"]
    layouts = Counter(row.layout if "+" not in row.layout else "joint" for row in rows if row.layout)
    errors = [row.gradient_error for row in rows if row.gradient_error is not None]
    lines = [
        f"resolved {outcomes['resolved']} of {tried} architectures ({outcomes['skipped']} have no classifier)",
        "layouts: " + ", ".join(f"{kind} {count}" for kind, count in layouts.most_common()),
        *([f"largest gradient error: {max(errors):.1e}"] if errors else []),
        *(f"{row.outcome}: {row.source}/{row.model}: {row.reason}" for row in rows if row.reason),
    ]
    return "\n".join(lines)


def failed(rows: Sequence[Row]) -> bool:
    """More than MAX_REFUSED refuse, or a gradient differs from the full backward's."""
    tried = [row for row in rows if row.outcome != "skipped"]
    refused = [row for row in tried if row.outcome == "refused"]
    wrong = [row for row in tried if (row.gradient_error or 0.0) > MAX_GRADIENT_ERROR]
    return len(refused) > MAX_REFUSED * len(tried) or bool(wrong)


def main() -> int:
    """Examine, print as it goes, write the table; 1 when the survey fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=["timm", "torchvision"], help="both unless given")
    parser.add_argument("--pattern", default="", help="architectures by glob, all variants")
    parser.add_argument("--csv", type=Path, help="write the table here")
    parser.add_argument("--check-gradient", action="store_true", help="compare Grad-CAM with a full backward")
    parser.add_argument("--tuned", action="store_true", help="compare tuned maps with a full backward instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.tuned:
        return _tuned(options.pattern or "*", options.csv)
    rows: list[Row] = []
    for source in [options.source] if options.source else ["timm", "torchvision"]:
        for name in names(source, options.pattern):
            rows.append(examine(source, name, options.check_gradient))
            print(*asdict(rows[-1]).values(), flush=True)
            gc.collect()
            if options.csv:
                write(rows, options.csv)
    print(summary(rows))
    return int(failed(rows))


def _tuned(pattern: str, table: Path | None) -> int:
    rows: list[tuned.Agreement] = []
    for name in fnmatch.filter(tuned.ARCHITECTURES, pattern):
        for agreement in tuned.examine(name, seed=0):
            rows.append(agreement)
            print(*asdict(agreement).values(), flush=True)
        gc.collect()
    if table:
        write(rows, table)
    print(tuned.summary(rows))
    return int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main())
