"""How people write which module they mean: `layer4[-1]`, `blocks[-1].norm1`, `features.7.2`, or its class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

from torch import nn

from camcli.errors import LayerError

SHOWN = 12
_STEP = re.compile(r"""\[(?P<index>-?\d+)\] | \[['"](?P<key>[^'"]*)['"]\] | \.?(?P<name>[^.\[\]]+)""", re.VERBOSE)


class UnknownLayer(LayerError):
    """There is no such module, or more than one."""


def module_path(module: nn.Module, written: str) -> str:
    """The dotted path of the module inside `module` that `written` names.

    Steps are attributes, and indices where the module is a list, from its end if negative; a leading `model.` is
    passed over. Where it is no path, it may be the class name of one module alone.
    Raises UnknownLayer, which says what there is at the level where it went wrong.
    """
    steps = _steps(written)
    if steps and steps[0] == "model" and "model" not in module._modules:
        steps = steps[1:]
    found, path = module, ""
    for step in steps:
        name = _child(found, step)
        if name is None:
            return _of_class(module, written) or _refuse(written, found, path, step)
        found, path = found.get_submodule(name), f"{path}.{name}".lstrip(".")
    if not steps:
        raise UnknownLayer(f"unknown layer {written!r}: write it as layer4[-1] or blocks.11.norm1")
    return str(next(name for name, other in module.named_modules() if other is found))


def _steps(written: str) -> list[str | int]:
    """`blocks[-1].norm1` as ["blocks", -1, "norm1"]; empty where it cannot be read."""
    found = list(_STEP.finditer(written))
    if "".join(match[0] for match in found) != written:
        return []
    return [int(m["index"]) if m["index"] else m["key"] or m["name"] for m in found]


def _child(module: nn.Module, step: str | int) -> str | None:
    """The name of the child that a step leads to, None where there is none."""
    names = list(module._modules)
    if str(step) in names and not (isinstance(step, int) and isinstance(module, nn.Sequential)):
        return str(step)
    index = int(step) if re.fullmatch(r"-?\d+", str(step)) else len(names)
    is_list = isinstance(module, nn.Sequential | nn.ModuleList)
    return names[index] if is_list and -len(names) <= index < len(names) else None


def _of_class(module: nn.Module, written: str) -> str | None:
    """The only module of the class called `written`; None for no class, raises UnknownLayer for several modules."""
    paths = [path for path, child in module.named_modules() if path and type(child).__name__ == written]
    if len(paths) > 1:
        raise UnknownLayer(f"{written!r} is the class of {len(paths)} modules: {_listed(paths)}; name one of them")
    return paths[0] if paths else None


def _refuse(written: str, found: nn.Module, path: str, step: str | int) -> NoReturn:
    names = list(found._modules)
    where = f"{path!r} ({type(found).__name__})" if path else "the model"
    if names and isinstance(step, int) and isinstance(found, nn.Sequential | nn.ModuleList):
        raise UnknownLayer(f"unknown layer {written!r}: {where} goes from [0] to [{len(names) - 1}]")
    raise UnknownLayer(f"unknown layer {written!r}: {where} has {_listed(names) or 'no modules inside'}")


def _listed(names: Sequence[str]) -> str:
    """The last of them in full, since maps are read late in a network."""
    return ", ".join(names) if len(names) <= SHOWN else ", ".join([*names[:2], "…", *names[3 - SHOWN :]])
