"""Items to outcomes with engines that are ready: decode, explain, paint."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from camcli.config.schema import RunConfig
from camcli.engine.targets import chooser
from camcli.images.find import Item
from camcli.images.memory import Budget, budget_size, cached_blocks
from camcli.pipeline.limits import usable_memory
from camcli.pipeline.painter import Outcome, Painter
from camcli.pipeline.prepare import Prepared, cores, torch_threads
from camcli.pipeline.stream import Stream
from camcli.results.rundir import RunDir


def explain(
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
    painter = Painter(config, ready.engines[0], folder, fingerprint, ready.stopwatch)
    choose = chooser(config.targets, ready.model.labels)
    memory = budget_size(config.runtime.memory, usable_memory())
    budget = Budget(memory - cached_blocks(memory))
    threads, guard = cores(config), ready.precision.guard
    stream = Stream(
        ready.engines, choose, ready.batch_size, threads, stopped, budget, ready.stopwatch, painter.whole, guard
    )
    with torch_threads(max(1, threads // len(ready.engines))):
        yield from painter.outcomes(stream, items)
