"""Concepts that all images of a run share: learnt before the first overlay, and kept in the run folder.

Two passes before that of any run: one over a sample of the images, to learn the concepts; and one over what the model
saw of some of these, to find the classes that each concept raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from camcli.config.schema import DFF
from camcli.engine import concepts as questions
from camcli.engine.concepts import Concepts
from camcli.engine.engine import Engine
from camcli.engine.methods.factors import Factors
from camcli.errors import ItemError, NoInputsError
from camcli.images.find import Item
from camcli.pipeline.batch import batch
from camcli.pipeline.engines import A, Ask, Engines
from camcli.pipeline.explain import Answered, answered
from camcli.pipeline.files import Reader
from camcli.pipeline.flow import Loaded, Stop, failure, until
from camcli.pipeline.job import Job
from camcli.pipeline.limits import budget_for, cores
from camcli.pipeline.load import load
from camcli.pipeline.prepare import Prepared, torch_threads
from camcli.pipeline.progress import Progress
from camcli.records import Failure
from camcli.render.concepts import colours
from camcli.results.concepts import Concept, RaisedClass, SampledImage, read_learnt, read_vectors, write_learnt
from camcli.results.manifest import ids_hash
from camcli.results.rundir import RunDir

SAMPLE = 256
EXAMINED = 32
CLASSES = 3


def have_concepts(job: Job, ready: Prepared, folder: RunDir, fingerprint: str, progress: Progress) -> None:
    """Learn the concepts of the job's images, unless `folder` keeps those that the same images and settings gave.

    Other images have other concepts, which make all that is there out of date: it is deleted.
    Raises NoInputsError where no image of the sample could be read.
    """
    sample, images = spread(job.items, SAMPLE), ids_hash(item.id for item in job.items)
    kept = None if job.policy.fresh else read_learnt(folder.path)
    if kept and kept.images_sha256 == images and kept.holds(sample, fingerprint, job.policy.check):
        return
    threads = cores(job.config)
    with _lent(ready) as engines, torch_threads(max(1, threads // len(engines))):
        passes = _Passes(job, ready, engines, progress)
        seen = passes.look(sample)
        with torch_threads(threads):
            concepts = questions.learn(torch.cat(seen.activations).to(engines[0].device), passes.count)
        raised = passes.raised(concepts, seen.examined)
    folder.start_over()
    named = _named(concepts, raised, ready.model.labels)
    write_learnt(folder, fingerprint, images, named, seen.files, concepts.vectors.cpu().numpy())


def kept_concepts(out: Path, device: torch.device) -> tuple[Concepts, Sequence[Concept]]:
    """The concepts that the run folder `out` keeps, for engines on `device`, and what is known of each."""
    learnt = read_learnt(out)
    assert learnt is not None, "learnt before any image is painted"
    return Concepts(*map(torch.from_numpy, read_vectors(out))).to(device), learnt.concepts


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` items, evenly over the list."""
    step = max(1.0, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


@contextmanager
def _lent(ready: Prepared) -> Iterator[Sequence[Engine]]:
    """The engines to learn with; where each device gets a process of its own, one that is lent the first device."""
    if len(ready.devices) == 1:
        yield ready.engines
        return
    engine = ready.engines[0]
    engine.module.to(engine.device)
    try:
        yield [engine]
    finally:
        engine.module.to("cpu")


@dataclass(slots=True)
class _Seen:
    """Of a sample: the file of each image, activations [n,C] of each that was read, and some of these to examine.

    A row of activations is what the layer has at one location.
    """

    files: list[SampledImage] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    examined: list[Loaded] = field(default_factory=list)


class _Passes:
    """The passes over a sample, with the threads and the memory of a run. count: how many concepts to look for."""

    def __init__(self, job: Job, ready: Prepared, engines: Sequence[Engine], progress: Progress) -> None:
        told = ready.engines[0].options[DFF]
        assert isinstance(told, Factors), "what the method declares"
        self.count = told.concepts
        self.config = job.config
        self.ready = ready
        self.engines = engines
        self.progress = progress

    def look(self, sample: Sequence[Item]) -> _Seen:
        """Read each image once; raises NoInputsError where none can be read."""
        reader = Reader(self.ready.model.preprocess, 0, budget_for(self.config), self.ready.stopwatch)
        threads, size = cores(self.config), self.ready.batch_size
        stop, seen, failures = Stop(lambda: False), _Seen(), list[Failure]()
        self.progress.begin(len(sample), 0, "learning concepts")
        with closing(load(until(stop, sample), reader.read, threads, partial(reader.ahead, size))) as loaded:
            for position, one in enumerate(self._asked(questions.activations, loaded, stop)):
                found = one if isinstance(one, Failure) else _failed(one)
                seen.files.append(_sampled(one))
                if found:
                    failures.append(found)
                elif isinstance(one, Answered) and isinstance(one.answer, Tensor):
                    seen.activations.append(one.answer)
                    if len(seen.examined) * len(sample) <= position * EXAMINED:
                        seen.examined.append(one.loaded)
                self.progress.advance(None)
        if not seen.activations:
            raise NoInputsError(_nothing(failures))
        return seen

    def raised(self, concepts: Concepts, examined: Sequence[Loaded]) -> Tensor:
        """[k,K]: by how much each concept raises each logit, on average."""
        self.progress.begin(len(examined), 0, "naming concepts")
        rows: list[Tensor] = []
        for one in self._asked(partial(questions.raised, concepts), examined, Stop(lambda: False)):
            if isinstance(one, Answered) and isinstance(one.answer, Tensor):
                rows.append(one.answer)
            self.progress.advance(None)
        nothing = torch.zeros(self.count, len(self.ready.model.labels))
        return torch.stack(rows).mean(dim=0) if rows else nothing

    def _asked(self, ask: Ask[A], loaded: Iterable[Loaded | Failure], stop: Stop) -> Iterator[Answered[A] | Failure]:
        engines = Engines(self.engines, ask, lambda probabilities: [], self.ready.batch_size)
        with ExitStack() as stages:
            batches = stages.enter_context(closing(batch(loaded, engines.batch_size, engines.on_gpu)))
            found = stages.enter_context(closing(answered(until(stop, batches), engines, self.ready.stopwatch)))
            stages.callback(stop.close)
            yield from found


def _failed(one: Answered[Tensor]) -> Failure | None:
    return failure(one.loaded.item, one.answer, one.loaded.file) if isinstance(one.answer, ItemError) else None


def _sampled(one: Answered[Tensor] | Failure) -> SampledImage:
    if isinstance(one, Failure):
        return SampledImage(id=one.id, input=one.file)
    return SampledImage(id=one.loaded.item.id, input=one.loaded.file)


def _nothing(failures: Sequence[Failure]) -> str:
    first = failures[0]
    return (
        f"none of {len(failures)} images could be read, so there is nothing to factorise; {first.id}: {first.message}"
    )


def _named(concepts: Concepts, raised: Tensor, labels: Sequence[str]) -> list[Concept]:
    """The concepts with the classes that [k,K] `raised` says."""
    named = []
    for index, (row, colour) in enumerate(zip(raised, colours(len(raised)), strict=True)):
        best = [int(c) for c in row.argsort(descending=True)[:CLASSES] if row[c] > 0]
        classes = tuple(RaisedClass(index=c, label=labels[c], raised=round(float(row[c]), 4)) for c in best)
        strongest = float(concepts.strongest[index])
        named.append(Concept(index=index, colour=colour, strongest=strongest, classes=classes))
    return named
