"""All methods as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from camcli.engine.methods.factors import DFF
from camcli.engine.methods.view import METHODS, Method


def listed() -> list[Method]:
    """The methods of a run, and the one of a folder."""
    return [*(method for _, method in METHODS.items()), DFF]


def described() -> list[dict[str, Any]]:
    """The same for a reader of JSON; options by name, each with its default, its type and what it says."""
    hidden = ("compute", "terms", "options")
    return [
        {**{k: getattr(method, k) for k in method.__dataclass_fields__ if k not in hidden}, "options": _options(method)}
        for method in listed()
    ]


def _options(method: Method) -> dict[str, Any]:
    return method.options.model_json_schema()["properties"] if method.options else {}


def methods_of(names: Iterable[str]) -> list[Method]:
    """The methods that a config names; raises ConfigError for one that there is not."""
    return [DFF if name == DFF.name else METHODS.get(name) for name in names]


def markdown() -> str:
    """The table as README shows it."""
    head = "| method and paper | what it computes | good for | needs | cost beside the forward pass |"
    return "\n".join([head, "|---|---|---|---|---|", *map(_row, listed())])


def _row(method: Method) -> str:
    formula = method.formula.replace("|", "\\|")
    name = f"[`{method.name}`]({method.paper})"
    return f"| {name} | {formula} | {method.good_for} | {', '.join(method.needs)} | {method.cost} |"
