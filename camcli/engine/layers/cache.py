"""Resolved layers on disk, so that a run does not pay for the search twice.

One JSON file per question in the user's cache directory. Whatever cannot be read is a miss, and a directory
that cannot be found or written means no cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from torch import nn

from camcli.engine.layers.layout import TargetLayer
from camcli.engine.layers.resolve import resolve_layer

RULES = 3
"""To be raised whenever the search may find another layer, or say more of it, than before."""
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file holds; sha256: of the layer, so that no damage passes for an answer."""

    key: str
    sha256: str
    layer: TargetLayer


_ENTRY = TypeAdapter(Entry)
_LAYER = TypeAdapter(TargetLayer)


def resolve_cached(key: str, module: nn.Module, input_size: tuple[int, int], path: str | None = None) -> TargetLayer:
    """`resolve_layer`, answered from the cache where `key` was asked before.

    key: all that the answer depends on (source, name, arguments, versions, input size, path). Raises LayerError.
    """
    folder, asked = cache_directory(), f"{RULES} {key}"
    if folder is None:
        return resolve_layer(module, input_size, path)
    file = folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    known = _read(file, asked)
    if known and _fits(known, module):
        return known
    layer = resolve_layer(module, input_size, path)
    with suppress(OSError):
        _write(file, asked, layer)
    return layer


def cache_directory() -> Path | None:
    """`camcli/layers` in $XDG_CACHE_HOME, or in ~/.cache; None for a user without a home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return root / "camcli" / "layers"


def _read(file: Path, key: str) -> TargetLayer | None:
    """What was written for `key`; None for a missing or damaged file, and for what is no file."""
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            entry = _ENTRY.validate_json(stream.read(MAX_BYTES), strict=True)
    except (OSError, ValueError):
        return None
    return entry.layer if entry.key == key and entry.sha256 == _hash(entry.layer) else None


def _fits(layer: TargetLayer, module: nn.Module) -> bool:
    """The module still has these layers."""
    paths = {path for path, _ in module.named_modules()}
    return bool(layer.taps) and all(tap.path in paths for tap in layer.taps)


def _hash(layer: TargetLayer) -> str:
    return hashlib.sha256(_LAYER.dump_json(layer)).hexdigest()


def _write(file: Path, key: str, layer: TargetLayer) -> None:
    """At once or not at all; raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(_ENTRY.dump_json(Entry(key, _hash(layer), layer)))
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
