"""What a shell offers at the tab key: methods, fields of --set, models. Names of libraries are asked for once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

Names = dict[str, list[str]]


def methods(incomplete: str) -> list[str]:
    """Methods, behind others that commas list."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in _known("methods", _methods) if name.startswith(last)]


def models(incomplete: str) -> list[str]:
    """Models as source/name, with their weights' tags once a dot is typed."""
    known = _known("models", _models)
    return [name for name in known if name.startswith(incomplete) and ("." in incomplete or "." not in name)]


def fields(incomplete: str) -> list[str]:
    """Fields of a config as --set takes them."""
    from camcli.config.schema import RunConfig

    return [name for name in _fields(RunConfig, "") if name.startswith(incomplete)]


def _fields(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{field.alias or name}="


def _methods() -> list[str]:
    from camcli.engine.methods import listed

    return [method.name for method in listed()]


def _models() -> list[str]:
    from camcli.models.source import list_models

    return [
        name
        for entry in list_models(None)
        for name in (f"{entry.source}/{entry.name}", *(f"{entry.source}/{entry.name}.{tag}" for tag in entry.tags))
    ]


def _known(kind: str, find: Callable[[], list[str]]) -> list[str]:
    """`find()`, which imports torch, or what it gave before with the same versions of the libraries."""
    from camcli.results.versions import key

    file = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "camcli" / f"{kind}-{key()}.json"
    with suppress(OSError, ValueError):
        return [str(name) for name in json.loads(file.read_bytes())]
    found = find()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return found
