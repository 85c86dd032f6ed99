"""The search for a target layer in one model, for images of one size.

The last tensor wins that is read as a grid over the image, through which the whole prediction flows, and
whose gradient is alive in the locations.
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
from camcli.engine.layers.liveness import NEARLY_ALL, live_channels, live_locations
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
class LiveOutput:
    """A tensor with its gradient [1, *shape] and the readings under which that reaches enough locations."""

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


Verified = tuple[LiveOutput, Layout]


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

    def weigh(self, outputs: Sequence[Output], least: float = NEARLY_ALL) -> list[LiveOutput]:
        """Those of `outputs` of which at least that share of the locations has a gradient under some reading."""
        pairs = zip(outputs, self.trace.gradients(outputs), strict=True) if outputs else ()
        candidates = [LiveOutput(o, g, self._alive(o, g, least)) for o, g in pairs if g is not None]
        return [live for live in candidates if live.readings]

    def _alive(self, output: Output, gradient: Tensor, least: float) -> tuple[Layout, ...]:
        return tuple(read for read in readings(output.shape, self.size) if live_locations(read, gradient) >= least)

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
        the last cut of as many locations with several such channels is preferred to them.
        """
        for late in (self.cuts[:AT_ONCE], self.cuts[AT_ONCE:]):
            found = self._first_read(self.weigh(late), self.probe)
            if found and live_channels(found[1], found[0].gradient) == 1:
                return self._of_several_channels(found[1]) or self._refined(*found)
            if found:
                return self._refined(*found)
        return None

    def _first_read(
        self, candidates: Sequence[LiveOutput], probe: Probe
    ) -> tuple[LiveOutput, Layout, dict[Place, Layout]] | None:
        """The first of `candidates` that is read as a grid, and the layouts of it and of those beside and after it."""
        if not candidates:
            return None
        near = [*candidates, *self.weigh(self._followers(candidates))]
        layouts = probe.settle({live.place: live.readings for live in near})
        return next(((live, layouts[live.place], layouts) for live in candidates if live.place in layouts), None)

    def _of_several_channels(self, like: Layout) -> TargetLayer | None:
        """The last cut with the grid of `like` and a gradient in several channels and in half of its locations."""
        same = [
            live
            for live in self.weigh(self.cuts, PARTLY_LIVE)
            if any(read.grid == like.grid and live_channels(read, live.gradient) > 1 for read in live.readings)
        ]
        found = self._first_read(same[:AT_ONCE], Probe(self.module, self.size))
        return self._refined(*found) if found and found[1].grid == like.grid else None

    def _followers(self, candidates: Sequence[LiveOutput]) -> list[Output]:
        """Tensors of the same shapes that are no cuts and were computed after one of `candidates`, the last first."""
        shapes = {live.output.shape for live in candidates}
        first = min(self.outputs.index(live.output) for live in candidates)
        later = [output for output in self.outputs[first + 1 :] if output not in self.cuts]
        return [output for output in reversed(later) if output.shape in shapes and output.type != "Linear"]

    def _refined(self, live: LiveOutput, layout: Layout, layouts: Mapping[Place, Layout]) -> TargetLayer:
        """Where the same values stand first, else a later tensor that all the locations' gradient passes."""
        alike = {place: other for place, other in layouts.items() if other == layout}
        return TargetLayer((self._earlier(live, layout) or self._later([(live, layout)], alike) or live.tap(layout),))

    def _earlier(self, live: LiveOutput, layout: Layout) -> Tap | None:
        """The first cut with the same values at every location: before a permutation, a class token, an identity."""
        index, found = self.cuts.index(live.output), None
        for other in self.weigh(self.cuts[index + 1 : index + 1 + AT_ONCE]):
            grids = [read for read in other.readings if read.grid == layout.grid]
            alike = [read for read in grids if self._same(live, layout, other, read)]
            if not alike:
                break
            found = other.tap(alike[0])
        return found

    def _same(self, live: LiveOutput, layout: Layout, other: LiveOutput, read: Layout) -> bool:
        """The locations of both hold the same gradients and the same values."""
        if not equal(layout.to_maps(live.gradient), read.to_maps(other.gradient)):
            return False
        tensors = values(self.module, self.size, [live.place, other.place])
        return equal(layout.to_maps(tensors[live.place]), read.to_maps(tensors[other.place]))

    def _later(self, cut: Sequence[Verified], layouts: Mapping[Place, Layout]) -> Tap | None:
        """The last tensor that passes on all of the gradient that the locations of `cut` get."""
        for other in self.weigh(self._followers([live for live, _ in cut])):
            if other.place in layouts and self._passes(cut, other):
                return other.tap(layouts[other.place])
        return None

    def _passes(self, cut: Sequence[Verified], other: LiveOutput) -> bool:
        """The gradient at `other`, taken back to the tensors of `cut`, is what their locations get in all."""
        edges = [live.output.edge for live, _ in cut]
        back = torch.autograd.grad([other.output.edge], edges, [other.gradient], retain_graph=True, allow_unused=True)
        return all(
            grad is not None and close(layout.to_maps(grad), layout.to_maps(live.gradient))
            for grad, (live, layout) in zip(back, cut, strict=True)
        )

    def together(self, alone: TargetLayer | None) -> TargetLayer | None:
        """The few tensors nearest to the logits that the prediction flows through only together."""
        taken = [Place(tap.path, tap.call, tap.item) for tap in alone.taps] if alone else []
        first = max((index + 1 for index, output in enumerate(self.outputs) if output.place in taken), default=0)
        candidates = self.weigh([output for output in self.outputs[first:] if output not in self.cuts])
        cut = self._checked_cut([live for live in candidates if live.output.type != "Linear"]) or self._checked_cut(
            candidates
        )
        if not cut:
            return None
        later = self._later(cut, self._measured(self.weigh(self._followers([live for live, _ in cut]))))
        return TargetLayer((later,) if later else tuple(live.tap(layout) for live, layout in cut))

    def _checked_cut(self, candidates: Sequence[LiveOutput]) -> list[Verified]:
        """The latest joint cut of which every tensor is read as a grid."""
        left = {live.place: live for live in candidates}
        for _ in range(MAX_TRIES):
            cut = self._latest_cut(list(left.values()))
            layouts = self._measured(cut)
            wrong = [live.place for live in cut if live.place not in layouts]
            if not wrong:
                return [(live, layouts[live.place]) for live in cut]
            left = {place: live for place, live in left.items() if place not in wrong}
        return []

    def _latest_cut(self, candidates: Sequence[LiveOutput]) -> list[LiveOutput]:
        """A joint cut whose first tensor is computed as late as can be; empty where there is none."""

        def cut_from(start: int) -> list[LiveOutput]:
            points = {vertex(live.output.edge): live for live in candidates[start:]}
            ends = get_gradient_edge(self.trace.loss), self.trace.source
            return [points[point] for point in smallest_cut(*ends, set(points), MAX_TAPS)]

        failing = bisect_left(range(len(candidates)), True, key=lambda start: not cut_from(start))
        return cut_from(failing - 1) if failing else []

    def _measured(self, candidates: Sequence[LiveOutput]) -> dict[Place, Layout]:
        """The layouts that the probe finds when it settles each of `candidates`."""
        return self.probe.settle_each({live.place: live.readings for live in candidates})


def distinct(outputs: Sequence[Output]) -> list[Output]:
    """One output per tensor, named by the outermost module around its maker that returns it and nothing else.

    What a module returns beside it may depend on it, and would not know of another tensor in its place.
    """
    times = Counter((vertex(output.edge), output.place.path, output.place.call) for output in outputs)
    best: dict[Vertex, Output] = {}
    for output in outputs:
        point, place = vertex(output.edge), output.place
        maker = best.setdefault(point, output).place.path
        once = times[point, place.path, place.call] == 1
        if maker.startswith(f"{place.path}.") and once and not place.item:
            best[point] = output
    return list(best.values())


def equal(a: Tensor, b: Tensor) -> bool:
    """Same shape and values."""
    return a.shape == b.shape and torch.allclose(a, b)


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, measured over the whole tensor."""
    return bool((a - b).norm() <= SAME_GRADIENT * b.norm())
