"""Work on several threads whose results keep the order of what they are about."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from threading import Condition, Lock
from typing import Generic, Literal, TypeVar

R = TypeVar("R")
T = TypeVar("T")
Phase = Literal["room", "thing", "work", "rest"]
"""What a thread is at: waiting for results to be taken, for something to work on, working; and who takes the results,
once there is nothing more to begin: waiting for the last of them."""
Timing = Callable[[Phase], AbstractContextManager[None]]


def in_order(
    work: Callable[[T], R],
    things: Iterable[T],
    threads: int,
    most: Callable[[], int],
    timing: Timing = lambda phase: nullcontext(),
) -> Generator[R]:
    """`work` of each thing, in the order of `things`; the threads have ended when this is closed.

    A thread that is free takes the next thing itself, so none is taken before its work begins.
    most: how many may be under way or done before they are asked for. timing: measures what the threads are at.
    """
    line = _Line(work, things, most, timing)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in range(threads):
                pool.submit(line.serve)
            while (result := line.oldest()) is not None:
                yield result.value()
                del result  # nothing here holds on to an image that was passed on
        finally:
            line.end()


class _Result(Generic[R]):
    """What becomes of one thing: a value or an error, once it is done."""

    def __init__(self) -> None:
        self.done = False
        self.error: BaseException | None = None
        self._values: list[R] = []

    def come_of(self, work: Callable[[T], R], thing: T) -> None:
        """The value of `work`, or the error that it raises."""
        try:
            self._values.append(work(thing))
        except BaseException as error:  # raised again on the thread that takes the result
            self.error = error

    def value(self) -> R:
        """Ask once; raises the error."""
        if self.error is not None:
            raise self.error
        return self._values.pop()


class _Line(Generic[T, R]):
    """Results in the order in which their things were taken. begun: how many are promised, under way or not taken."""

    def __init__(self, work: Callable[[T], R], things: Iterable[T], most: Callable[[], int], timing: Timing) -> None:
        self._work, self._most, self._timing = work, most, timing
        self._things = iter(things)
        self._taking = Lock()
        lock = Lock()
        self._room, self._ready = Condition(lock), Condition(lock)
        self._results: deque[_Result[R]] = deque()
        self._begun = 0
        self._ended = False

    def serve(self) -> None:
        """The life of one thread."""
        while self._has_room() and (taken := self._take()) is not None:
            result, thing = taken
            del taken
            with self._timing("work"):
                result.come_of(self._work, thing)
            del thing
            with self._ready:
                result.done = True
                if result is self._results[0]:
                    self._ready.notify()
            del result

    def _has_room(self) -> bool:
        with self._timing("room"), self._room:
            self._room.wait_for(lambda: self._ended or self._begun < self._most())
            self._begun += 1
            return not self._ended

    def _take(self) -> tuple[_Result[R], T] | None:
        result = _Result[R]()
        with self._timing("thing"), self._taking:
            if self._ended:
                return None
            try:
                thing = next(self._things)
            except StopIteration:
                self.end()
                return None
            except BaseException as error:  # as above
                result.error, result.done = error, True
                self._results.append(result)
                self.end()
                return None
            with self._ready:
                self._results.append(result)
            return result, thing

    def oldest(self) -> _Result[R] | None:
        """The next result once it is done, None after the last."""
        with self._ready:
            if not self._is_ready():
                with self._timing("rest") if self._ended else nullcontext():
                    self._ready.wait_for(self._is_ready)
            if not self._results:
                return None
            self._begun -= 1
            self._room.notify()
            return self._results.popleft()

    def _is_ready(self) -> bool:
        return self._results[0].done if self._results else self._ended

    def end(self) -> None:
        """Begin nothing more."""
        with self._ready:
            self._ended = True
            self._room.notify_all()
            self._ready.notify_all()
