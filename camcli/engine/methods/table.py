"""All methods as a table."""

from __future__ import annotations

from camcli.engine.methods.factors import DFF
from camcli.engine.methods.view import METHODS, Method


def listed() -> list[Method]:
    """The methods of a run, and the one of a folder."""
    return [*(method for _, method in METHODS.items()), DFF]


def markdown() -> str:
    """The table as README shows it."""
    head = "| method and paper | what it computes | needs | cost beside the forward pass |"
    return "\n".join([head, "|---|---|---|---|", *map(_row, listed())])


def _row(method: Method) -> str:
    formula = method.formula.replace("|", "\\|")
    return f"| [`{method.name}`]({method.paper}) | {formula} | {', '.join(method.needs)} | {method.cost} |"
