"""Pictures through decode threads, batches, one engine and writer threads, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from camcli.engine import Engine, Explanation
from camcli.errors import ItemError
from camcli.images import Picture, load_picture
from camcli.inputs import Item
from camcli.records import Failure, ImageResult
from camcli.targets import Chooser

R = TypeVar("R")
Loaded = tuple[Item, Picture | Failure]
Explained = tuple[ImageResult, Picture]


class Stream:
    """One pass over the items: decode on threads, explain in batches on the caller's thread, write on threads."""

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

        `write` runs on a thread and may raise OSError. Once `stopped` says so, no new item is taken, and those
        in flight are finished.
        """
        with ThreadPoolExecutor(self.threads) as readers, ThreadPoolExecutor(self.threads) as writers:
            waiting: deque[Future[R | Failure]] = deque()
            for outcome in self._explained(self._loaded(items, readers)):
                waiting.append(writers.submit(_written, outcome, write))
                while len(waiting) > 2 * self.threads:
                    yield waiting.popleft().result()
            yield from (future.result() for future in waiting)

    def _loaded(self, items: Iterable[Item], readers: ThreadPoolExecutor) -> Iterator[Loaded]:
        ahead: deque[Future[Loaded]] = deque()
        for item in items:
            if self.stopped():
                break
            ahead.append(readers.submit(self._load, item))
            if len(ahead) > self.batch_size + self.threads:
                yield ahead.popleft().result()
        yield from (future.result() for future in ahead)

    def _load(self, item: Item) -> Loaded:
        try:
            return item, load_picture(item.path, self.engine.model.preprocess)
        except ItemError as error:
            return item, failure(item, error)

    def _explained(self, loaded: Iterable[Loaded]) -> Iterator[Explained | Failure]:
        for batch in self._batches(loaded):
            pictures = [picture for _, picture in batch if isinstance(picture, Picture)]
            answers = iter(self._explain(pictures))
            for item, picture in batch:
                yield picture if isinstance(picture, Failure) else _result(item, picture, next(answers))

    def _batches(self, loaded: Iterable[Loaded]) -> Iterator[list[Loaded]]:
        """Runs of items that hold `batch_size` pictures each, failures in between."""
        batch: list[Loaded] = []
        pictures = 0
        for entry in loaded:
            batch.append(entry)
            pictures += isinstance(entry[1], Picture)
            if pictures == self.batch_size:
                yield batch
                batch, pictures = [], 0
        if batch:
            yield batch

    def _explain(self, pictures: Sequence[Picture]) -> list[Explanation | ItemError]:
        """One answer for each picture; when a batch cannot be computed, its pictures are tried one by one."""
        if not pictures:
            return []
        try:
            return self.engine.explain(torch.from_numpy(np.stack([p.input for p in pictures])), self.choose)
        except RuntimeError as error:
            if len(pictures) == 1:
                return [ItemError("forward", type(error).__name__, str(error))]
            return [answer for picture in pictures for answer in self._explain([picture])]


def failure(item: Item, error: ItemError) -> Failure:
    """The record of an error on `item`."""
    return Failure(item.id, str(item.path), error.stage, error.kind, str(error))


def _result(item: Item, picture: Picture, answer: Explanation | ItemError) -> Explained | Failure:
    if isinstance(answer, ItemError):
        return failure(item, answer)
    size = picture.image.size
    return ImageResult(item.id, str(item.path), size, picture.seen, answer.top, answer.heatmaps), picture


def _written(outcome: Explained | Failure, write: Callable[[ImageResult, Picture], R]) -> R | Failure:
    if isinstance(outcome, Failure):
        return outcome
    result, picture = outcome
    try:
        return write(result, picture)
    except OSError as error:
        return Failure(result.id, result.source, "write", type(error).__name__, str(error))
