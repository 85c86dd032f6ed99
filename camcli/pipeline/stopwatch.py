"""Where the time of a run goes, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Literal

Work = Literal["decode", "forward", "backward", "render", "encode", "write"]
Wait = Literal["wait for images", "wait for the model", "wait for files"]
Step = Work | Wait
STEPS: Mapping[Step, str] = {
    "decode": "files to the model's input",
    "forward": "predictions",
    "backward": "gradients and maps",
    "render": "overlays",
    "encode": "their compression",
    "write": "files on the disk",
    "wait for images": "nothing to explain yet",
    "wait for the model": "nothing to write yet",
    "wait for files": "too much to write already",
}
"""What each step is. Work is summed over threads; each engine is in one of the waits, which are means over engines."""


_WAITED_FOR: Mapping[Wait, tuple[Work, ...]] = {
    "wait for images": ("decode",),
    "wait for the model": ("forward", "backward"),
    "wait for files": ("render", "encode", "write"),
}


class Stopwatch:
    """Seconds of each step, summed over threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.restart()

    def restart(self) -> None:
        """Forget all that was measured."""
        self.seconds: dict[Step, float] = dict.fromkeys(STEPS, 0.0)

    @contextmanager
    def timing(self, step: Step, part: float = 1) -> Iterator[None]:
        """Add that `part` of the time spent inside to `step`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({step: part * (time.perf_counter() - start)})

    def rounded(self) -> dict[str, float]:
        """For run.json."""
        return {step: round(value, 3) for step, value in self.seconds.items()}

    def add(self, seconds: Mapping[Step, float]) -> None:
        """Add what was measured elsewhere."""
        with self._lock:
            for step, value in seconds.items():
                self.seconds[step] += value


def start(seconds: Mapping[Step, float], whole: float) -> float:
    """What of a run's seconds went by before the first image was waited for."""
    return max(0.0, whole - sum(seconds[wait] for wait in _WAITED_FOR))


def bottleneck(seconds: Mapping[Step, float], whole: float) -> str:
    """What bounds a run: its start, or the longest of the steps that were waited for most."""
    waited: Wait = max(_WAITED_FOR, key=lambda wait: seconds[wait])
    if start(seconds, whole) > whole / 2:
        return "start"
    return max(_WAITED_FOR[waited], key=lambda step: seconds[step])
