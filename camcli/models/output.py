"""Logits out of what a model returns, where that is no plain tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from camcli.errors import ConfigError


def pick(module: nn.Module, key: str | int) -> nn.Module:
    """Have `module` return the part of its output under `key`: of a mapping, a tuple or an object's attributes."""
    module.register_forward_hook(partial(_picked, key))
    return module


def _picked(key: str | int, module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(key, str) and not isinstance(output, Mapping) and hasattr(output, key):
        return getattr(output, key)
    try:
        return output[key]
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"model.output: {key!r} is not in {described(output)} that the model returns") from None


def described(value: object) -> str:
    """What a model returned, in words: `a dict with logits, features`."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
