"""What later commands read of a run.json: whatever else stands there is passed over with it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Read(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class _Inputs(_Read):
    images: Annotated[int, Field(ge=0)]
    sha256: str
    names: list[str] = []
    ext: list[str] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    root: str | None = None
    folder: str | None = None
    roots: list[str] = []


class _Model(_Read):
    weights: str
    weights_sha256: str | None


class _Guard(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    logits: float
    maps: dict[str, float]


class _Precision(_Read):
    used: Literal["fp32", "bf16", "fp16"]
    why: str
    guard: _Guard | None = None


class _Shard(_Read):
    index: int
    count: int
    positions: list[int]


class _Manifest(_Read):
    schema_version: Literal[1]
    status: str
    started: str
    fingerprint: str
    identity: dict[str, Any]
    config: dict[str, Any]
    inputs: _Inputs
    model: _Model
    precision: _Precision
    batch_size: Annotated[int, Field(ge=1)]
    versions: dict[str, str]
    libraries: dict[str, dict[str, str]] = {}
    shard: _Shard | None = None


class _Finished(_Manifest):
    seconds: float
    counts: dict[str, int]
    failures: dict[str, int]
    fingerprints: dict[str, int]
    resumed: dict[str, int]
    profile: dict[str, float]


def parsed(data: bytes) -> dict[str, Any] | None:
    """The manifest in `data`, None where it is not one that camcli wrote."""
    try:
        found: dict[str, Any] = json.loads(data)
        json.dumps(found, allow_nan=False)
        kind = _Finished if found["status"] == "finished" else _Manifest
        kind.model_validate(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found
