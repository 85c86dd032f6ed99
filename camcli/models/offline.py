"""`--offline` below the libraries: while it holds, no Python code of this process opens a connection."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from camcli.errors import OfflineError

_EVENTS = {f"socket.{name}" for name in ("connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname")}


class _Guard:
    """The hook that Python calls on every socket operation; it cannot be taken out again."""

    installed = False
    depth = 0


@contextmanager
def no_network(active: bool) -> Iterator[None]:
    """Inside, where `active`, whoever reaches for the network gets an OfflineError; sockets of this machine's own
    processes (AF_UNIX) stay open. The hub's library is told, too, because part of it is no Python code.
    """
    if not active:
        yield
        return
    if not _Guard.installed:
        sys.addaudithook(_refuse)
        _Guard.installed = True
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    _Guard.depth += 1
    try:
        yield
    finally:
        _Guard.depth -= 1
        os.environ.pop("HF_HUB_OFFLINE") if before is None else os.environ.update(HF_HUB_OFFLINE=before)


def is_closed() -> bool:
    """Whether the network must not be reached for."""
    return _Guard.depth > 0


def _refuse(event: str, words: tuple[Any, ...]) -> None:
    """An audit hook (https://docs.python.org/3/library/audit_events.html); raises OfflineError."""
    if not _Guard.depth or event not in _EVENTS:
        return
    place = words[0] if event.startswith("socket.get") else words[1]
    if place is None or (isinstance(place, str | bytes) and not event.startswith("socket.get")):
        return
    host = place[0] if isinstance(place, tuple) else place
    raise OfflineError(f"--offline forbids to reach {host}; without it, what is missing would be fetched from there")
