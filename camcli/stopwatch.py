"""Where the time of a run goes, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Literal

Step = Literal["decode", "wait", "forward", "backward", "hold", "render", "encode", "write"]
STEPS: Mapping[Step, str] = {
    "decode": "reading files and cutting the model's input",
    "wait": "the device, for pictures",
    "forward": "predicting",
    "backward": "gradients and maps",
    "hold": "the device, for files to be written",
    "render": "painting overlays",
    "encode": "compressing them",
    "write": "records and files",
}
"""What each step is; wait, forward, backward and hold follow each other on the device's thread."""


class Stopwatch:
    """Seconds of each step, summed over threads."""

    def __init__(self) -> None:
        self.seconds: dict[Step, float] = dict.fromkeys(STEPS, 0.0)
        self._lock = Lock()

    @contextmanager
    def timing(self, step: Step) -> Iterator[None]:
        """Add the time spent inside to `step`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({step: time.perf_counter() - start})

    def add(self, seconds: Mapping[Step, float]) -> None:
        """Add what was measured elsewhere."""
        with self._lock:
            for step, value in seconds.items():
                self.seconds[step] += value


def bottleneck(seconds: Mapping[Step, float]) -> str:
    """Which step bounds a run: what the device waited for most, or the device itself."""
    device = seconds["forward"] + seconds["backward"]
    if device >= max(seconds["wait"], seconds["hold"]):
        return "forward" if seconds["forward"] >= seconds["backward"] else "backward"
    if seconds["wait"] >= seconds["hold"]:
        return "decode"
    after: tuple[Step, ...] = ("render", "encode", "write")
    return max(after, key=lambda step: seconds[step])
