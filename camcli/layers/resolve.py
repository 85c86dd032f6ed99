"""The target layer of any image classifier, found or checked by looking at the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from camcli.errors import LayerError
from camcli.layers.awake import awake
from camcli.layers.cuts import vertex
from camcli.layers.layout import Layout, TargetLayer
from camcli.layers.probe import COARSE, pictures
from camcli.layers.readings import readings
from camcli.layers.search import Search, Size
from camcli.layers.trace import Output, Place, undisturbed
from camcli.registry import did_you_mean

LISTING_ROUNDS = 2
NEAREST = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that a module returns and that may be a grid over the picture.

    shape: without the batch axis. layout: as the probe found it, None where it found none.
    is_cut: the whole prediction flows through it.
    live: whether the gradient reaches nearly all cells, None without a layout.
    """

    path: str
    type: str
    shape: tuple[int, ...]
    layout: Layout | None
    is_cut: bool
    live: bool | None
    chosen: bool


def resolve_layer(module: nn.Module, input_size: Size, path: str | None = None) -> TargetLayer:
    """The layer at `path`, checked, or the best one, for pictures of `input_size` (H, W).

    Raises LayerError where `path` is unknown, where nothing can be read as a grid over the picture, and
    where no gradient arrives. Leaves the module as it was.
    """
    with undisturbed(module):
        search = _search(module, input_size)
        return _automatic(search) if path is None else _named(search, path)


def list_candidates(module: nn.Module, input_size: Size) -> list[Candidate]:
    """Every tensor with the shape of a grid over the picture, in order of computation."""
    with undisturbed(module):
        search = _search(module, input_size)
        found = search.best()
        claims = {output.place: readings(output.shape, input_size) for output in search.outputs}
        for _ in range(LISTING_ROUNDS):
            search.probe.touch(claims, COARSE)
        lives = {spot.place: spot.readings for spot in search.weigh(search.outputs)}
        return [_candidate(search, output, lives.get(output.place, ()), found) for output in search.outputs]


def _search(module: nn.Module, size: Size) -> Search:
    """A search in the module, or in a copy of an untrained one through which signals flow."""
    return Search(awake(module, pictures(module, size)), size)


def _automatic(search: Search) -> TargetLayer:
    if found := search.best():
        return found
    raise LayerError(
        "no layer of this model is read as a grid over the picture with the whole prediction behind it; "
        "set `layer: PATH` to one that you trust"
    )


def _named(search: Search, path: str) -> TargetLayer:
    """The last tensor that the module at `path` returns and that serves, even if the prediction goes around it."""
    here = _outputs_at(search, path)
    fits = [output for output in here if readings(output.shape, search.size)]
    if not fits:
        shapes = ", ".join(str([1, *output.shape]) for output in here) or "nothing that the prediction depends on"
        raise LayerError(f"layer {path!r} has no spatial layout (it returns {shapes}); {_advice(search)}")
    spots = search.weigh(fits[::-1])
    if not spots:
        raise LayerError(f"layer {path!r} is dead: its cells get no gradient; {_advice(search)}")
    layouts = search.verify(spots)
    taps = [spot.tap(layouts[spot.place]) for spot in spots if spot.place in layouts]
    if not taps:
        raise LayerError(f"layer {path!r} does not follow the picture's grid; {_advice(search)}")
    return TargetLayer((taps[0],))


def _outputs_at(search: Search, path: str) -> list[Output]:
    """What the module at `path` returned; raises LayerError where there is no such module."""
    paths = [name for name, _ in search.module.named_modules() if name]
    if path not in paths:
        raise LayerError(f"unknown layer {path!r}{did_you_mean(path, paths)}; {_advice(search)}")
    return [output for output in search.trace.outputs if output.place.path == path]


def _advice(search: Search) -> str:
    """What to set instead: the automatic choice, and the cuts before it."""
    found = search.best()
    if found is None:
        return "and no other layer of this model serves"
    paths = [tap.path for tap in found.taps] + [output.place.path for output in search.cuts]
    return f"set `layer: auto` or one of {', '.join(list(dict.fromkeys(paths))[:NEAREST])}"


def _candidate(search: Search, output: Output, lives: Sequence[Layout], found: TargetLayer | None) -> Candidate:
    layout = search.probe.verdicts([output.place]).get(output.place)
    chosen = [Place(tap.path, tap.call, tap.item) for tap in found.taps] if found else []
    return Candidate(
        path=output.place.path,
        type=output.type,
        shape=output.shape,
        layout=layout,
        is_cut=vertex(output.edge) in search.cut_vertices,
        live=layout in lives if layout else None,
        chosen=output.place in chosen,
    )
