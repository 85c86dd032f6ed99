"""`--allow-code`: a model that is a Python function of the user's runs only where the user has said so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from camcli.errors import ConfigError

VARIABLE = "CAMCLI_ALLOW_CODE"


@contextmanager
def code_allowed(active: bool) -> Iterator[None]:
    """Inside, where `active`, such models run, in the processes that this one starts as well."""
    before = os.environ.get(VARIABLE)
    if active:
        os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if active:
            os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


def require_permission(what: str) -> None:
    """Raises ConfigError where the user has not allowed code to run."""
    if os.environ.get(VARIABLE) != "1":
        raise ConfigError(
            f"{what}, which runs only with --allow-code (from Python: allow_code=True); read it first, "
            "if it is not yours"
        )
