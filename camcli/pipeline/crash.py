"""Errors that nobody expected: one line for the user, and a log with the traceback for whoever mends them."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from camcli.errors import InternalError
from camcli.results.versions import versions


def internal_error(error: BaseException, folder: Path | None = None) -> InternalError:
    """`error` in one line that names its log: in `folder` if that exists, else where the user's logs go."""
    text = "".join(traceback.format_exception(error))
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    log = _write(_about() + text, folder)
    where = f"the traceback is in {log}" if log else f"no place would take its traceback:\n{text}"
    return InternalError(f"unexpected error, {reason}; what a run has recorded is whole; {where}")


def _about() -> str:
    lines = [datetime.now(UTC).isoformat(timespec="seconds"), " ".join(map(repr, sys.argv)), platform.platform()]
    lines += [f"{name} {version}" for name, version in versions().items()]
    return "\n".join([*lines, "", ""])


def _write(text: str, folder: Path | None) -> Path | None:
    """The log, in the first place that takes it."""
    name = f"camcli-crash-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}.log"
    for place in _places(folder):
        try:
            with (place / name).open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return place / name
    return None


def _places(folder: Path | None) -> Iterator[Path]:
    """`folder`, the user's state directory (made where it is missing), the directory for temporary files."""
    if folder is not None:
        yield folder
    state = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "camcli")
    try:
        state.mkdir(parents=True, exist_ok=True)
        yield state
    except OSError:
        pass
    yield Path(tempfile.gettempdir())
