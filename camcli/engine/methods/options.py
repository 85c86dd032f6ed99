"""From the `options` of a config to what each method is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from camcli.config.file import complaint
from camcli.config.schema import OptionsConfig
from camcli.engine.methods.table import listed
from camcli.engine.methods.view import Method
from camcli.errors import ConfigError
from camcli.registry import did_you_mean

Fault = tuple[str, str]
"""A dotted field of the config, and what is wrong with its value."""


def options_of(methods: Iterable[Method], asked: OptionsConfig) -> dict[str, BaseModel]:
    """The options of those `methods` that have any, by name; raises ConfigError with every fault in `asked`."""
    if found := faults(asked):
        raise ConfigError("\n".join(f"{field}: {reason}" for field, reason in found))
    declared = {method.name: method.options for method in methods if method.options}
    return {name: model.model_validate(_merged(name, model, asked)) for name, model in declared.items()}


def faults(asked: OptionsConfig) -> list[Fault]:
    """What is wrong in `asked`, also in options of methods that nobody runs; once what is said of several methods."""
    return list(dict.fromkeys(_faults(asked)))


def _faults(asked: OptionsConfig) -> Iterator[Fault]:
    known = _known_methods()
    declared = {name: method.options for name, method in known.items() if method.options}
    shared = {field for model in declared.values() for field in model.model_fields}
    for key, value in asked.given.items():
        if key in known or isinstance(value, dict):
            yield from _section_faults(key, value, known)
        elif key not in shared:
            yield f"options.{key}", f"no method has such an option{_known(key, [*shared, *declared])}"
    for name, model in declared.items():
        yield from _value_faults(name, model, asked)


def _section_faults(name: str, section: Any, methods: Mapping[str, Method]) -> Iterator[Fault]:
    if name not in methods:
        yield f"options.{name}", f"unknown method{_known(name, methods)}"
    elif not isinstance(section, dict):
        yield f"options.{name}", f"a mapping of options to values is wanted (got {section!r})"
    else:
        model = methods[name].options
        known = model.model_fields if model else ()
        for key in section:
            if key not in known:
                yield f"options.{name}.{key}", f"unknown option of {name}{_known(key, known)}"


def _value_faults(name: str, model: type[BaseModel], asked: OptionsConfig) -> Iterator[Fault]:
    section = asked.given.get(name)
    try:
        model.model_validate(_merged(name, model, asked))
    except ValidationError as error:
        for detail in error.errors():
            field = ".".join(map(str, detail["loc"]))
            beside = field and not (isinstance(section, dict) and detail["loc"][0] in section)
            yield f"options.{field}" if beside else f"options.{name}.{field}".rstrip("."), complaint(detail)


def _merged(name: str, model: type[BaseModel], asked: OptionsConfig) -> dict[str, Any]:
    """The values for one method: those of its own section, and what stands beside the sections for the others."""
    given, section, methods = asked.given, asked.given.get(name), _known_methods()
    values = {key: given[key] for key in model.model_fields if key in given and key not in methods}
    own: Mapping[str, Any] = section if isinstance(section, dict) else {}
    return {**values, **{key: value for key, value in own.items() if key in model.model_fields}}


def _known_methods() -> dict[str, Method]:
    return {method.name: method for method in listed()}


def _known(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    return did_you_mean(name, names) or (f" (known: {', '.join(names)})" if names else ", which has none")
