"""The search for a target layer in one model, for images of one size.

The last tensor wins that is read as a grid over the image, through which the whole prediction flows, and
whose gradient is alive in the cells.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from camcli.engine.layers.cuts import Vertex, cut_points, smallest_cut, vertex
from camcli.engine.layers.layout import Layout, Tap, TargetLayer
from camcli.engine.layers.liveness import NEARLY_ALL, live_cells, live_channels
from camcli.engine.layers.probe import Probe, images, values
from camcli.engine.layers.readings import readings
from camcli.engine.layers.trace import Output, Place, Trace, record

PARTLY_LIVE = 0.5
AT_ONCE = 4
SAME_GRADIENT = 1e-3
LATE = 2 / 3
MAX_TAPS = 4
MAX_TRIES = 8
Size = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Spot:
    """A tensor with its gradient [1, *shape] and the readings under which that reaches enough cells."""

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


Verified = tuple[Spot, Layout]


class Search:
    """A frozen module in evaluation mode with one recorded pass over an image of `size` (H, W)."""

    def __init__(self, module: nn.Module, size: Size) -> None:
        self.module = module
        self.size = size
        self.trace: Trace = record(module, images(module, size, 1))
        self.outputs = [output for output in distinct(self.trace.outputs) if readings(output.shape, size)]
        self.probe = Probe(module, size)

    @cached_property
    def cut_vertices(self) -> list[Vertex]:
        """The points that the whole prediction flows through, from the loss to the image."""
        return cut_points(get_gradient_edge(self.trace.loss), self.trace.source)

    @cached_property
    def cuts(self) -> list[Output]:
        """The recorded tensors at the cut points, the last first; bare projections are no place to look at."""
        named = {vertex(output.edge): output for output in self.outputs if output.type != "Linear"}
        return [named[point] for point in self.cut_vertices if point in named]

    def weigh(self, outputs: Sequence[Output], least: float = NEARLY_ALL) -> list[Spot]:
        """Those of `outputs` of which at least that share of the cells has a gradient under some reading."""
        pairs = zip(outputs, self.trace.gradients(outputs), strict=True) if outputs else ()
        spots = [Spot(o, g, self._alive(o, g, least)) for o, g in pairs if g is not None]
        return [spot for spot in spots if spot.readings]

    def _alive(self, output: Output, gradient: Tensor, least: float) -> tuple[Layout, ...]:
        return tuple(read for read in readings(output.shape, self.size) if live_cells(read, gradient) >= least)

    def read(self, outputs: Sequence[Output]) -> dict[Place, Layout]:
        """The layouts of `outputs` as a new probe finds them, so that earlier questions do not change the answer."""
        return Probe(self.module, self.size).settle_each({o.place: readings(o.shape, self.size) for o in outputs})

    def best(self) -> TargetLayer | None:
        """The last cut; where the live ones end too early, several tensors that cut together, if there are any."""
        alone = self.last()
        late = [output for output in self.cuts if self.outputs.index(output) > LATE * len(self.outputs)]
        if self.weigh(late):
            return alone
        return self.together(alone) or alone

    def last(self) -> TargetLayer | None:
        """The last live cut with a verified layout, moved to where its values or its gradient gather.

        Class maps have a gradient in the class's own channel alone, where all ways of weighing channels give the same;
        the last cut of as many cells with several such channels is preferred to them.
        """
        for late in (self.cuts[:AT_ONCE], self.cuts[AT_ONCE:]):
            found = self._first_read(self.weigh(late), self.probe)
            if found and live_channels(found[1], found[0].gradient) == 1:
                return self._of_several_channels(found[1]) or self._refined(*found)
            if found:
                return self._refined(*found)
        return None

    def _first_read(self, spots: Sequence[Spot], probe: Probe) -> tuple[Spot, Layout, dict[Place, Layout]] | None:
        """The first of `spots` that is read as a grid, with the layouts found for it and those beside and after it."""
        if not spots:
            return None
        near = [*spots, *self.weigh(self._followers(spots))]
        layouts = probe.settle({spot.place: spot.readings for spot in near})
        return next(((spot, layouts[spot.place], layouts) for spot in spots if spot.place in layouts), None)

    def _of_several_channels(self, like: Layout) -> TargetLayer | None:
        """The last cut with the grid of `like` that has a gradient in several channels, and in half of its cells."""
        same = [
            spot
            for spot in self.weigh(self.cuts, PARTLY_LIVE)
            if any(read.grid == like.grid and live_channels(read, spot.gradient) > 1 for read in spot.readings)
        ]
        found = self._first_read(same[:AT_ONCE], Probe(self.module, self.size))
        return self._refined(*found) if found and found[1].grid == like.grid else None

    def _followers(self, spots: Sequence[Spot]) -> list[Output]:
        """Tensors of the same shapes that are no cuts and were computed after one of `spots`, the last first."""
        shapes = {spot.output.shape for spot in spots}
        first = min(self.outputs.index(spot.output) for spot in spots)
        later = [output for output in self.outputs[first + 1 :] if output not in self.cuts]
        return [output for output in reversed(later) if output.shape in shapes and output.type != "Linear"]

    def _refined(self, spot: Spot, layout: Layout, layouts: Mapping[Place, Layout]) -> TargetLayer:
        """Where the same values stand first, else a later tensor that all the cells' gradient passes."""
        alike = {place: other for place, other in layouts.items() if other == layout}
        return TargetLayer((self._earlier(spot, layout) or self._later([(spot, layout)], alike) or spot.tap(layout),))

    def _earlier(self, spot: Spot, layout: Layout) -> Tap | None:
        """The first cut with the same cell values: before a permutation, a class token, an identity."""
        index, found = self.cuts.index(spot.output), None
        for other in self.weigh(self.cuts[index + 1 : index + 1 + AT_ONCE]):
            grids = [read for read in other.readings if read.grid == layout.grid]
            alike = [read for read in grids if self._same(spot, layout, other, read)]
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

    def _later(self, cut: Sequence[Verified], layouts: Mapping[Place, Layout]) -> Tap | None:
        """The last tensor that passes on all of the gradient that the cells of `cut` get."""
        for other in self.weigh(self._followers([spot for spot, _ in cut])):
            if other.place in layouts and self._passes(cut, other):
                return other.tap(layouts[other.place])
        return None

    def _passes(self, cut: Sequence[Verified], other: Spot) -> bool:
        """The gradient at `other`, taken back to the tensors of `cut`, is what their cells get in all."""
        edges = [spot.output.edge for spot, _ in cut]
        back = torch.autograd.grad([other.output.edge], edges, [other.gradient], retain_graph=True, allow_unused=True)
        return all(
            grad is not None and close(layout.to_maps(grad), layout.to_maps(spot.gradient))
            for grad, (spot, layout) in zip(back, cut, strict=True)
        )

    def together(self, alone: TargetLayer | None) -> TargetLayer | None:
        """The few tensors nearest to the logits that the prediction flows through only together."""
        taken = [Place(tap.path, tap.call, tap.item) for tap in alone.taps] if alone else []
        first = max((index + 1 for index, output in enumerate(self.outputs) if output.place in taken), default=0)
        spots = self.weigh([output for output in self.outputs[first:] if output not in self.cuts])
        cut = self._checked_cut([spot for spot in spots if spot.output.type != "Linear"]) or self._checked_cut(spots)
        if not cut:
            return None
        later = self._later(cut, self._measured(self.weigh(self._followers([spot for spot, _ in cut]))))
        return TargetLayer((later,) if later else tuple(spot.tap(layout) for spot, layout in cut))

    def _checked_cut(self, spots: Sequence[Spot]) -> list[Verified]:
        """The latest joint cut of which every tensor is read as a grid."""
        left = {spot.place: spot for spot in spots}
        for _ in range(MAX_TRIES):
            cut = self._latest_cut(list(left.values()))
            layouts = self._measured(cut)
            wrong = [spot.place for spot in cut if spot.place not in layouts]
            if not wrong:
                return [(spot, layouts[spot.place]) for spot in cut]
            left = {place: spot for place, spot in left.items() if place not in wrong}
        return []

    def _latest_cut(self, spots: Sequence[Spot]) -> list[Spot]:
        """A joint cut whose first tensor is computed as late as can be; empty where there is none."""

        def cut_from(start: int) -> list[Spot]:
            points = {vertex(spot.output.edge): spot for spot in spots[start:]}
            ends = get_gradient_edge(self.trace.loss), self.trace.source
            return [points[point] for point in smallest_cut(*ends, set(points), MAX_TAPS)]

        failing = bisect_left(range(len(spots)), True, key=lambda start: not cut_from(start))
        return cut_from(failing - 1) if failing else []

    def _measured(self, spots: Sequence[Spot]) -> dict[Place, Layout]:
        """The layouts that the probe finds when it settles each of `spots`."""
        return self.probe.settle_each({spot.place: spot.readings for spot in spots})


def distinct(outputs: Sequence[Output]) -> list[Output]:
    """One output per tensor, named by the outermost module around its maker that returns it too, and only once."""
    times = Counter((vertex(output.edge), output.place.path, output.place.call) for output in outputs)
    best: dict[Vertex, Output] = {}
    for output in outputs:
        point, place = vertex(output.edge), output.place
        maker = best.setdefault(point, output).place.path
        if maker.startswith(f"{place.path}.") and times[point, place.path, place.call] == 1:
            best[point] = output
    return list(best.values())


def equal(a: Tensor, b: Tensor) -> bool:
    """Same shape and values."""
    return a.shape == b.shape and torch.allclose(a, b)


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, measured over the whole tensor."""
    return bool((a - b).norm() <= SAME_GRADIENT * b.norm())
