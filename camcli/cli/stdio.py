"""Standard streams that never raise: not when closed, full, of a narrow encoding, or when their reader is gone."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Outlet(io.RawIOBase):
    """Writes to a file descriptor that stays open; after the first `error` everything is thrown away."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.error: OSError | None = None

    def writable(self) -> bool:
        """True: writing never raises."""
        return True

    def fileno(self) -> int:
        """Of the stream in whose place this is."""
        return self.number

    def isatty(self) -> bool:
        """Of the stream in whose place this is."""
        return os.isatty(self.number)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write `data`, or throw it away after an error; returns how many bytes were taken."""
        while self.error is None:
            try:
                return os.write(self.number, data)
            except BlockingIOError:
                select.select([], [self.number], [])
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


class Output(io.TextIOWrapper):
    """Text through an `Outlet`; characters that the encoding lacks are written as escapes."""

    def __init__(self, outlet: Outlet, encoding: str, line_buffering: bool) -> None:
        self.outlet = outlet
        super().__init__(io.BufferedWriter(outlet), encoding, "backslashreplace", line_buffering=line_buffering)

    def loss(self) -> str | None:
        """Why some of the text is lost; that its reader went away is no loss."""
        self.flush()
        error = self.outlet.error
        return None if error is None or error.errno == errno.EPIPE else str(error.strerror or error)


@contextmanager
def steady() -> Iterator[Output | None]:
    """Within the context, writing to standard output and error never raises; yields standard output, None if closed."""
    _occupy_closed_descriptors()
    out, err = _output(sys.stdout, line_buffering=False), _output(sys.stderr, line_buffering=True)
    with redirect_stdout(out or sys.stdout), redirect_stderr(err or sys.stderr):
        try:
            yield out
        finally:
            for stream in filter(None, (out, err)):
                stream.flush()


def _output(stream: TextIO | None, line_buffering: bool) -> Output | None:
    """What takes the place of `stream`; None where it has no file descriptor."""
    if stream is None:
        return None
    with suppress(OSError):
        stream.flush()
    try:
        return Output(Outlet(stream.fileno()), stream.encoding, line_buffering)
    except (OSError, ValueError):
        return None


def _occupy_closed_descriptors() -> None:
    """A file opened under the number of a closed standard stream would get what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
