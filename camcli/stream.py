"""Pictures through decode threads, batches, one engine and writer threads, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from camcli.engine import Engine, Explanation
from camcli.errors import CamcliError, ItemError
from camcli.images import Picture, Room, decode, load_picture
from camcli.inputs import Item, state_of
from camcli.records import Box, Failure, FileState, ImageResult
from camcli.targets import Chooser

KEPT_PIXELS = 4_000_000
_PAINTING = Room(100_000_000)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Held:
    """A picture on its way; a large one leaves its pixels behind and is decoded again to be painted."""

    item: Item
    file: FileState | None
    size: tuple[int, int]
    input: NDArray[np.uint8]
    seen: Box
    image: Image.Image | None

    def picture(self) -> Picture:
        """With its pixels; raises ItemError when the file is no longer what it was."""
        if self.image is not None:
            return Picture(self.image, self.input, self.seen)
        image = decode(self.item.path)
        if image.size != self.size or state_of(self.item.path, with_hash=False) != _unhashed(self.file):
            raise ItemError("read", "Changed", f"{self.item.path}: changed while it was being read")
        return Picture(image, self.input, self.seen)


Explained = tuple[ImageResult, Held]


class Stream:
    """One pass over the items: decode on threads, explain in batches on the caller's thread, write on threads.

    Every forward pass has `batch_size` pictures, the last one filled up with copies: rounding depends on the size of
    a batch and not on what else is in it, so a picture gets the same numbers in any run, part of a run or resumed run.
    """

    def __init__(
        self, engine: Engine, choose: Chooser, batch_size: int, threads: int, stopped: Callable[[], bool]
    ) -> None:
        self.engine = engine
        self.choose = choose
        self.batch_size = batch_size
        self.threads = threads
        self.stopped = stopped

    def outcomes(self, items: Iterable[Item], write: Callable[[ImageResult, Picture], R]) -> Iterator[R | Failure]:
        """What `write` returned, or why an item failed, in the order of `items`.

        `write` runs on a thread; what it raises fails its item, but OutputError ends the stream. Once `stopped` says
        so, no new item is taken, and those in flight are finished.
        """
        with ThreadPoolExecutor(self.threads) as readers, ThreadPoolExecutor(self.threads) as writers:
            waiting: deque[Future[R | Failure]] = deque()
            try:
                for outcome in self._explained(self._loaded(items, readers)):
                    waiting.append(writers.submit(_written, outcome, write))
                    while len(waiting) > 2 * self.threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
                writers.shutdown(wait=False, cancel_futures=True)

    def _loaded(self, items: Iterable[Item], readers: ThreadPoolExecutor) -> Iterator[Held | Failure]:
        ahead: deque[Future[Held | Failure]] = deque()
        for item in items:
            if self.stopped():
                break
            ahead.append(readers.submit(self._load, item))
            if len(ahead) > self.batch_size + self.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _load(self, item: Item) -> Held | Failure:
        file = state_of(item.path)
        try:
            picture = load_picture(item.path, self.engine.model.preprocess)
        except ItemError as error:
            return failure(item, error, file)
        size = picture.image.size
        kept = picture.image if size[0] * size[1] <= KEPT_PIXELS else None
        return Held(item, file, size, picture.input, picture.seen, kept)

    def _explained(self, loaded: Iterable[Held | Failure]) -> Iterator[Explained | Failure]:
        for batch in self._batches(loaded):
            pictures = [held for held in batch if isinstance(held, Held)]
            answers = iter(self._answers(pictures))
            for held in batch:
                yield held if isinstance(held, Failure) else _result(held, next(answers))

    def _batches(self, loaded: Iterable[Held | Failure]) -> Iterator[list[Held | Failure]]:
        """Runs of items that hold `batch_size` pictures each, failures in between; failures wait for few pictures."""
        batch: list[Held | Failure] = []
        pictures = 0
        for entry in loaded:
            batch.append(entry)
            pictures += isinstance(entry, Held)
            if not 0 < pictures < self.batch_size or len(batch) >= 4 * self.batch_size:
                yield batch
                batch, pictures = [], 0
        if batch:
            yield batch

    def _answers(self, pictures: Sequence[Held]) -> list[Explanation | ItemError]:
        """One answer for each picture; out of memory halves the batch, for good."""
        answers: list[Explanation | ItemError] = []
        while len(answers) < len(pictures):
            some = pictures[len(answers) : len(answers) + self.batch_size]
            try:
                answers += self._forward(some)
            except CamcliError:
                raise
            except Exception as error:  # a model may raise anything for a picture that it does not take
                if _out_of_memory(error) and self.batch_size > 1:
                    self._halve()
                else:
                    answers += self._one_by_one(some, error)
        return answers

    def _forward(self, pictures: Sequence[Held]) -> list[Explanation | ItemError]:
        inputs = [held.input for held in pictures]
        filled = inputs + inputs[-1:] * (self.batch_size - len(inputs))
        return self.engine.explain(torch.from_numpy(np.stack(filled)), self.choose)[: len(pictures)]

    def _halve(self) -> None:
        self.batch_size = -(-self.batch_size // 2)
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()

    def _one_by_one(self, pictures: Sequence[Held], error: Exception) -> list[Explanation | ItemError]:
        """The answers of a batch that failed: only the pictures that fail alone are to blame."""
        if len(pictures) == 1:
            return [ItemError("forward", type(error).__name__, str(error))]
        answers: list[Explanation | ItemError] = []
        for held in pictures:
            try:
                answers += self._forward([held])
            except Exception as alone:  # as above
                answers.append(ItemError("forward", type(alone).__name__, str(alone)))
        return answers


def even_batches(pictures: int, batch_size: int) -> int:
    """The size of at most `batch_size` with which `pictures` fill their batches best.

    Sizes above 4 are multiples of 4: libraries compute the pictures of odd batches in different orders.
    """
    batches = max(1, -(-pictures // batch_size))
    even = max(1, -(-pictures // batches))
    return even if even <= 2 else min(batch_size, -(-even // 4) * 4)


def failure(item: Item, error: ItemError, file: FileState | None = None) -> Failure:
    """The record of an error on `item`."""
    return Failure(item.id, str(item.path), error.stage, error.kind, str(error), file)


def _out_of_memory(error: Exception) -> bool:
    """CUDA has its own class; on the CPU torch raises RuntimeError."""
    known = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in known)


def _unhashed(file: FileState | None) -> FileState | None:
    return FileState(file.bytes, file.mtime_ns) if file else None


def _result(held: Held, answer: Explanation | ItemError) -> Explained | Failure:
    if isinstance(answer, ItemError):
        return failure(held.item, answer, held.file)
    item = held.item
    result = ImageResult(item.id, str(item.path), held.size, held.seen, answer.top, answer.heatmaps, held.file)
    return result, held


def _written(outcome: Explained | Failure, write: Callable[[ImageResult, Picture], R]) -> R | Failure:
    if isinstance(outcome, Failure):
        return outcome
    result, held = outcome
    try:
        with _PAINTING.room(0 if held.image else held.size[0] * held.size[1]):
            return write(result, held.picture())
    except CamcliError:
        raise
    except ItemError as error:
        return failure(held.item, error, held.file)
    except Exception as error:  # encoders raise many kinds, for example for a picture too long for its format
        return failure(held.item, ItemError("write", type(error).__name__, str(error)), held.file)
