"""Which points of a computation graph the whole prediction flows through.

A vertex is one output of one autograd node. Every walk from the loss to the image follows edges that only
go down in a topological order, so a vertex lies on all walks exactly when no edge jumps over it: the
dominators of the graph in one sweep (Lengauer and Tarjan, 1979, solve the general case).
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator

from torch.autograd.graph import GradientEdge, Node

Vertex = tuple[Node, int]
State = tuple[Vertex, bool]


def vertex(edge: GradientEdge) -> Vertex:
    """The vertex of a tensor's gradient edge."""
    return edge.node, edge.output_nr


def cut_points(loss: GradientEdge, source: GradientEdge) -> list[Vertex]:
    """The vertices on every walk from `loss` to `source`, loss first."""
    order = _topological(vertex(loss), vertex(source))
    position = {place: index for index, place in enumerate(order)}
    cuts, reach = [], 0
    for index, place in enumerate(order):
        if reach <= index:
            cuts.append(place)
        reach = max([reach, *(position[below] for below in _below(place) if below in position)])
    return cuts


def _topological(start: Vertex, end: Vertex) -> list[Vertex]:
    """The vertices that lie on a walk from `start` to `end`, each before all that are below it."""
    leads: dict[Vertex, bool] = {end: True}
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
    return finished[::-1]


def _below(place: Vertex) -> list[Vertex]:
    """The vertices that `place` was computed from."""
    return [(node, number) for node, number in place[0].next_functions if node is not None]


def smallest_cut(loss: GradientEdge, source: GradientEdge, allowed: Collection[Vertex], limit: int) -> list[Vertex]:
    """The smallest set of `allowed` vertices that blocks every walk, nearest to the loss among its equals.

    Empty when more than `limit` are needed. By Menger's theorem: as many walks are found as share no allowed
    vertex, and the cut is where the search for one more gets stuck.
    """
    order = _topological(vertex(loss), vertex(source))
    flow = _Flow(set(order), frozenset(allowed))
    start, end = (vertex(loss), False), (vertex(source), True)
    for _ in range(limit + 1):
        reached = flow.search(start)
        if end not in reached:
            return [place for place in order if (place, False) in reached and (place, True) not in reached]
        flow.send(end, reached)
    return []


class _Flow:
    """Unit flow over vertices split in two: entered (False) and left (True); one unit passes an allowed one."""

    def __init__(self, vertices: Collection[Vertex], allowed: frozenset[Vertex]) -> None:
        self.vertices = vertices
        self.allowed = allowed
        self.sent: dict[State, Counter[State]] = defaultdict(Counter)

    def search(self, start: State) -> dict[State, State | None]:
        """The states that one more unit can reach, each with the state before it."""
        before: dict[State, State | None] = {start: None}
        queue = deque([start])
        while queue:
            state = queue.popleft()
            for other in self._open(state):
                if other not in before:
                    before[other] = state
                    queue.append(other)
        return before

    def _open(self, state: State) -> Iterator[State]:
        place, left = state
        if left:
            yield from ((below, False) for below in _below(place) if below in self.vertices)
        elif place not in self.allowed or not self.sent[place, True][state]:
            yield place, True
        yield from (other for other, units in self.sent[state].items() if units)

    def send(self, end: State, before: dict[State, State | None]) -> None:
        """One unit along the walk that ended at `end`; going against an earlier unit takes that one back."""
        state, previous = end, before[end]
        while previous is not None:
            if self.sent[previous][state]:
                self.sent[previous][state] -= 1
            else:
                self.sent[state][previous] += 1
            state, previous = previous, before[previous]
