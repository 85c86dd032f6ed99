"""How much memory decoded images may take, and how the process keeps what it has."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 1 << 30
_PILLOW_BLOCKS = 64  # of at most 16 MB each


class Budget:
    """How many bytes images may take together.

    Some are in work (being decoded or painted) and wait for room; others are kept for later, at most half of all;
    files that were read and are still to be decoded are held.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.in_work = self.kept = self.held = 0
        self._change = threading.Condition()

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes more fit in; what never would is let in when nothing else is in work."""
        with self._change:
            self._change.wait_for(lambda: self.in_work == 0 or self._fits(size))
            self.in_work += size
        try:
            yield
        finally:
            with self._change:
                self.in_work -= size
                self._change.notify_all()

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """The same for a file; its pixels may ask for room inside, since they wait for no file to be given up."""
        with self._change:
            self._change.wait_for(lambda: self.held + self.in_work == 0 or self._fits(size))
            self.held += size
        try:
            yield
        finally:
            with self._change:
                self.held -= size
                self._change.notify_all()

    def _fits(self, size: int) -> bool:
        return self.held + self.in_work + self.kept + size <= self.size

    def keep(self, size: int) -> bool:
        """Whether `size` bytes may stay until they are given back; never waits. They may be in work at the time."""
        with self._change:
            fits = self.kept + size <= self.size // 2
            self.kept += size if fits else 0
            return fits

    def give_back(self, size: int) -> None:
        """They are no longer in memory."""
        with self._change:
            self.kept -= size
            self._change.notify_all()

    @property
    def is_scarce(self) -> bool:
        """More than half of what may be kept is."""
        return self.kept > self.size // 4


def budget_size(asked: float, usable: int) -> int:
    """Bytes: `asked` itself, or where it is at most 1 that part of the `usable` bytes."""
    return int(asked * usable) if asked <= 1 else int(asked)


def cached_blocks(size: int) -> int:
    """Let Pillow keep at most an eighth of `size` bytes of freed images, if it keeps any; returns how many bytes."""
    from PIL import Image

    core = Image.core  # type: ignore[attr-defined]
    count = min(core.get_blocks_max(), size // 8 // core.get_block_size())
    core.set_blocks_max(count)
    return int(count * core.get_block_size())


def keep_freed_memory() -> None:
    """Tell glibc and Pillow, whether it is imported already or not, not to give freed memory back to the system.

    Faulting it in again costs more than decoding: on a virtual machine a 12-megapixel JPEG decodes in 40 instead of
    150 ms, and a ConvNeXt-T forward pass takes a quarter less time. The process stays as large as it was at its peak.
    Threads share one arena, because those of threads are given back whole. Does nothing with other C libraries.
    """
    os.environ.setdefault("PILLOW_BLOCKS_MAX", str(_PILLOW_BLOCKS))
    if pillow := sys.modules.get("PIL.Image"):
        pillow.core.set_blocks_max(_PILLOW_BLOCKS)
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        mallopt(_M_ARENA_MAX, 1)


def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such name
        return None
