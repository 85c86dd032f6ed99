"""The search for a target layer in one model, for pictures of one size.

The last tensor wins that is read as a grid over the picture, through which the whole prediction flows, and
whose gradient is alive in the cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from camcli.layers.cuts import Vertex, cut_points, vertex
from camcli.layers.layout import Layout, Tap, TargetLayer
from camcli.layers.probe import Probe, pictures, values
from camcli.layers.readings import readings
from camcli.layers.trace import Output, Place, Trace, record

LIVE_CELLS = 0.9
MAX_ROUNDS = 4
AT_ONCE = 4
SAME_GRADIENT = 1e-3
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Spot:
    """A tensor with its gradient [1, *shape] and the readings under which that reaches nearly all cells."""

    output: Output
    gradient: Tensor
    readings: tuple[Layout, ...]

    @property
    def place(self) -> Place:
        """Where the tensor is found."""
        return self.output.place

    def tap(self, layout: Layout) -> Tap:
        """The tensor as the engine hooks it."""
        return Tap(self.place.path, layout, self.place.call, self.place.item)


class Search:
    """A frozen module in evaluation mode with one recorded pass over a picture of `size` (H, W)."""

    def __init__(self, module: nn.Module, size: Size) -> None:
        self.module = module
        self.size = size
        self.trace: Trace = record(module, pictures(module, size, 1))
        self.outputs = [output for output in distinct(self.trace.outputs) if readings(output.shape, size)]
        self.probe = Probe(module, size)

    @cached_property
    def cut_vertices(self) -> list[Vertex]:
        """The points that the whole prediction flows through, from the loss to the picture."""
        return cut_points(get_gradient_edge(self.trace.loss), self.trace.source)

    @cached_property
    def cuts(self) -> list[Output]:
        """The recorded tensors at the cut points, the last first; bare projections are no place to look at."""
        named = {vertex(output.edge): output for output in self.outputs if output.type != "Linear"}
        return [named[point] for point in self.cut_vertices if point in named]

    def weigh(self, outputs: Sequence[Output]) -> list[Spot]:
        """Those of `outputs` of which nearly all cells have a gradient under some reading."""
        pairs = zip(outputs, self.trace.gradients(outputs)) if outputs else ()
        spots = [Spot(o, g, alive(readings(o.shape, self.size), g)) for o, g in pairs if g is not None]
        return [spot for spot in spots if spot.readings]

    def verify(self, spots: Sequence[Spot]) -> dict[Place, Layout]:
        """The layouts that the probe finds; it goes on until the first of `spots` is settled."""
        claims = {spot.place: spot.readings for spot in spots}
        grid = spots[0].readings[0].grid
        for _ in range(MAX_ROUNDS):
            self.probe.touch(claims, grid)
            leading = self.probe.leading(spots[0].place)
            if self.probe.verdict(spots[0].place):
                break
            grid = leading.grid if leading else grid
        verdicts = {place: self.probe.verdict(place) for place in claims}
        return {place: layout for place, layout in verdicts.items() if layout}

    def last(self) -> TargetLayer | None:
        """The last live cut with a verified layout, moved to where its values or its gradient gather."""
        for late in (self.cuts[:AT_ONCE], self.cuts[AT_ONCE:]):
            spots = self.weigh(late)
            if not spots:
                continue
            layouts = self.verify([*spots, *self.weigh(self._followers(spots[-1].output))])
            for spot in spots:
                if layout := layouts.get(spot.place):
                    return TargetLayer((self._refined(spot, layout, layouts),))
        return None

    def _followers(self, output: Output) -> list[Output]:
        """The tensors of the same shape that were computed later and are no cuts, the last first."""
        later = self.outputs[self.outputs.index(output) + 1 :]
        alike = [o for o in later if o.shape == output.shape and o.type != "Linear" and o not in self.cuts]
        return alike[::-1]

    def _refined(self, spot: Spot, layout: Layout, layouts: Mapping[Place, Layout]) -> Tap:
        """Where the same values stand first, else a later tensor that all the cells' gradient passes."""
        if earlier := self._earlier(spot, layout):
            return earlier
        for other in self.weigh(self._followers(spot.output)):
            if layouts.get(other.place) == layout and self._passes(spot, other, layout):
                return other.tap(layout)
        return spot.tap(layout)

    def _earlier(self, spot: Spot, layout: Layout) -> Tap | None:
        """The first cut with the same cell values: before a permutation, a class token, an identity."""
        index, found = self.cuts.index(spot.output), None
        for other in self.weigh(self.cuts[index + 1 : index + 1 + AT_ONCE]):
            alike = [read for read in other.readings if read.grid == layout.grid and self._same(spot, layout, other, read)]
            if not alike:
                break
            found = other.tap(alike[0])
        return found

    def _same(self, spot: Spot, layout: Layout, other: Spot, read: Layout) -> bool:
        """The cells of both hold the same gradients and the same values."""
        if not equal(layout.to_maps(spot.gradient), read.to_maps(other.gradient)):
            return False
        tensors = values(self.module, self.size, [spot.place, other.place])
        return equal(layout.to_maps(tensors[spot.place]), read.to_maps(tensors[other.place]))

    def _passes(self, spot: Spot, other: Spot, layout: Layout) -> bool:
        """The gradient at `other`, taken back to `spot`, is all the gradient that the cells of `spot` get."""
        edges = [other.output.edge], [spot.output.edge]
        (back,) = torch.autograd.grad(*edges, [other.gradient], retain_graph=True, allow_unused=True)
        if back is None:
            return False
        wanted = layout.to_maps(spot.gradient)
        return bool((layout.to_maps(back) - wanted).norm() <= SAME_GRADIENT * wanted.norm())


def distinct(outputs: Iterable[Output]) -> list[Output]:
    """One output per tensor, under its shallowest name, in order of computation."""
    best: dict[Vertex, Output] = {}
    for output in outputs:
        known = best.setdefault(vertex(output.edge), output)
        if output.place.path.count(".") < known.place.path.count("."):
            best[vertex(output.edge)] = output
    return list(best.values())


def alive(layouts: Iterable[Layout], gradient: Tensor) -> tuple[Layout, ...]:
    """The layouts under which nearly all cells have a gradient."""
    touched = gradient != 0
    return tuple(l for l in layouts if l.to_maps(touched).any(1).float().mean() >= LIVE_CELLS)


def equal(a: Tensor, b: Tensor) -> bool:
    """Same shape and values."""
    return a.shape == b.shape and torch.allclose(a, b)
