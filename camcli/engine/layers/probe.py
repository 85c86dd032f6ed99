"""Where does an activation answer a change of a patch of the image? The layout is measured on the live model.

A few patches of a synthetic image are repainted, one per batch item. Under the right reading of a tensor,
the locations that change most lie where the patch was; under a wrong one they lie anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camcli.engine.layers.layout import Layout
from camcli.engine.layers.trace import Place, visiting

PATCHES = 7
ACCEPTED_Z = 4.0
COARSE = (7, 7)
REJECTED_GAP = 3.0
REJECTED_SIGN_Z = 2.5
QUIET = 1e-3
CALIBRATING = 4
MAX_ROUNDS = 4

Size = tuple[int, int]
Box = tuple[int, int, int, int]


@dataclass(slots=True)
class Evidence:
    """Distances from patch to strongest answer, as a share of the image's side, and what chance gives.

    gain: by how much the answers were nearer than locations drawn at random; variance: of the gain under chance.
    """

    distances: list[float] = field(default_factory=list)
    gain: float = 0.0
    variance: float = 0.0

    @property
    def z(self) -> float:
        """Standard deviations above chance."""
        return self.gain / math.sqrt(self.variance) if self.variance else 0.0

    def add(self, distances: Tensor, chosen: Tensor) -> None:
        """Take [n, locations] distances from each patch, and [n] that of the location which answered most."""
        self.distances += chosen.tolist()
        self.gain += float((distances.mean(1) - chosen).sum())
        self.variance += float(distances.var(1, correction=0).sum())

    def beats(self, other: Evidence) -> bool:
        """Clearly better: far more gain, or nearer for nearly every single patch (a sign test)."""
        signs = [a < b for a, b in zip(self.distances, other.distances, strict=True) if a != b]
        sign_z = (2 * sum(signs) - len(signs)) / math.sqrt(len(signs)) if signs else 0.0
        return self.z - other.z > REJECTED_GAP or sign_z > REJECTED_SIGN_Z


@dataclass(slots=True)
class Probe:
    """Perturbs images of `size` (H, W) and gathers evidence for each reading of each place.

    A place must come with the same readings each time, since they are compared perturbation by perturbation.
    """

    module: nn.Module
    size: Size
    rounds: int = 0
    evidence: dict[Place, dict[Layout, Evidence]] = field(default_factory=dict)

    def settle(self, readings: Mapping[Place, Sequence[Layout]]) -> dict[Place, Layout]:
        """The layouts that are found; forwards go on until the first of the places has one, MAX_ROUNDS at most."""
        first, layouts = next(iter(readings.items()))
        grid = layouts[0].grid
        for _ in range(MAX_ROUNDS):
            self.perturb(readings, grid)
            if self.verdict(first):
                break
            leading = self.leading(first)
            grid = leading.grid if leading and self.strength(first) > ACCEPTED_Z else COARSE
        return self.verdicts(readings)

    def settle_each(self, readings: Mapping[Place, Sequence[Layout]]) -> dict[Place, Layout]:
        """The layouts that are found when each of the places has its turn to be settled."""
        for place, layouts in readings.items():
            if not self.verdict(place, strict=False):
                self.settle({place: layouts, **readings})
        return self.verdicts(readings)

    def perturb(self, readings: Mapping[Place, Sequence[Layout]], grid: Size) -> None:
        """One forward of 1 + PATCHES images; each patch is one location of `grid`, which finer maps shrink to."""
        generator = torch.Generator().manual_seed(self.rounds)
        boxes = list(patches(self.size, self.rounds * PATCHES, grid))
        inputs = repaint(canvas(self.size, self.rounds % 2 == 0, generator), boxes, generator)
        centres = torch.tensor([centre(box, self.size) for box in boxes])

        def visit(place: Place, tensor: Tensor) -> None:
            if tensor.shape[0] == 1 + PATCHES:
                for layout in readings.get(place, ()):
                    self._judge(place, layout, tensor, centres, grid)

        with torch.no_grad(), visiting(self.module, visit):
            self.module(like(self.module, inputs))
        self.rounds += 1

    def _judge(self, place: Place, layout: Layout, tensor: Tensor, centres: Tensor, grid: Size) -> None:
        """Compare the distance from patch to strongest answer with that of a location drawn at random."""
        shrunk = min(grid[0], layout.grid[0]), min(grid[1], layout.grid[1])
        answers = F.adaptive_avg_pool2d(response(layout.to_maps(tensor.float())).cpu(), shrunk)
        distances = torch.cdist(centres, locations(shrunk))
        chosen = distances.gather(1, answers.flatten(1).argmax(1, keepdim=True))[:, 0]
        self.evidence.setdefault(place, {}).setdefault(layout, Evidence()).add(distances, chosen)

    def strength(self, place: Place) -> float:
        """Standard deviations above chance of the leading reading."""
        leading = self.leading(place)
        return self.evidence[place][leading].z if leading else 0.0

    def leading(self, place: Place) -> Layout | None:
        """The reading with the strongest evidence so far."""
        found = self.evidence.get(place, {})
        return max(found, key=lambda layout: found[layout].z, default=None)

    def verdict(self, place: Place, strict: bool = True) -> Layout | None:
        """The leading reading, if it is far above chance and no other comes near it.

        Not strict: readings of the same grid that start a token or two off may come near.
        """
        best = self.leading(place)
        if best is None or self.strength(place) < ACCEPTED_Z:
            return None
        found = self.evidence[place]
        rivals = [other for other in found if other.grid != best.grid or other.kind != best.kind or strict]
        return best if all(found[best].beats(found[other]) for other in rivals if other != best) else None

    def verdicts(self, places: Iterable[Place]) -> dict[Place, Layout]:
        """The lenient verdict on each of `places` that has one."""
        found = {place: self.verdict(place, strict=False) for place in places}
        return {place: layout for place, layout in found.items() if layout}


def response(maps: Tensor) -> Tensor:
    """[n,h,w] how much each location changes with a perturbation, relative to its mean change with all n.

    maps [1+n,C,h,w], the unchanged image first. The change common to all locations of a map is global mixing.
    Locations that change much with any perturbation do not count for more; those that hardly change count for less.
    """
    change = maps[1:] - maps[:1]
    energy = (change - change.mean((2, 3), keepdim=True)).square().sum(1)
    return torch.nan_to_num(energy / (energy.mean(0) + QUIET * energy.max()))


def locations(grid: Size) -> Tensor:
    """[h*w, 2] centres of the locations, row and column in 0..1."""
    rows, columns = ((torch.arange(n) + 0.5) / n for n in grid)
    return torch.cartesian_prod(rows, columns)


def patches(size: Size, first: int, grid: Size) -> Iterator[Box]:
    """PATCHES boxes (top, left, height, width) in pixels, spread by the R2 sequence from index `first` on.

    The sequence (Roberts, 2018) fills the square evenly and has no symmetry that a flipped grid could share.
    """
    for index in range(first + 1, first + PATCHES + 1):
        location = [int((0.5 + step * index) % 1 * n) for step, n in zip((0.7549, 0.5698), grid, strict=True)]
        top, left = (c * side // n for c, side, n in zip(location, size, grid, strict=True))
        bottom, right = ((c + 1) * side // n for c, side, n in zip(location, size, grid, strict=True))
        yield top, left, max(1, bottom - top), max(1, right - left)


def centre(box: Box, size: Size) -> tuple[float, float]:
    """Row and column of the middle of `box` in 0..1."""
    top, left, height, width = box
    return (top + height / 2) / size[0], (left + width / 2) / size[1]


def canvas(size: Size, rough: bool, generator: torch.Generator) -> Tensor:
    """[1,3,H,W] synthetic image, about normalised: white noise, or noise as smooth as a 5 x 5 grid."""
    if rough:
        return torch.randn(1, 3, *size, generator=generator)
    return F.interpolate(torch.randn(1, 3, 5, 5, generator=generator), size, mode="bicubic")


def repaint(unchanged: Tensor, boxes: Sequence[Box], generator: torch.Generator) -> Tensor:
    """[1+n,3,H,W]: the image, then one copy per box with that box filled with strong noise."""
    batch = unchanged.repeat(1 + len(boxes), 1, 1, 1)
    for item, (top, left, height, width) in zip(batch[1:], boxes, strict=True):
        noise = torch.randn(3, height, width, generator=generator)
        item[:, top : top + height, left : left + width] = 3 * noise
    return batch


def images(module: nn.Module, size: Size, count: int = CALIBRATING) -> Tensor:
    """[count,3,H,W] the same synthetic images every time, as `module` takes them."""
    generator = torch.Generator().manual_seed(0)
    return like(module, torch.cat([canvas(size, index % 2 == 0, generator) for index in range(count)]))


def values(module: nn.Module, size: Size, places: Sequence[Place]) -> dict[Place, Tensor]:
    """The tensors at `places` for the synthetic image."""
    found: dict[Place, Tensor] = {}

    def visit(place: Place, tensor: Tensor) -> None:
        if place in places:
            found[place] = tensor.clone()

    with torch.no_grad(), visiting(module, visit):
        module(images(module, size, 1))
    return found


def like(module: nn.Module, inputs: Tensor) -> Tensor:
    """`inputs` on the device and in the precision of the module's parameters."""
    anchor = next(module.parameters(), inputs)
    return inputs.to(anchor.device, anchor.dtype)
