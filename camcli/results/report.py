"""The JSON that a run leaves for each image: its records, their text, and their published schema.

An `ImageResult` is what was found, with its arrays and before anything is written; an `ImageRecord` is what is said of
it on disk, where paths, sizes and fingerprints take the place of arrays. What is the same in both (a prediction, the
state of a file) is one class in `records`.

camcli builds records without validating them and writes each of them once; pydantic reads them back, and publishes
their schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from camcli.records import SCHEMA_VERSION, FileState, Lack, Precision, Prediction, Stage

_SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"
_ROWS = ("predictions", "heatmaps")

Corners = tuple[float, float, float, float]
Index = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptHeat:
    """How much of an image is of one concept."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    index: Annotated[Index, Field(description="Of the concept in concepts.json.")]
    mean: Annotated[
        float, Field(ge=0, le=1, description="Of the map's heat; heat 1 stands for the same value in all images.")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapRecord:
    """One heatmap of an image."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    method: str
    target: Annotated[Prediction | None, Field(description="null: the map is the same for every class.")]
    against: Annotated[Prediction | None, Field(description="The class that the target is contrasted with.")] = None
    concept: Annotated[ConceptHeat | None, Field(description="What the map is of instead of a class.")] = None
    peak: Annotated[
        tuple[Index, Index] | None, Field(description="[x, y] of the centre of the hottest location, original pixels.")
    ]
    box: Annotated[
        Corners | None,
        Field(description="[x0, y0, x1, y1] around the region above half of the maximum, original pixels."),
    ]
    raw_min: Annotated[float, Field(description="Smallest value of the map before scaling.")]
    raw_max: Annotated[float, Field(description="Largest value of the map before scaling.")]
    signed: Annotated[
        bool, Field(description="Negative heat speaks against the target: the map is -1..1, not 0..1.")
    ] = False
    empty: Annotated[bool, Field(description="No evidence for the class: the map is zero everywhere.")]
    reason: Annotated[str, Field(description="Why the map is empty.")] = ""
    overlay: Annotated[str, Field(description="Path below the run folder.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """Which classifier."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    source: str
    name: str
    weights_sha256: Annotated[str | None, Field(description="null: random weights.")]


Source = Annotated[str, Field(description="The file that was read.")]
Input = Annotated[FileState | None, Field(description="That file's size, time and hash; null: there was none.")]
Fingerprint = Annotated[str, Field(description="Of all settings that decide about the numbers here.")]
Look = Annotated[str, Field(description="Of the settings that decide how overlays look.")]
Versions = Annotated[str, Field(description="Key of the libraries' versions, in run.json under `libraries`.")]
Version = Annotated[Literal[2], Field(description="Of this schema.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """An image that was explained."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    id: Annotated[str, Field(description="Path below the input root, forward slashes.")]
    source: Source
    status: Literal["done"] = "done"
    predictions: Annotated[tuple[Prediction, ...], Field(description="The most probable classes, in order.")]
    heatmaps: tuple[HeatmapRecord, ...]
    truth: Annotated[None, Field(description="The true class; null: unknown.")] = None
    without_evidence: Annotated[Lack | None, Field(description="What there is too little of to see; null: nothing.")]
    width: Annotated[Size, Field(description="Pixels, after EXIF orientation.")]
    height: Annotated[Size, Field(description="Pixels, after EXIF orientation.")]
    seen: Annotated[
        Corners,
        Field(
            description="[x0, y0, x1, y1] of the part that the model saw, original pixels; beyond the image if padded."
        ),
    ]
    model: ModelRecord
    layer: str
    precision: Annotated[
        Precision,
        Field(
            description="Of the forward pass; fp32 in a run in 16 bits: those left this image's answer in doubt.",
        ),
    ]
    maps: Annotated[tuple[str, ...], Field(description="Raw map files below the run folder, if asked for.")] = ()
    grids: Annotated[
        tuple[str, ...], Field(description="Comparisons of all methods, below the run folder, if asked for.")
    ] = ()
    input: Input
    files: Annotated[
        dict[str, int], Field(description="Size in bytes of each file written, by path below the run folder.")
    ] = field(default_factory=dict)
    fingerprint: Fingerprint
    look: Look
    versions: Versions
    schema_version: Version = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRecord:
    """An image that could not be explained."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    id: str
    source: Source
    status: Literal["failed"] = "failed"
    stage: Stage
    kind: Annotated[str, Field(description="Name of the error.")]
    message: str
    input: Input
    fingerprint: Fingerprint
    look: Look
    versions: Versions
    schema_version: Version = SCHEMA_VERSION


Record = ImageRecord | FailureRecord
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="status")])


def parse(line: bytes | str) -> Record:
    """A line of results.jsonl; raises ValueError for what camcli did not write."""
    # pydantic's own reader of JSON refuses the undecodable characters that names of files may have.
    return _RECORD.validate_python(json.loads(line))


def json_schema() -> dict[str, Any]:
    """JSON Schema of `reports/<id>.json` and of each line of `results.jsonl`."""
    return {"$schema": _SCHEMA_URL, "title": "camcli report", **_RECORD.json_schema(mode="serialization")}


def _fields(value: Any) -> dict[str, Any]:
    """A record as the encoder takes it, in the order of its fields."""
    return {name: getattr(value, name) for name in value.__slots__}


_encode = json.JSONEncoder(default=_fields, allow_nan=False, check_circular=False).encode


def line_of_record(record: Record) -> bytes:
    """What stands for a record in results.jsonl: ASCII only, never NaN."""
    return _line(_texts(record))


def sealed(record: ImageRecord, own: str | None) -> tuple[ImageRecord, bytes, bytes]:
    """The record, its line and its report once `files` names the report `own`, with its size, as well.

    Without `own`, the report is empty.
    """
    texts = _texts(record)
    if own is None:
        return record, _line(texts), b""
    texts["files"] = _encode({**record.files, own: 0})
    files = {**record.files, own: _with_itself(len(_report(texts)) - 1)}
    texts["files"] = _encode(files)
    return replace(record, files=files), _line(texts), _report(texts)


def _texts(record: Record) -> dict[str, str | list[str]]:
    """Each field as JSON; predictions and heatmaps one by one."""
    return {
        name: [_encode(one) for one in value] if name in _ROWS else _encode(value)
        for name, value in _fields(record).items()
    }


def _line(texts: dict[str, str | list[str]]) -> bytes:
    whole = {name: text if isinstance(text, str) else f"[{', '.join(text)}]" for name, text in texts.items()}
    values = ", ".join(f'"{name}": {text}' for name, text in whole.items())
    return f"{{{values}}}\n".encode()


def _report(texts: dict[str, str | list[str]]) -> bytes:
    """As `_line`, for people: a line for each field, prediction and heatmap."""
    whole = {name: text if isinstance(text, str) else _rows(text) for name, text in texts.items()}
    values = ",\n  ".join(f'"{name}": {text}' for name, text in whole.items())
    return f"{{\n  {values}\n}}\n".encode()


def _rows(texts: list[str]) -> str:
    return "[\n    {}\n  ]".format(",\n    ".join(texts)) if texts else "[]"


def _with_itself(length: int) -> int:
    """A number that is `length` plus how many digits it has."""
    size = length + 1
    while size != length + len(str(size)):
        size = length + len(str(size))
    return size
