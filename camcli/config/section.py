"""What every section of a config is, and the types that sections share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_switch(value: Any) -> Any:
    """To Python, true is the number 1; in a config it is a mistake."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")
    return value


def _no_number(value: Any) -> Any:
    """Text may come from a variable in quotes."""
    if not isinstance(value, bool) and str(value).lower() not in ("true", "false"):
        raise ValueError("true or false is wanted")
    return value


Switch = Annotated[bool, BeforeValidator(_no_number)]
Unit = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_switch)]
Spread = Annotated[float, Field(gt=0), BeforeValidator(_no_switch)]
Level = Annotated[float, BeforeValidator(_no_switch)]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_no_switch)]
Percent = Annotated[int, Field(ge=1, le=100), BeforeValidator(_no_switch)]


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
