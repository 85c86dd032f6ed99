"""The target layer of any image classifier, found or checked by looking at the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from camcli.errors import LayerError
from camcli.layers.awake import awake
from camcli.layers.cuts import vertex
from camcli.layers.layout import Layout, TargetLayer
from camcli.layers.probe import pictures
from camcli.layers.readings import readings
from camcli.layers.search import Search, Size
from camcli.layers.trace import Output, undisturbed
from camcli.registry import did_you_mean

SURE_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that a module returns and that may be a grid over the picture.

    shape: without the batch axis. layout: as the probe found it, None where it found none.
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
        search = searched(module, input_size)
        return automatic(search) if path is None else named(search, path)


def searched(module: nn.Module, size: Size) -> Search:
    """A search in the module, or in a copy of an untrained one through which signals flow."""
    return Search(awake(module, pictures(module, size)), size)


def automatic(search: Search) -> TargetLayer:
    """The best layer; raises LayerError where the model has none."""
    if found := search.best():
        return found
    raise LayerError(
        "no layer of this model is read as a grid over the picture with the whole prediction behind it; "
        "name one with `layer: PATH`"
    )


def named(search: Search, path: str) -> TargetLayer:
    """The last tensor that the module at `path` returns and that serves, even if the prediction goes around it."""
    here = _outputs_at(search, path)
    fits = [output for output in here if readings(output.shape, search.size)]
    if not fits:
        shapes = ", ".join(str([1, *output.shape]) for output in here) or "no tensor behind the prediction"
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
    """What to set instead."""
    found = search.best()
    return f"set `layer: {found.taps[0].path}` or `layer: auto`" if found else "name another with `layer: PATH`"


def list_candidates(module: nn.Module, input_size: Size) -> list[Candidate]:
    """Every tensor with the shape of a grid over the picture, in order of computation."""
    with undisturbed(module):
        search = searched(module, input_size)
        found = search.best()
        chosen = {(tap.path, tap.call, tap.item) for tap in found.taps} if found else set()
        cuts = set(search.cut_vertices)
        claims = {output.place: readings(output.shape, input_size) for output in search.outputs}
        for _ in range(SURE_ROUNDS):
            search.probe.touch(claims, (7, 7))
        lives = {spot.place: spot.readings for spot in search.weigh(search.outputs)}
        rows = []
        for output in search.outputs:
            place, layout = output.place, search.probe.verdict(output.place)
            live = layout in lives.get(place, ()) if layout else None
            is_chosen = (place.path, place.call, place.item) in chosen
            is_cut = vertex(output.edge) in cuts
            rows.append(Candidate(place.path, output.type, output.shape, layout, is_cut, live, is_chosen))
        return rows
