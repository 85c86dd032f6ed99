"""The stages of a run on one device, wired; none of them knows another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from functools import partial

from camcli.config.schema import RunConfig
from camcli.engine.engine import Engine
from camcli.engine.targets import chooser
from camcli.images.find import Item
from camcli.images.memory import Budget, budget_size, cached_blocks
from camcli.pipeline.batch import batch
from camcli.pipeline.engines import Engines
from camcli.pipeline.explain import explain
from camcli.pipeline.flow import Outcome, Stop
from camcli.pipeline.limits import usable_memory
from camcli.pipeline.load import Reader, load
from camcli.pipeline.paint import paint
from camcli.pipeline.painter import Painter
from camcli.pipeline.prepare import Prepared, cores, torch_threads
from camcli.results.rundir import RunDir


def outcomes(
    config: RunConfig,
    ready: Prepared,
    folder: RunDir,
    fingerprint: str,
    items: Sequence[Item],
    stopped: Callable[[], bool],
) -> Generator[Outcome]:
    """One outcome for each of `items`, in their order, once its files are in `folder`.

    On a CPU the cores are divided between the engines; decoding and painting take what these leave idle.
    """
    threads, size, stopwatch, stop = cores(config), ready.batch_size, ready.stopwatch, Stop(stopped)
    memory = budget_size(config.runtime.memory, usable_memory())
    budget = Budget(memory - cached_blocks(memory))
    choose, guard = chooser(config.targets, ready.model.labels), ready.precision.guard
    doubts = partial(guard.doubts, choose=choose, activation=ready.model.activation) if guard else None
    engines = Engines(ready.engines, Engine.explain, choose, size, doubts)
    painter = Painter(config, ready.engines[0], folder, fingerprint, stopwatch)
    reader = Reader(ready.model.preprocess, painter.whole, budget, stopwatch)
    with torch_threads(max(1, threads // len(ready.engines))), ExitStack() as stages:
        loaded = stages.enter_context(closing(load(items, reader, threads, size, stop)))
        batches = stages.enter_context(closing(batch(loaded, size, engines.on_gpu)))
        explained = stages.enter_context(closing(explain(batches, engines, stop, stopwatch)))
        painted = stages.enter_context(closing(paint(explained, painter, budget, threads, size, stop)))
        stages.callback(stop.close)  # is the first to be called
        yield from painted
