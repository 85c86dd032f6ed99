"""YAML files and `--set` overrides -> RunConfig, with the place of every value and of every mistake."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from camcli.config.model import expand_model, is_enum
from camcli.config.schema import RunConfig
from camcli.errors import ConfigError
from camcli.registry import did_you_mean

DEFAULT_CONFIG = Path(__file__).with_name("demo.yaml")
MAX_BYTES = 256 * 1024
MAX_DEPTH = 50
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
# Braces of variables, hidden from YAML, to which they are mappings; one character each, so that places stay.
_HIDDEN = str.maketrans("{}", "\ue000\ue001")
_SHOWN = str.maketrans("\ue000\ue001", "{}")
_TRICKY_NUMBER = re.compile(r"[-+]?0[0-7_]+|.*:.*")
_FILE_FIELDS = (("model", "weights"), ("model", "labels"), ("model", "path"))
_NOT_FILES = ("pretrained", "none")

Override = str | tuple[str, str]
"""`field=value`, of --set or with the option that stands for it."""
Place = tuple[str | int, ...]
Marks = dict[Place, str]


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config and where its values came from: dotted field -> `file:line:column` or `--set`; absent: default.

    embedded: nobody named a file or a model, so the model is the embedded one.
    """

    config: RunConfig
    origins: Mapping[str, str]
    embedded: bool = False

    def place(self, field: str) -> str:
        """Where the value of a dotted field came from: its own place, or that of what stands for its section."""
        while field and field not in self.origins:
            field = field.rpartition(".")[0]
        return self.origins.get(field, "default")


def load_config(path: Path | None, overrides: Sequence[Override] = ()) -> LoadedConfig:
    """The config of `path` with `field=value` overrides on top; raises ConfigError.

    Without a path it is that of the embedded model, unless the overrides choose a model: then all defaults.
    """
    marks: Marks = {}
    named = with_options(overrides)
    embedded = path is None and not any(override.startswith("model") for _, override in named)
    path = DEFAULT_CONFIG if embedded else path
    values = _read_file(path, marks) if path else {}
    for option, override in named:
        _apply(option, override, values, marks)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error, marks, path))) from None
    origins = {".".join(map(str, place)): mark for place, mark in marks.items() if place}
    return LoadedConfig(config, origins, embedded)


def with_options(overrides: Sequence[Override]) -> list[tuple[str, str]]:
    """Each `field=value` with the option that it was given by."""
    return [("--set", override) if isinstance(override, str) else override for override in overrides]


def config_of(values: Mapping[str, Any]) -> RunConfig:
    """The config with these values, as a YAML file would have them; raises ConfigError."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_problem(detail, detail["loc"]) for detail in error.errors())) from None


def describe(loaded: LoadedConfig) -> str:
    """The whole config as YAML, the origin of each value in a comment."""
    return "\n".join(_described(loaded.config, loaded, ""))


def _described(section: BaseModel, loaded: LoadedConfig, prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, field in type(section).model_fields.items():
        value, written = getattr(section, name), field.alias or name
        if isinstance(value, BaseModel):
            yield f"{indent}{written}:"
            yield from _described(value, loaded, f"{prefix}{written}.")
        else:
            text = json.dumps(section.model_dump(mode="json")[written], ensure_ascii=False)
            origin = loaded.place(prefix + written) if name in section.model_fields_set else "default"
            yield f"{indent}{written}: {text}  # {origin}"
    for name, value in (section.model_extra or {}).items():
        yield f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}  # {loaded.place(prefix + name)}"


def _read_file(path: Path, marks: Marks) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 1024} KiB, so hardly a config")
    try:
        values = _Reader(str(path), marks).read(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}:1:1: a config is a mapping of fields to values, such as `model: timm/resnet50`")
    return _beside(path, values or {})


def _beside(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """File names written in a config are relative to the config."""
    for section, field in _FILE_FIELDS:
        inner = values.get(section)
        if not isinstance(inner, dict):
            continue
        name = inner.get(field)
        enum = field == "weights" and inner.get("source") == "torchvision" and is_enum(name)
        if isinstance(name, str) and name not in _NOT_FILES and not enum:
            inner[field] = str(path.parent / os.path.expanduser(name))
    return values


def _apply(option: str, override: str, values: dict[str, Any], marks: Marks) -> None:
    field, equals, text = override.partition("=")
    origin = f"--set {field}" if option == "--set" else option
    place = tuple(field.split("."))
    if not equals or not all(place):
        raise ConfigError(f"--set {override}: write it as field=value, such as --set model.name=resnet18")
    for known in [p for p in marks if p[: len(place)] == place]:
        del marks[known]
    inner = values
    for depth, key in enumerate(place[:-1], start=1):
        marks.setdefault(place[:depth], origin)
        inner = _section(inner, key)
    marks[place] = origin
    inner[place[-1]] = _Reader(origin, marks).read(text, place)


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    if key == "model" and isinstance(found, str):
        found = expand_model(found)
    values[key] = found if isinstance(found, dict) else {}
    return values[key]  # type: ignore[no-any-return]


class _Mark(Protocol):
    line: int
    column: int


class _Reader:
    """Turns YAML text into plain values and notes the mark of each one; refuses what YAML lets pass silently."""

    def __init__(self, source: str, marks: Marks) -> None:
        self.source = source
        self.marks = marks

    def read(self, text: str, place: Place = ()) -> Any:
        """The value of `text`, whose marks are noted under `place`."""
        text = _VARIABLE.sub(lambda match: match[0].translate(_HIDDEN), text)
        try:
            self._refuse_tricks(text)
            self.loader = yaml.SafeLoader(text)
            node = self.loader.get_single_node()
            return None if node is None else self._value(node, place)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            hint = "; YAML wants spaces, not tabs" if "'\\t'" in str(error.problem) else ""
            raise ConfigError(f"{self._at(mark)}: {error.problem}{hint}") from None
        except (yaml.YAMLError, ValueError) as error:  # PyYAML passes on what int() and date() raise
            raise ConfigError(f"{self.source}: not valid YAML: {error}") from None

    def _refuse_tricks(self, text: str) -> None:
        """Aliases can make a short text huge, and reading deep nesting takes for ever; both are seen in time here."""
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{self._at(event.start_mark)}: nested deeper than {MAX_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{self._at(event.start_mark)}: aliases (*{event.anchor}) are not read; repeat the value"
                )

    def _at(self, mark: _Mark | None) -> str:
        if mark is None or self.source.startswith("--"):
            return self.source
        return f"{self.source}:{mark.line + 1}:{mark.column + 1}"

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self.marks.setdefault(place, self._at(node.start_mark))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*place, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, mark = str(key_node.value).translate(_SHOWN), self._at(key_node.start_mark)
            if key in values:
                raise ConfigError(f"{mark}: {'.'.join(map(str, (*place, key)))}: given twice")
            self.marks[(*place, key)] = mark
            values[key] = self._value(value_node, (*place, key))
        return values

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        written = node.value.translate(_SHOWN)
        text = _VARIABLE.sub(lambda match: self._variable(match, node), written)
        if text != written and node.style is not None:
            return text
        tag = self.loader.resolve(yaml.ScalarNode, text, (True, False)) if text != written else node.tag  # type: ignore[no-untyped-call]
        try:
            value = self.loader.construct_object(yaml.ScalarNode(tag, text, node.start_mark, node.end_mark))
        except yaml.YAMLError:
            raise
        except Exception:  # PyYAML raises many kinds for text that does not fit an explicit tag
            raise ConfigError(f"{self._at(node.start_mark)}: {text!r} is no {tag.rpartition(':')[2]}") from None
        self._refuse_tricky_number(text, value, node)
        return value

    def _refuse_tricky_number(self, text: str, value: Any, node: yaml.Node) -> None:
        """YAML reads 010 as 8 and 1:30 as 90, and it knows NaN and infinities."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if not math.isfinite(value):
            raise ConfigError(f"{self._at(node.start_mark)}: {text} is not a number that a config can use")
        if _TRICKY_NUMBER.fullmatch(text):
            raise ConfigError(
                f"{self._at(node.start_mark)}: {text} is {value} in YAML; write {value}, or {text!r} for text"
            )

    def _variable(self, match: re.Match[str], node: yaml.Node) -> str:
        name, default = match.groups()
        value = os.environ.get(name) or default
        if value is None:
            raise ConfigError(
                f"{self._at(node.start_mark)}: ${{{name}}} is not set; set it or write ${{{name}:-default}}"
            )
        return value


def _sentences(error: ValidationError, marks: Marks, path: Path | None) -> list[str]:
    """One sentence for each place that is wrong, in the order of the file."""
    found: dict[Place, str] = {}
    for detail in error.errors():
        place = _known_part(detail["loc"], marks)
        found.setdefault(place, f"{marks.get(place, str(path))}: {_problem(detail, place)}")
    return list(found.values())


def _known_part(place: Place, marks: Marks) -> Place:
    """The longest beginning of `place` that the user wrote; validators add parts that no file has."""
    while place and place not in marks:
        place = place[:-1]
    return place


def _problem(detail: ErrorDetails, place: Place) -> str:
    name = ".".join(map(str, place)) or "config"
    if detail["type"] == "extra_forbidden":
        known = _fields_of(place[:-1])
        hint = _elsewhere(str(place[-1])) or did_you_mean(str(place[-1]), known) or f" (known: {', '.join(known)})"
        return f"{name}: unknown key{hint}"
    return f"{name}: {complaint(detail)}"


def complaint(detail: ErrorDetails) -> str:
    """What is wrong with a value, and what it was."""
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
    return f"{message[:1].lower() + message[1:]}{given}"


def _elsewhere(name: str) -> str:
    """Where else in a config a field of that name is, if anywhere."""
    sections = [(), *((section,) for section in RunConfig.model_fields if _section_at((section,)) is not RunConfig)]
    found = [".".join((*section, name)) for section in sections if name in _fields_of(section)]
    return f", did you mean {' or '.join(map(repr, found))}?" if found else ""


def _fields_of(place: Place) -> list[str]:
    return [field.alias or name for name, field in _section_at(place).model_fields.items()]


def _section_at(place: Place) -> type[BaseModel]:
    """The section that `place` leads to, as far as it leads through sections."""
    section: type[BaseModel] = RunConfig
    for key in place:
        annotation = section.model_fields[str(key)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return section
