"""SIGINT and SIGTERM as a wish to stop that the run reads between items."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Inside `with`, the first signal sets `exit_code` (130 or 143), and a second one ends the process at once."""

    def __init__(self) -> None:
        self.exit_code = 0

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
