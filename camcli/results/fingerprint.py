"""What decides about results: about numbers as one hash, about the look of overlays as another, and how two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHORT = 16
_SPEED_ONLY = {"runtime": ("device", "batch_size", "threads", "memory"), "options": ("chunk",)}
_RESOLVED = {"model": ("weights", "labels", "weights_sha256", "path")}
_LOOKS = "overlay"
"""The section of a config that decides how overlays look, and about nothing else."""

Identity = dict[str, Any]


def identity(
    config: Mapping[str, Any],
    weights_sha256: str | None,
    labels: Sequence[str],
    layers: Any,
    preprocess: Mapping[str, Any],
    options: Mapping[str, Any],
    schema_version: int,
) -> Identity:
    """All that changes results, as plain JSON values.

    config: a dumped RunConfig, of which paths and what only changes speed are left out; layers and preprocess: as
    they were found for the model; options: of the methods of the run, by name, defaults included.
    """
    found = _without(_without(config, _SPEED_ONLY), _RESOLVED)
    found["model"]["weights_sha256"] = weights_sha256
    found["model"]["labels_sha256"] = labels_hash(labels)
    found.update(layer=layers, input=dict(preprocess), options=dict(options), schema_version=schema_version)
    plain: Identity = json.loads(json.dumps(found))
    return plain


def same_request(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two dumped configs ask for the same, speed and sections of methods that they do not run apart."""
    return _request(config) == _request(other)


def same_numbers(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two dumped configs ask for the same but for how overlays look."""
    one, two = ({key: value for key, value in _request(asked).items() if key != _LOOKS} for asked in (config, other))
    return one == two


def labels_hash(labels: Sequence[str]) -> str:
    """Hex SHA-256 of the labels in their order."""
    return _hash(list(labels))


def fingerprint(found: Identity) -> str:
    """Hex SHA-256 of what decides about numbers in an identity."""
    return _hash({key: value for key, value in found.items() if key != _LOOKS})


def look_of(overlay: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a dumped OverlayConfig: overlays can be painted anew with another one from maps and images."""
    return _hash(dict(overlay))


def differences(old: Identity, new: Identity) -> list[str]:
    """`overlay.alpha: 0.5 -> 0.7` for each field that differs, in order of the fields' names.

    Nothing where one was nested by somebody's hand more deeply than Python can follow.
    """
    try:
        before, after = dict(_flat(old, "")), dict(_flat(new, ""))
        changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        return [f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}" for key in changed]
    except RecursionError:
        return []


def _request(config: Mapping[str, Any]) -> dict[str, Any]:
    found = _without(config, _SPEED_ONLY)
    run, options = found.get("methods"), found.get("options")
    if isinstance(run, Sequence) and isinstance(options, Mapping):
        found["options"] = {k: v for k, v in options.items() if k in run or not isinstance(v, Mapping)}
    return found


def _without(config: Mapping[str, Any], fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        key: {k: v for k, v in value.items() if k not in fields[key]}
        if key in fields and isinstance(value, Mapping)
        else value
        for key, value in config.items()
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
