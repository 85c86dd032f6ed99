"""How far a run is: a bar on a terminal, one line a minute in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 60.0


class Progress:
    """Counts records on `stream`; silent when `stream` is None."""

    def __init__(self, total: int, stream: TextIO | None) -> None:
        self.total = total
        self.stream = stream
        self.count = 0
        self.failed = 0
        on_terminal = stream is not None and stream.isatty()
        self._bar = tqdm(total=total, unit="image", file=stream, dynamic_ncols=True, disable=not on_terminal)
        self._lines = stream is not None and not on_terminal
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, failed: bool) -> None:
        """One more record."""
        self.count += 1
        self.failed += failed
        self._bar.update()
        if failed:
            self._bar.set_postfix(failed=self.failed)
        if self._lines and time.monotonic() - self._last >= LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        rate = self.count / (self._last - self._start)
        print(
            f"{self.count}/{self.total} images, {self.failed} failed, {rate:.1f} images/s",
            file=self.stream,
            flush=True,
        )
