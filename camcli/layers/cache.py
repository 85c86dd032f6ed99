"""Resolved layers on disk, so that a run does not pay for the search twice.

One JSON file per question in the user's cache directory. Whatever cannot be read is a miss, and a directory
that cannot be written means no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from torch import nn

from camcli.layers.layout import Layout, LayoutKind, Tap, TargetLayer
from camcli.layers.resolve import resolve_layer


def resolve_cached(key: str, module: nn.Module, input_size: tuple[int, int], path: str | None = None) -> TargetLayer:
    """`resolve_layer`, answered from the cache where `key` was asked before.

    key: all that the answer depends on (source, name, arguments, versions, input size, path). Raises LayerError.
    """
    file = cache_directory() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    known = _read(file, key)
    if known and _fits(known, module):
        return known
    layer = resolve_layer(module, input_size, path)
    with contextlib.suppress(OSError):
        _write(file, key, layer)
    return layer


def cache_directory() -> Path:
    """`camcli/layers` in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "camcli" / "layers"


def _read(file: Path, key: str) -> TargetLayer | None:
    """What was written for `key`; None for a missing or damaged file."""
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
        return TargetLayer(tuple(_tap(tap) for tap in entry["taps"])) if entry["key"] == key else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _tap(entry: Mapping[str, Any]) -> Tap:
    """The inverse of `_entry`; raises KeyError, TypeError or ValueError for anything else."""
    h, w = map(int, entry["grid"])
    layout = Layout(entry["kind"], (h, w), int(entry["prefix"]))
    if layout.kind not in get_args(LayoutKind) or not isinstance(entry["path"], str):
        raise ValueError(f"no tap: {entry}")
    return Tap(entry["path"], layout, int(entry["call"]), tuple(entry["item"]))


def _fits(layer: TargetLayer, module: nn.Module) -> bool:
    """The module still has these layers."""
    paths = {path for path, _ in module.named_modules()}
    return bool(layer.taps) and all(tap.path in paths for tap in layer.taps)


def _write(file: Path, key: str, layer: TargetLayer) -> None:
    """Raises OSError."""
    entry = {"key": key, "taps": [_entry(tap) for tap in layer.taps]}
    with _replacing(file) as stream:
        json.dump(entry, stream, sort_keys=True)


def _entry(tap: Tap) -> dict[str, Any]:
    layout = {"kind": tap.layout.kind, "grid": tap.layout.grid, "prefix": tap.layout.prefix}
    return {"path": tap.path, "call": tap.call, "item": tap.item, **layout}


@contextmanager
def _replacing(file: Path) -> Iterator[Any]:
    """A stream whose text takes the place of `file` at once, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            yield stream
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
