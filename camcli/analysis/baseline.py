"""What two runs are compared by: for each image its first class and where the heat is, from a run or a small file."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camcli.errors import ConfigError
from camcli.images import geometry
from camcli.records import SCHEMA_VERSION, Box
from camcli.results.report import HeatmapRecord, ImageRecord
from camcli.results.run import Run, open_run
from camcli.results.storage import write_named

GRID = 16
Grid = NDArray[np.uint8]
_NO_BASELINE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error)
Shares = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the heat of one heatmap is, as shares of the image's width and height.

    grid: uint8 [GRID,GRID] over the whole image, 0 where the model saw nothing; None where no maps were kept.
    peak: (x, y), box: (x0, y0, x1, y1), in 0..1; None where the map is empty.
    """

    peak: Shares | None
    box: Shares | None
    grid: Grid | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says of an image: its first class, and by `method` or `method class` where the heat is."""

    label: str
    probability: float
    places: Mapping[str, Place]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The answers of a run by id; labels_sha256, input: the labels and the preprocessing that they hold for."""

    name: str
    labels_sha256: str
    input: Mapping[str, Any]
    answers: Mapping[str, Answer]


def baseline(path: Path) -> Baseline:
    """Of the run folder or baseline file `path`; raises ConfigError where it is none."""
    return _of_file(path) if path.is_file() else _of_run(open_run(path))


def write_baseline(out: Path, file: Path) -> Baseline:
    """Write what the run in `out` is compared by to `file`; raises ConfigError and OutputError."""
    found = baseline(out)
    images = {name: [a.label, a.probability, _written(a.places)] for name, a in found.answers.items()}
    told = {
        "camcli_baseline": SCHEMA_VERSION,
        "labels_sha256": found.labels_sha256,
        "input": dict(found.input),
        "answers": images,
    }
    write_named(file, gzip.compress(json.dumps(told).encode(), mtime=0))
    return found


def _of_run(run: Run) -> Baseline:
    told, name = run.manifest, str(run.path)
    if run.finds_concepts:
        raise ConfigError(
            f"{name}: holds the concepts of `camcli dff`, which no other run has, so they are not compared"
        )
    answers = {record.id: _answer(run, record) for record in run.records() if record.predictions}
    return Baseline(name, told.labels_sha256, told.input, answers)


def _answer(run: Run, record: ImageRecord) -> Answer:
    first = record.predictions[0]
    places = {_key(heatmap): _place(run, record, index) for index, heatmap in enumerate(record.heatmaps)}
    return Answer(first.label, first.probability, places)


def _key(heatmap: HeatmapRecord) -> str:
    against = f" rather than {heatmap.against.label}" if heatmap.against else ""
    return f"{heatmap.method} {heatmap.target.label}{against}" if heatmap.target else heatmap.method


def _place(run: Run, record: ImageRecord, index: int) -> Place:
    heatmap = record.heatmaps[index]
    return Place(
        _shares(heatmap.peak, record), _shares(heatmap.box, record), _grid(run, record, index) if record.maps else None
    )


def _shares(place: tuple[float, ...] | None, record: ImageRecord) -> Shares | None:
    sides = (record.width, record.height) * 2
    return tuple(round(value / side, 4) for value, side in zip(place, sides, strict=False)) if place else None


def _grid(run: Run, record: ImageRecord, index: int) -> Grid:
    x, y = GRID / record.width, GRID / record.height
    x0, y0, x1, y1 = record.seen
    heat = run.heat(record, index).clip(min=0)
    (left, top, right, bottom), found = geometry.field(heat, Box(x0 * x, y0 * y, x1 * x, y1 * y), GRID, GRID, GRID)
    grid = np.zeros((GRID, GRID), np.uint8)
    grid[top:bottom, left:right] = np.rint(found * 255)
    return grid


def _written(places: Mapping[str, Place]) -> dict[str, Any]:
    return {
        key: [place.peak, place.box, None if place.grid is None else base64.b64encode(place.grid.tobytes()).decode()]
        for key, place in places.items()
    }


def _of_file(path: Path) -> Baseline:
    try:
        told = json.loads(gzip.decompress(path.read_bytes()))
        if told["camcli_baseline"] != SCHEMA_VERSION:
            raise ConfigError(f"{path}: a baseline of schema {told['camcli_baseline']}; make it anew: camcli baseline")
        answers = {
            name: Answer(label, probability, _read(places))
            for name, (label, probability, places) in told["answers"].items()
        }
        return Baseline(str(path), told["labels_sha256"], told["input"], answers)
    except _NO_BASELINE as error:
        raise ConfigError(f"{path}: is no baseline that camcli wrote: {type(error).__name__}: {error}") from None


def _read(places: Mapping[str, Any]) -> dict[str, Place]:
    return {
        key: Place(tuple(peak) if peak else None, tuple(box) if box else None, _decoded(grid))
        for key, (peak, box, grid) in places.items()
    }


def _decoded(text: str | None) -> Grid | None:
    return None if text is None else np.frombuffer(base64.b64decode(text), np.uint8).reshape(GRID, GRID)
