"""How far a run is: a bar on a terminal, one line a minute in a log, or JSON lines."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from camcli.cli.events import event_line
from camcli.records import Failure

LINE_SECONDS = 60.0
SHOW_SECONDS = 0.5
NAMED = 5


class Progress:
    """Counts records on `stream`; silent when `stream` is None. quiet: of JSON lines, only those about failures.

    first: the first few failures, for the summary. passes: forward passes since the last record, which are shown while
    a batch takes long.
    """

    def __init__(self, stream: TextIO | None, as_json: bool = False, quiet: bool = False) -> None:
        self.stream = stream
        self.as_json = as_json
        self.quiet = quiet
        self.first: list[Failure] = []
        self.total = self.count = self.kept = self.failed = self.passes = 0
        self.what = ""
        self._start = self._last = self._shown = time.monotonic()
        self._lock = threading.Lock()
        self._usual = 0
        self._bar: tqdm | None = None  # type: ignore[type-arg]

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, total: int, kept: int, what: str = "") -> None:
        """Start counting `total` images, of which `kept` are there from an earlier run; what: the pass, if named."""
        self.total, self.count, self.kept, self.what = total, kept, kept, what
        self._start = self._last = time.monotonic()
        if self.stream is not None and self.stream.isatty() and not (self.as_json or self.quiet):
            self._close()
            stream, desc = self.stream, what or None
            self._bar = tqdm(total=total, initial=kept, unit="image", file=stream, dynamic_ncols=True, desc=desc)

    def advance(self, failure: Failure | None) -> None:
        """Count one more record; failure: why there is no explanation, None where there is one."""
        with self._lock:
            self.count += 1
            self.failed += failure is not None
            self._usual = max(self._usual, self.passes)
            self.passes, self._shown = 0, time.monotonic()
            if failure and len(self.first) < NAMED:
                self.first.append(failure)
            if self._bar is not None:
                self._bar.set_postfix(self._beside(), refresh=False)
                self._bar.update()
            elif self.stream is not None:
                self._log(failure)

    def passed(self) -> None:
        """Count one more forward pass, on any thread."""
        with self._lock:
            self.passes += 1
            if self._bar is not None and time.monotonic() - self._shown >= SHOW_SECONDS:
                self._shown = time.monotonic()
                self._bar.set_postfix(self._beside())
            elif self._bar is None and self.stream is not None:
                self._log(None)

    def _beside(self) -> dict[str, object]:
        """What the bar shows beside the images: passes of those that the batches before took, once there were any."""
        of = f"/{self._usual}" if self._usual >= self.passes else ""
        shown = {"failed": (self.failed, ""), "passes": (self.passes, of)}
        return {name: f"{count}{of}" for name, (count, of) in shown.items() if count}

    def tell_now(self, text: str) -> None:
        """Print `text` from a signal handler: past the stream's buffer, which may be in the middle of a write."""
        if self.stream is None or self.quiet:
            return
        line = event_line("note", message=text) if self.as_json else text
        with suppress(OSError, ValueError):
            os.write(self.stream.fileno(), ("\n" * (self._bar is not None) + line + "\n").encode())

    def _log(self, failure: Failure | None) -> None:
        if failure and self.as_json:
            self._event("failed", id=failure.id, stage=failure.stage, kind=failure.kind, message=failure.message)
        if not self.quiet and time.monotonic() - self._last >= LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        rate = (self.count - self.kept) / (self._last - self._start)
        if self.as_json:
            counts = {"images": self.count, "of": self.total, "failed": self.failed, "passes": self.passes}
            self._event("progress", **counts, images_per_second=rate, **({"what": self.what} if self.what else {}))
        else:
            what = f"{self.what}: " if self.what else ""
            since = f", {self.passes} forward passes since the last" if self.passes else ""
            text = f"{what}{self.count}/{self.total} images, {self.failed} failed, {rate:.1f} images/s{since}"
            print(text, file=self.stream, flush=True)

    def _event(self, event: str, **fields: object) -> None:
        print(event_line(event, **fields), file=self.stream, flush=True)
