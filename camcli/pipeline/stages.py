"""The stages of a run on one device, wired; none of them knows another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial

from camcli.config.schema import RunConfig
from camcli.engine.concepts import located
from camcli.engine.engine import Engine, Explanation
from camcli.engine.targets import chooser
from camcli.images.find import Item
from camcli.pipeline.batch import batch
from camcli.pipeline.concepts import kept_concepts
from camcli.pipeline.engines import Ask, Engines
from camcli.pipeline.explain import explain
from camcli.pipeline.files import Files
from camcli.pipeline.flow import Record, Stop, until
from camcli.pipeline.limits import budget_for, cores
from camcli.pipeline.load import load
from camcli.pipeline.paint import in_one_range, paint
from camcli.pipeline.painter import Painter
from camcli.pipeline.prepare import Prepared, torch_threads
from camcli.results.concepts import Concept
from camcli.results.rundir import RunDir


def through_stages(
    config: RunConfig,
    ready: Prepared,
    folder: RunDir,
    fingerprint: str,
    items: Sequence[Item],
    stopped: Callable[[], bool],
    record: Record,
) -> None:
    """load -> batch -> explain -> paint -> record: an outcome for each of `items`, in order, once its files are there.

    On a CPU the cores are divided between the engines; reading and painting take what these leave idle.
    """
    threads, size, watch, stop = cores(config), ready.batch_size, ready.stopwatch, Stop(stopped)
    ask, concepts = _question(config, ready, folder)
    painter = Painter(config, ready.engines[0], folder, fingerprint, watch, concepts)
    engines, files = _engines(config, ready, ask), Files(painter, budget_for(config), watch)
    with torch_threads(max(1, threads // len(ready.engines))), ExitStack() as stages:
        loaded = load(until(stop, items), files.read, threads, partial(files.reader.ahead, size))
        batches = batch(stages.enter_context(closing(loaded)), size, engines.on_gpu)
        explained = explain(until(stop, stages.enter_context(closing(batches))), engines, watch)
        shown = stages.enter_context(closing(explained))
        shown = until(stop, in_one_range(shown)) if files.painter.one_range else shown
        painted = paint(shown, files.write, threads, watch)
        outcomes = stages.enter_context(closing(painted))
        stages.callback(stop.close)  # is the first to be called
        record(outcomes)


def _question(config: RunConfig, ready: Prepared, folder: RunDir) -> tuple[Ask[Explanation], Sequence[Concept]]:
    """What engines are asked of each image: why its classes, or where in it the concepts of all images are."""
    if not config.finds_concepts:
        return Engine.explain, ()
    concepts, named = kept_concepts(folder.path, ready.engines[0].device)
    return partial(located, concepts), named


def _engines(config: RunConfig, ready: Prepared, ask: Ask[Explanation]) -> Engines[Explanation]:
    choose, guard = chooser(config.targets, ready.model.labels), ready.precision.guard
    doubts = partial(guard.doubts, choose=choose, activation=ready.model.activation) if guard else None
    return Engines(ready.engines, ask, choose, ready.batch_size, doubts)
