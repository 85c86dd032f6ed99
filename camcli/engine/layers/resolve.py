"""The target layer of any image classifier, found or checked by looking at the model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn

from camcli.engine.layers.cuts import vertex
from camcli.engine.layers.layout import Layout, Tap, TargetLayer
from camcli.engine.layers.liveness import NEARLY_ALL, NEARLY_NONE, live_locations, live_shares
from camcli.engine.layers.names import UnknownLayer, module_path
from camcli.engine.layers.probe import COARSE, Probe, images
from camcli.engine.layers.readings import readings
from camcli.engine.layers.search import Search, Size
from camcli.engine.layers.trace import Output, Place, undisturbed
from camcli.engine.layers.untrained import initialised
from camcli.errors import LayerError
from camcli.registry import did_you_mean

LISTING_ROUNDS = 4
OFFERED = 3
TRIED = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that a module returns and that may be a grid over the image.

    shape: without the batch axis. layout: as the probe found it, None where it found none.
    is_cut: the whole prediction flows through it.
    live: whether the gradient reaches nearly all locations (tokens of a transformer), None without a layout.
    live_locations: the share that it reaches.
    """

    path: str
    type: str
    shape: tuple[int, ...]
    layout: Layout | None
    is_cut: bool
    live: bool | None
    live_locations: float | None
    chosen: bool


def resolve_layer(module: nn.Module, input_size: Size, path: str | None = None) -> TargetLayer:
    """The layer at `path`, checked, or the best one, for images of `input_size` (H, W).

    Raises LayerError where `path` is unknown, where nothing can be read as a grid over the image, and
    where no gradient arrives. Leaves the module as it was.
    """
    with undisturbed(module):
        search = _search(module, input_size)
        return _with_note(search, _automatic(search) if path is None else _named(search, path))


def list_candidates(module: nn.Module, input_size: Size) -> list[Candidate]:
    """Every tensor with the shape of a grid over the image, in order of computation."""
    with undisturbed(module):
        search = _search(module, input_size)
        found = search.best()
        readings_at = {output.place: readings(output.shape, input_size) for output in search.outputs}
        probe = Probe(search.module, input_size)
        for _ in range(LISTING_ROUNDS):
            probe.perturb(readings_at, COARSE)
        layouts = probe.verdicts(readings_at)
        shares = _live_locations(search, layouts)
        return [_candidate(search, output, layouts.get(output.place), shares, found) for output in search.outputs]


def _search(module: nn.Module, size: Size) -> Search:
    """A search in the module, or in a copy of an untrained one through which signals flow."""
    return Search(initialised(module, images(module, size)), size)


def _automatic(search: Search) -> TargetLayer:
    if found := search.best():
        return found
    raise LayerError(
        "no layer of this model is read as a grid over the image with the whole prediction behind it; "
        "set `layer: PATH` to one that you trust"
    )


def _named(search: Search, path: str) -> TargetLayer:
    """The layer that `path` names; raises LayerError with others that are accepted."""
    try:
        return _checked(search, module_path(search.module, path))
    except UnknownLayer as error:
        meant = did_you_mean(path, _similar(search, path)).replace(", did", "; did", 1)
        raise LayerError(f"{error}{meant or ';'} {_advice(search)}") from None
    except LayerError as error:
        raise LayerError(f"{error}; {_advice(search)}") from None


def _checked(search: Search, path: str) -> TargetLayer:
    """The last tensor that the module at `path` returns and that serves, even if the prediction goes around it."""
    here = _outputs_at(search, path)
    fits = [output for output in reversed(here) if readings(output.shape, search.size)]
    if not fits:
        shapes = ", ".join(str([1, *output.shape]) for output in here) or "nothing that the prediction depends on"
        raise LayerError(f"layer {path!r} has no spatial layout (it returns {shapes})")
    layouts = search.read(fits)
    if not layouts:
        raise LayerError(f"layer {path!r} does not follow the image's grid")
    shares = live_shares(search.module, search.size, layouts)
    for place in (output.place for output in fits if output.place in shares):
        if shares[place].max() >= NEARLY_NONE:
            return TargetLayer((Tap(place.path, layouts[place], place.call, place.item),))
    raise LayerError(f"layer {path!r} is dead: its locations get no gradient")


def _serves(search: Search, path: str) -> bool:
    """Whether the layer at `path` would be accepted."""
    try:
        return bool(_checked(search, path))
    except LayerError:
        return False


def _with_note(search: Search, layer: TargetLayer) -> TargetLayer:
    """`layer`, with a note where many of its locations get no gradient."""
    layouts = {Place(tap.path, tap.call, tap.item): tap.layout for tap in layer.taps}
    shares = live_shares(search.module, search.size, layouts)
    live = min(float(share.mean()) for share in shares.values())
    if live >= NEARLY_ALL:
        return layer
    share = f"{int(100 * live)}% of the locations get a gradient on average"
    return replace(layer, note=f"layer {layer.name}: {share} (measured on synthetic images)")


def _outputs_at(search: Search, path: str) -> list[Output]:
    """What the module at `path` returned."""
    return [output for output in search.trace.outputs if output.place.path == path]


def _similar(search: Search, path: str) -> list[str]:
    """Names like `path` of layers that would be accepted."""
    grids = [output.place.path for output in search.trace.outputs if readings(output.shape, search.size)]
    return _serving(search, difflib.get_close_matches(path, dict.fromkeys(grids), n=TRIED))


def _serving(search: Search, paths: Iterable[str]) -> list[str]:
    """The first OFFERED of `paths` that would be accepted; no more than TRIED are looked at."""
    return list(islice((path for path in islice(paths, TRIED) if _serves(search, path)), OFFERED))


def _advice(search: Search) -> str:
    """What to set instead: the automatic choice, and the cuts before it."""
    found = search.best()
    chosen = [tap.path for tap in found.taps] if found else []
    cuts = [output.place.path for output in search.cuts]
    first = min((cuts.index(path) for path in chosen if path in cuts), default=0)
    offered = _serving(search, dict.fromkeys([*chosen, *cuts[first:]]))
    if not offered:
        return "and no other layer of this model serves" if found is None else "set `layer: auto`"
    return f"set {'`layer` to' if found is None else '`layer: auto` or'} one of {', '.join(offered)}"


def _live_locations(search: Search, layouts: Mapping[Place, Layout]) -> dict[Place, float]:
    """The share of live locations at each place; measured more thoroughly where one image shows that some are not."""
    outputs = [output for output in search.outputs if output.place in layouts]
    gradients = zip(outputs, search.trace.gradients(outputs), strict=True) if outputs else ()
    found = {o.place: 0.0 if g is None else float(live_locations(layouts[o.place], g)) for o, g in gradients}
    few = {place: layouts[place] for place, share in found.items() if share < NEARLY_ALL}
    shares = live_shares(search.module, search.size, few) if few else {}
    return {**found, **{place: float(share.mean()) for place, share in shares.items()}}


def _candidate(
    search: Search, output: Output, layout: Layout | None, shares: Mapping[Place, float], found: TargetLayer | None
) -> Candidate:
    chosen = [Place(tap.path, tap.call, tap.item) for tap in found.taps] if found else []
    share = shares.get(output.place)
    return Candidate(
        path=output.place.path,
        type=output.type,
        shape=output.shape,
        layout=layout,
        is_cut=vertex(output.edge) in search.cut_vertices,
        live=None if share is None else share >= NEARLY_ALL,
        live_locations=share,
        chosen=output.place in chosen,
    )
