"""Images through decode threads, batches, one engine and writer threads, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camcli.engine.engine import Engine, Explanation
from camcli.engine.precision import Guard
from camcli.engine.targets import Chooser
from camcli.errors import CamcliError, ItemError
from camcli.images.decode import LoadedImage, decode, loading
from camcli.images.find import Item, state_of
from camcli.images.memory import Budget
from camcli.pipeline.faults import device_lost, every_image_fails, lost, out_of_memory
from camcli.pipeline.stopwatch import Step, Stopwatch
from camcli.records import Failure, FileState, ImageResult

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Waiting:
    """An image on its way; where memory is short it left its pixels behind and is decoded again to be painted."""

    item: Item
    file: FileState | None
    image: LoadedImage
    without_pixels: bool = False

    def whole(self) -> LoadedImage:
        """The image as it is to be painted; raises ItemError when the file is no longer what it was."""
        if not self.without_pixels:
            return self.image
        image = decode(self.item.path)
        if image.size != self.image.size or state_of(self.item.path, with_hash=False) != _unhashed(self.file):
            raise ItemError("read", "Changed", f"{self.item.path}: changed while it was being read")
        return replace(self.image, image=image)


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and failures in order; inputs: uint8 [N,H,W,3] of the N images."""

    entries: Sequence[Waiting | Failure]
    inputs: Tensor


Explained = tuple[ImageResult, Waiting]


class Stream:
    """One pass over the items: decode on threads, explain in batches, write on threads.

    Every forward pass has `batch_size` images, the last one filled up with copies: rounding depends on the size of
    a batch and not on what else is in it, so an image gets the same numbers in any run, part of a run or resumed run.
    While batches are explained, the next one is put together.

    engines: equal ones, each for a batch of its own at the same time.
    budget: what decoded images may take.
    whole: `write` needs the images' own pixels, not only what the model saw.
    guard: images whose answer it doubts are explained again in fp32, in batches of a size of their own.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        choose: Chooser,
        batch_size: int,
        threads: int,
        stopped: Callable[[], bool],
        budget: Budget,
        stopwatch: Stopwatch,
        whole: bool = True,
        guard: Guard | None = None,
    ) -> None:
        self.engines = engines
        self.preprocess = engines[0].model.preprocess
        self.on_gpu = engines[0].device.type == "cuda"
        self.choose = choose
        self.batch_size = self._together = batch_size
        self.threads = threads
        self.stopped = stopped
        self.whole = whole
        self.guard = guard
        self.again = redo_size(batch_size)
        self._timing = stopwatch.timing
        self.budget = budget
        self._explained_before: Tensor | None = None
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for engine in engines:
            self._free.put(engine)

    def outcomes(
        self,
        items: Iterable[Item],
        write: Callable[[ImageResult, LoadedImage], R],
        cost: Callable[[ImageResult], int] = lambda result: 0,
    ) -> Generator[R | Failure]:
        """What `write` returned, or why an item failed, in the order of `items`.

        `write` runs on a thread; what it raises fails its item, but OutputError ends the stream. Once `stopped` says
        so, the batches that engines are at are finished, at most one each, and nothing else is begun.
        cost: bytes that `write` takes beside the image.
        """
        with (
            ThreadPoolExecutor(self.threads) as readers,
            ThreadPoolExecutor(1) as stager,
            ThreadPoolExecutor(len(self.engines)) as explainers,
            ThreadPoolExecutor(self.threads) as writers,
        ):
            try:
                batches = _ahead(self._batches(self._loaded(items, readers)), stager)
                yield from self._write_all(self._explained(batches, explainers), write, cost, writers)
            finally:
                for pool in (readers, stager, explainers, writers):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _write_all(
        self,
        outcomes: Iterable[Explained | Failure],
        write: Callable[[ImageResult, LoadedImage], R],
        cost: Callable[[ImageResult], int],
        writers: ThreadPoolExecutor,
    ) -> Iterator[R | Failure]:
        waiting: deque[Future[R | Failure]] = deque()
        for outcome in outcomes:
            waiting.append(writers.submit(self._written, outcome, write, cost))
            del outcome  # the only other hold on its image
            while len(waiting) > self.batch_size + 2 * self.threads:
                yield self._next("wait for files", waiting)
        while waiting:
            yield self._next("wait for files", waiting)

    def _next(self, step: Step, waiting: deque[Future[T]]) -> T:
        with self._timing(step):
            return waiting.popleft().result()

    def _loaded(self, items: Iterable[Item], readers: ThreadPoolExecutor) -> Iterator[Waiting | Failure]:
        ahead: deque[Future[Waiting | Failure]] = deque()
        for item in items:
            if self.stopped():
                return
            ahead.append(readers.submit(self._load, item))
            while len(ahead) > self.threads + (0 if self.budget.is_scarce else self.batch_size):
                yield ahead.popleft().result()
        while ahead and not self.stopped():
            yield ahead.popleft().result()

    def _load(self, item: Item) -> Waiting | Failure:
        file = state_of(item.path)
        try:
            with self._timing("decode"), loading(item.path, self.preprocess, self.whole, self.budget) as image:
                if self.budget.keep(image.bytes):
                    return Waiting(item, file, image)
                return Waiting(item, file, replace(image, image=None), without_pixels=True)
        except ItemError as error:
            return failure(item, error, file)

    def _batches(self, loaded: Iterable[Waiting | Failure]) -> Iterator[Batch]:
        """Runs of items that hold as many images each, failures in between; failures wait for few images.

        Their size stays as it was when memory runs out, so that what is in a batch does not depend on when that is.
        """
        entries: list[Waiting | Failure] = []
        images = 0
        for entry in loaded:
            entries.append(entry)
            images += isinstance(entry, Waiting)
            if not 0 < images < self._together or len(entries) >= 4 * self._together:
                yield self._batch(entries)
                entries, images = [], 0
        if entries:
            yield self._batch(entries)

    def _batch(self, entries: Sequence[Waiting | Failure]) -> Batch:
        inputs = [entry.image.input for entry in entries if isinstance(entry, Waiting)]
        stacked = torch.from_numpy(np.stack(inputs)) if inputs else torch.empty(0)
        return Batch(entries, stacked.pin_memory() if self.on_gpu else stacked)

    def _explained(self, batches: Iterator[Batch], explainers: ThreadPoolExecutor) -> Iterator[Explained | Failure]:
        under_way: deque[Future[list[Explained | Failure]]] = deque()
        while True:
            with self._timing("wait for images"):
                batch = next(batches, None)
            if batch is None or self.stopped():
                break
            under_way.append(explainers.submit(self._explain, batch))
            del batch
            while len(under_way) > len(self.engines):
                yield from self._finished(under_way)
        while under_way:
            yield from self._finished(under_way)

    def _finished(self, under_way: deque[Future[list[Explained | Failure]]]) -> Iterator[Explained | Failure]:
        """Of the oldest batch; nothing here holds on to an image that was passed on."""
        batch = self._next("wait for the model", under_way)
        found = deque(batch)
        del batch
        while found:
            yield found.popleft()

    def _explain(self, batch: Batch) -> list[Explained | Failure]:
        engine = self._free.get()
        try:
            if self.stopped():
                return []
            found = self._answers(engine, batch.inputs)
            if self.guard:
                self._ask_again(self.guard, engine, batch.inputs, found)
            self._vouch(engine, batch.inputs, found)
        finally:
            self._free.put(engine)
        answers = iter(found)
        return [e if isinstance(e, Failure) else self._result(e, next(answers)) for e in batch.entries]

    def _answers(self, engine: Engine, inputs: Tensor) -> list[Explanation | ItemError]:
        """One answer for each image; out of memory halves the batch, for good."""
        answers: list[Explanation | ItemError] = []
        while len(answers) < len(inputs):
            size = self.batch_size
            some = inputs[len(answers) : len(answers) + size]
            try:
                answers += self._forward(engine, some, size, self.choose)
            except CamcliError:
                raise
            except Exception as error:  # a model may raise anything for an image that it does not take
                if device_lost(error):
                    raise lost(engine.device, error) from error
                if out_of_memory(error) and size > 1:
                    self._halve(size)
                else:
                    answers += self._one_by_one(engine, some, error, self.batch_size)
        return answers

    def _ask_again(self, guard: Guard, engine: Engine, inputs: Tensor, answers: list[Explanation | ItemError]) -> None:
        """Put answers in fp32 in place of those in doubt; what else is in the batch has no part in it."""
        activation, exact = engine.model.activation, engine.at("fp32")
        doubtful = [i for i, answer in enumerate(answers) if guard.doubts(answer, self.choose, activation)]
        for start in range(0, len(doubtful), self.again):
            some = doubtful[start : start + self.again]
            for i, answer in zip(some, self._redone(exact, inputs[some]), strict=True):
                answers[i] = answer

    def _redone(self, exact: Engine, inputs: Tensor) -> list[Explanation | ItemError]:
        try:
            return self._forward(exact, inputs, self.again, self.choose)
        except CamcliError:
            raise
        except Exception as error:  # as above
            if device_lost(error):
                raise lost(exact.device, error) from error
            return self._one_by_one(exact, inputs, error, self.again)

    def _forward(self, engine: Engine, inputs: Tensor, size: int, choose: Chooser) -> list[Explanation | ItemError]:
        missing = size - len(inputs)
        filled = torch.cat([inputs, inputs[-1:].expand(missing, -1, -1, -1)]) if missing else inputs
        return engine.explain(filled, choose, len(inputs))

    def _halve(self, size: int) -> None:
        """Smaller than `size` from now on, unless another engine has seen to that."""
        self.batch_size = min(self.batch_size, -(-size // 2))
        if self.on_gpu:
            torch.cuda.empty_cache()

    def _one_by_one(self, engine: Engine, inputs: Tensor, error: Exception, size: int) -> list[Explanation | ItemError]:
        """The answers of a batch that failed: only the images that fail alone are to blame."""
        if len(inputs) == 1:
            return [ItemError("forward", type(error).__name__, str(error))]
        answers: list[Explanation | ItemError] = []
        for one in torch.split(inputs, 1):
            answers += self._alone(engine, one, self.choose, size)
        return answers

    def _alone(self, engine: Engine, one: Tensor, choose: Chooser, size: int) -> list[Explanation | ItemError]:
        try:
            return self._forward(engine, one, size, choose)
        except CamcliError:
            raise
        except Exception as error:  # as above
            if device_lost(error):
                raise lost(engine.device, error) from error
            return [ItemError("forward", type(error).__name__, str(error))]

    def _vouch(self, engine: Engine, inputs: Tensor, answers: Sequence[Explanation | ItemError]) -> None:
        """Where a batch ends in a failure, make sure that the engine still explains an image that is not to blame.

        That is one which was explained before, or noise as long as there is none. Raises DeviceError.
        """
        good = next((i for i, answer in enumerate(answers) if isinstance(answer, Explanation)), None)
        if self._explained_before is None and good is not None:
            self._explained_before = inputs[good : good + 1].clone()
        if not answers or isinstance(answers[-1], Explanation):
            return
        known = self._noise() if self._explained_before is None else self._explained_before
        [answer] = self._alone(engine, known, self._choose_some, self.batch_size)
        if isinstance(answer, ItemError):
            raise every_image_fails(answer.kind, str(answer))

    def _noise(self) -> Tensor:
        """uint8 [1,H,W,3], always the same."""
        size = (1, *self.preprocess.size, 3)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def _choose_some(self, probabilities: NDArray[np.float32]) -> list[int]:
        return self.choose(probabilities) or [int(probabilities.argmax())]

    def _result(self, held: Waiting, answer: Explanation | ItemError) -> Explained | Failure:
        if isinstance(answer, ItemError):
            self.budget.give_back(held.image.bytes)
            return failure(held.item, answer, held.file)
        item, image = held.item, held.image
        found = item.id, str(item.path), image.size, image.seen, answer.top, answer.heatmaps, held.file
        return ImageResult(*found, answer.precision), held

    def _written(
        self,
        outcome: Explained | Failure,
        write: Callable[[ImageResult, LoadedImage], R],
        cost: Callable[[ImageResult], int],
    ) -> R | Failure:
        if isinstance(outcome, Failure):
            return outcome
        result, held = outcome
        try:
            with self.budget.room(cost(result) + (held.image.cost if held.without_pixels else 0)):
                return write(result, held.whole())
        except CamcliError:
            raise
        except ItemError as error:
            return failure(held.item, error, held.file)
        except Exception as error:  # encoders raise many kinds, for example for an image too long for its format
            return failure(held.item, ItemError("write", type(error).__name__, str(error)), held.file)
        finally:
            self.budget.give_back(held.image.bytes)


def _ahead(batches: Iterator[Batch], stager: ThreadPoolExecutor) -> Iterator[Batch]:
    """The same, with the next one always under way on a thread."""
    coming = stager.submit(next, batches, None)
    while (batch := coming.result()) is not None:
        coming = stager.submit(next, batches, None)
        yield batch
        del batch


def redo_size(batch_size: int) -> int:
    """How many images of a batch are explained again in one forward pass; above 4, multiples of 4.

    About as many as are in doubt where one in sixteen is; on a CPU, one by one costs hardly more.
    """
    size = max(1, batch_size // 16)
    return size if size <= 2 else -(-size // 4) * 4


def failure(item: Item, error: ItemError, file: FileState | None = None) -> Failure:
    """The record of an error on `item`."""
    return Failure(item.id, str(item.path), error.stage, error.kind, str(error), file)


def _unhashed(file: FileState | None) -> FileState | None:
    return FileState(file.bytes, file.mtime_ns) if file else None
