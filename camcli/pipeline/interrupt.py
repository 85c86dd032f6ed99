"""SIGINT and SIGTERM: before a run has begun they end the process at once, then they are a wish to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_at_once() -> None:
    """Let a signal end the process without a traceback, unless it is ignored, as under `nohup`."""
    for number in _heeded():
        signal.signal(number, _ending())


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals that come inside arrive afterwards; processes started inside hold them until they ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupt:
    """Inside `with`, a signal ends the process at once until the run has begun; then the first sets `exit_code`.

    exit_code: 130 or 143, 0 without a signal. A second signal ends the process at once.
    tell: says what happens now, and is called from the signal handler.
    """

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        self.exit_code = 0
        self.tell = tell
        self._message = ""

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        end_at_once()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self, message: str) -> None:
        """From now on there is something to finish; message: what to tell then."""
        self._message = message
        for number in _heeded():
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        end_at_once()
        self.tell(self._message)


def _heeded() -> list[signal.Signals]:
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _ending() -> Callable[[int, FrameType | None], None] | signal.Handlers:
    """The system's own action comes even inside C code, but it spares the first process of a container."""
    return (lambda number, frame: os._exit(128 + number)) if os.getpid() == 1 else signal.SIG_DFL
