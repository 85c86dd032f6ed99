"""Names of classes in order of the model's indices: from text, CSV or JSON files, or from inside a checkpoint."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from camcli.errors import ConfigError

KEYS = (
    *("classes", "class_names", "labels", "label_names", "categories", "CLASSES"),
    *("class_to_idx", "idx_to_class", "id2label", "label2id"),
)
_INDEX = ("index", "idx", "id", "class_id", "class_index", "label_id", "number")
_LABEL = ("label", "name", "class", "class_name", "label_name", "category", "description")


def given_labels(given: str | Sequence[str]) -> tuple[str, ...]:
    """What `model.labels` stands for: the labels themselves, or a file; raises ConfigError."""
    return read_labels(Path(os.path.expanduser(given))) if isinstance(given, str) else tuple(given)


def read_labels(file: Path) -> tuple[str, ...]:
    """The labels of a .json or .csv file, or of any other with one a line, empty lines left out; raises ConfigError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"model.labels: {file}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, or no name that a file can have
        raise ConfigError(f"model.labels: {str(file)!r}: cannot be read: {error}") from None
    kind = file.suffix.lower()
    if kind == ".json":
        return _from_json(file, text)
    if kind in (".csv", ".tsv"):
        return _from_table(file, text, "\t" if kind == ".tsv" else ",")
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def labels_in(found: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Those under one of the usual KEYS, such as torchvision's `class_to_idx` and the hub's `id2label`."""
    for key in KEYS:
        if (key in found) and (labels := ordered(found[key])):
            return labels
    return None


def ordered(value: object) -> tuple[str, ...] | None:
    """Labels from a list of them, or from a mapping from or to 0, 1, 2 …; None for anything else."""
    if isinstance(value, list | tuple):
        return tuple(value) if value and all(isinstance(name, str) for name in value) else None
    if not isinstance(value, Mapping) or not value:
        return None
    by_index = {_number(key): _name(name) for key, name in value.items()}
    if set(by_index) != set(range(len(value))):
        by_index = {_number(number): _name(name) for name, number in value.items()}
    if set(by_index) != set(range(len(value))) or None in by_index.values():
        return None
    return tuple(str(by_index[i]) for i in range(len(value)))


def _number(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10 else None


def _name(value: object) -> str | None:
    """Of several words, as in ImageNet's ["n01440764", "tench"], the last is for people."""
    if isinstance(value, list) and value:
        value = value[-1]
    return value if isinstance(value, str) else None


def _from_json(file: Path, text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"model.labels: {file}: not valid JSON: {error}") from None
    labels = ordered(found) or (labels_in(found) if isinstance(found, Mapping) else None)
    if labels is None:
        raise ConfigError(
            f"model.labels: {file}: holds no labels: a list, an object from or to 0, 1, 2 …, or one of them under "
            f"{', '.join(KEYS[-4:])} or classes is wanted"
        )
    return labels


def _from_table(file: Path, text: str, delimiter: str) -> tuple[str, ...]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ConfigError(f"model.labels: {file}: not a readable table: {error}") from None
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    numbers, names = _column(head, _INDEX), _column(head, _LABEL)
    if numbers is None and names is None:
        numbers = next((c for c in range(len(head)) if _counts(rows, c)), None)
    else:
        rows = rows[1:]
    if names is None:
        names = next((c for c in range(len(head)) if c != numbers), 0)
    try:
        cells = [(row[names].strip(), None if numbers is None else row[numbers].strip()) for row in rows]
    except IndexError:
        raise ConfigError(f"model.labels: {file}: has rows of different lengths") from None
    if numbers is None:
        return tuple(name for name, _ in cells)
    labels = ordered({number: name for name, number in cells})
    if labels is None or len(labels) != len(cells):
        raise ConfigError(f"model.labels: {file}: its indices are not 0, 1, 2 …, each once")
    return labels


def _column(head: Sequence[str], known: Iterable[str]) -> int | None:
    return next((head.index(name) for name in known if name in head), None)


def _counts(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column holds 0, 1, 2 … in any order."""
    found = [_number(row[column].strip()) if column < len(row) else None for row in rows]
    return set(found) == set(range(len(rows)))
