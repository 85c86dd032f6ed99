"""Which points of a computation graph the whole prediction flows through.

A vertex is one output of one autograd node. Every walk from the loss to the picture follows edges that only
go down in a topological order, so a vertex lies on all walks exactly when no edge jumps over it: the
dominators of the graph in one sweep (Lengauer and Tarjan, 1979, solve the general case).
"""

from __future__ import annotations

from collections.abc import Collection

from torch.autograd.graph import GradientEdge, Node

Vertex = tuple[Node, int]


def vertex(edge: GradientEdge) -> Vertex:
    """The vertex of a tensor's gradient edge."""
    return edge.node, edge.output_nr


def cut_points(loss: GradientEdge, source: GradientEdge, removed: Collection[Vertex] = ()) -> list[Vertex]:
    """The vertices on every walk from `loss` to `source`, loss first; empty when `removed` blocks all walks."""
    order = _topological(vertex(loss), vertex(source), frozenset(removed))
    position = {place: index for index, place in enumerate(order)}
    cuts, reach = [], 0
    for index, place in enumerate(order):
        if reach <= index:
            cuts.append(place)
        reach = max([reach, *(position[below] for below in _below(place) if below in position)])
    return cuts


def _topological(start: Vertex, end: Vertex, removed: frozenset[Vertex]) -> list[Vertex]:
    """The vertices that lie on a walk from `start` to `end`, each before all that are below it."""
    leads: dict[Vertex, bool] = {end: True, **dict.fromkeys(removed, False)}
    finished: list[Vertex] = [end]
    stack = [(start, iter(_below(start)))]
    while stack:
        place, below = stack[-1]
        nearest = next((other for other in below if other not in leads), None)
        if nearest is not None:
            stack.append((nearest, iter(_below(nearest))))
            continue
        stack.pop()
        leads[place] = any(leads[other] for other in _below(place))
        if leads[place]:
            finished.append(place)
    return finished[::-1] if leads[start] else []


def _below(place: Vertex) -> list[Vertex]:
    """The vertices that `place` was computed from."""
    return [(node, number) for node, number in place[0].next_functions if node is not None]
