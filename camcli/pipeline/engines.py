"""Equal engines on one device, and what becomes of images that they cannot explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch
from torch import Tensor

from camcli.engine.engine import Engine
from camcli.engine.targets import Chooser, at_least_one
from camcli.errors import CamcliError, ItemError
from camcli.pipeline.faults import device_lost, every_image_fails, lost, out_of_memory

A = TypeVar("A")
Ask = Callable[[Engine, Tensor, Chooser, int | None], Sequence[A | ItemError]]
"""What an engine is asked of uint8 [B,H,W,3], as `Engine.explain` is: one answer for each of the first so many."""


class Engines(Generic[A]):
    """Answers for batches, each engine for one of its own at the same time.

    Every forward pass has `batch_size` images, the last one filled up with copies: rounding depends on the size of
    a batch and not on what else is in it, so an image gets the same numbers in any run, part of a run or resumed run.

    ask: what is asked of an engine, such as `Engine.explain`. doubts: says which answers an engine is asked for again
    in fp32, in batches of a size of their own.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        ask: Ask[A],
        choose: Chooser,
        batch_size: int,
        doubts: Callable[[A | ItemError], bool] | None = None,
    ) -> None:
        self.engines = engines
        self.ask = ask
        self.preprocess = engines[0].model.preprocess
        self.on_gpu = engines[0].device.type == "cuda"
        self.choose = choose
        self.batch_size = batch_size
        self.doubts = doubts
        self.again = redo_size(batch_size)
        self._explained_before: Tensor | None = None
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for engine in engines:
            self._free.put(engine)

    def answers(self, inputs: Tensor) -> list[A | ItemError]:
        """One for each image of uint8 [N,H,W,3]; raises DeviceError where no image can be explained any more."""
        engine = self._free.get()
        try:
            found = self._answers(engine, inputs)
            if self.doubts:
                self._ask_again(self.doubts, engine, inputs, found)
            self._vouch(engine, inputs, found)
        finally:
            self._free.put(engine)
        return found

    def _answers(self, engine: Engine, inputs: Tensor) -> list[A | ItemError]:
        """One answer for each image; out of memory halves the batch, for good."""
        answers: list[A | ItemError] = []
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

    def _ask_again(
        self, doubts: Callable[[A | ItemError], bool], engine: Engine, inputs: Tensor, answers: list[A | ItemError]
    ) -> None:
        """Put answers in fp32 in place of those in doubt; what else is in the batch has no part in it."""
        exact = engine.at("fp32")
        doubtful = [i for i, answer in enumerate(answers) if doubts(answer)]
        for start in range(0, len(doubtful), self.again):
            some = doubtful[start : start + self.again]
            for i, answer in zip(some, self._redone(exact, inputs[some]), strict=True):
                answers[i] = answer

    def _redone(self, exact: Engine, inputs: Tensor) -> Sequence[A | ItemError]:
        try:
            return self._forward(exact, inputs, self.again, self.choose)
        except CamcliError:
            raise
        except Exception as error:  # as above
            if device_lost(error):
                raise lost(exact.device, error) from error
            return self._one_by_one(exact, inputs, error, self.again)

    def _forward(self, engine: Engine, inputs: Tensor, size: int, choose: Chooser) -> Sequence[A | ItemError]:
        missing = size - len(inputs)
        filled = torch.cat([inputs, inputs[-1:].expand(missing, -1, -1, -1)]) if missing else inputs
        return self.ask(engine, filled, choose, len(inputs))

    def _halve(self, size: int) -> None:
        """Smaller than `size` from now on, unless another engine has seen to that."""
        self.batch_size = min(self.batch_size, -(-size // 2))
        if self.on_gpu:
            torch.cuda.empty_cache()

    def _one_by_one(self, engine: Engine, inputs: Tensor, error: Exception, size: int) -> list[A | ItemError]:
        """The answers of a batch that failed: only the images that fail alone are to blame."""
        if len(inputs) == 1:
            return [ItemError("forward", type(error).__name__, str(error))]
        answers: list[A | ItemError] = []
        for one in torch.split(inputs, 1):
            answers += self._alone(engine, one, self.choose, size)
        return answers

    def _alone(self, engine: Engine, one: Tensor, choose: Chooser, size: int) -> Sequence[A | ItemError]:
        try:
            return self._forward(engine, one, size, choose)
        except CamcliError:
            raise
        except Exception as error:  # as above
            if device_lost(error):
                raise lost(engine.device, error) from error
            return [ItemError("forward", type(error).__name__, str(error))]

    def _vouch(self, engine: Engine, inputs: Tensor, answers: Sequence[A | ItemError]) -> None:
        """Where a batch ends in a failure, make sure that the engine still explains an image that is not to blame.

        That is one which was explained before, or noise as long as there is none. Raises DeviceError.
        """
        good = next((i for i, answer in enumerate(answers) if not isinstance(answer, ItemError)), None)
        if self._explained_before is None and good is not None:
            self._explained_before = inputs[good : good + 1].clone()
        if not answers or not isinstance(answers[-1], ItemError):
            return
        known = self._noise() if self._explained_before is None else self._explained_before
        [answer] = self._alone(engine, known, at_least_one(self.choose), self.batch_size)
        if isinstance(answer, ItemError):
            raise every_image_fails(answer.kind, str(answer))

    def _noise(self) -> Tensor:
        """uint8 [1,H,W,3], always the same."""
        size = (1, *self.preprocess.size, self.preprocess.channels)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def redo_size(batch_size: int) -> int:
    """How many images of a batch are explained again in one forward pass; above 4, multiples of 4.

    About as many as are in doubt where one in sixteen is; on a CPU, one by one costs hardly more.
    """
    size = max(1, batch_size // 16)
    return size if size <= 2 else -(-size // 4) * 4
