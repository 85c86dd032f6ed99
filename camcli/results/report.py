"""The JSON that a run leaves for each image: its models, which are also its published schema."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from camcli.records import Precision, Stage

_SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"

Corners = tuple[float, float, float, float]
Unit = Annotated[float, Field(ge=0, le=1)]
Index = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class TargetRecord(_Record):
    """One class and what the model says of it."""

    index: Index
    label: str
    probability: Unit
    logit: float


class RankedRecord(TargetRecord):
    """A class among the most probable ones."""

    rank: Annotated[int, Field(ge=1, description="1 is the most probable.")]


class HeatmapRecord(_Record):
    """One heatmap of an image."""

    method: str
    target: TargetRecord | None = Field(description="null: the map is the same for every class.")
    against: TargetRecord | None = Field(None, description="The class that the target is contrasted with.")
    signed: bool = Field(False, description="Negative heat speaks against the target: the map is -1..1, not 0..1.")
    overlay: str = Field(description="Path below the run folder.")
    raw_min: float = Field(description="Smallest value of the map before scaling.")
    raw_max: float = Field(description="Largest value of the map before scaling.")
    empty: bool = Field(description="No evidence for the class: the map is zero everywhere.")
    reason: str = Field("", description="Why the map is empty.")
    peak: tuple[Index, Index] | None = Field(description="[x, y] of the hottest cell's centre, original pixels.")
    box: Corners | None = Field(
        description="[x0, y0, x1, y1] around the region above half of the maximum, original pixels."
    )


class ModelRecord(_Record):
    """Which classifier."""

    source: str
    name: str
    weights_sha256: str | None = Field(description="null: random weights.")


class FileRecord(_Record):
    """The input file as it was read; a later run compares it."""

    bytes: Index
    mtime_ns: int
    sha256: str | None


class ImageRecord(_Record):
    """An image that was explained."""

    schema_version: Literal[1] = 1
    status: Literal["done"] = "done"
    id: str = Field(description="Path below the input root, forward slashes.")
    source: str = Field(description="The file that was read.")
    input: FileRecord | None = Field(None, description="That file's size, time and hash.")
    fingerprint: str = Field("", description="Of all settings that decide about the numbers and pixels here.")
    versions: str = Field("", description="Key of the libraries' versions, which are in run.json under `libraries`.")
    files: dict[str, int] = Field({}, description="Size in bytes of each file written, by path below the run folder.")
    width: Size = Field(description="Pixels, after EXIF orientation.")
    height: Size = Field(description="Pixels, after EXIF orientation.")
    seen: Corners = Field(
        description="[x0, y0, x1, y1] of the part that the model saw, original pixels; beyond the image if padded."
    )
    model: ModelRecord
    layer: str
    precision: Precision | None = Field(
        None, description="Of the forward pass; fp32 in a run in 16 bits: those left this image's answer in doubt."
    )
    top: list[RankedRecord]
    heatmaps: list[HeatmapRecord]
    maps: list[str] = Field(description="Raw map files below the run folder, empty unless asked for.")
    grids: list[str] = Field(
        [], description="Comparisons of all methods, below the run folder, empty unless asked for."
    )


class FailureRecord(_Record):
    """An image that could not be explained."""

    schema_version: Literal[1] = 1
    status: Literal["failed"] = "failed"
    id: str
    source: str
    input: FileRecord | None = Field(None, description="The file's size, time and hash; null: there was none.")
    fingerprint: str = Field("", description="Of the settings with which it failed.")
    versions: str = Field("", description="Key of the libraries' versions, which are in run.json under `libraries`.")
    stage: Stage
    kind: str = Field(description="Name of the error.")
    message: str


_RECORD: TypeAdapter[ImageRecord | FailureRecord] = TypeAdapter(
    Annotated[ImageRecord | FailureRecord, Field(discriminator="status")]
)


def parse(line: bytes | str) -> ImageRecord | FailureRecord:
    """A line of results.jsonl; raises pydantic's ValidationError for what camcli did not write."""
    return _RECORD.validate_json(line)


def json_schema() -> dict[str, Any]:
    """JSON Schema of `reports/<id>.json` and of each line of `results.jsonl`."""
    return {"$schema": _SCHEMA_URL, "title": "camcli report", **_RECORD.json_schema(mode="serialization")}


def to_json(record: BaseModel, indent: int | None = None) -> str:
    """Sorted keys, ASCII only, never NaN."""
    # In its own JSON mode pydantic replaces undecodable characters in the keys of `files`.
    return json.dumps(record.model_dump(), sort_keys=True, allow_nan=False, indent=indent)


def report_text(record: ImageRecord) -> bytes:
    """The content of `reports/<id>.json`."""
    return to_json(record, indent=2).encode() + b"\n"


def sealed(record: ImageRecord, fingerprint: str, sizes: dict[str, int], own: str | None) -> tuple[ImageRecord, bytes]:
    """With the sizes of the files written for it, and its text; `own`, its report, holds its own size as well."""
    files = {**sizes, own: 0} if own else sizes
    record = record.model_copy(update={"fingerprint": fingerprint, "files": files})
    if own is None:
        return record, b""
    text, place = report_text(record), f"{json.dumps(own)}: ".encode()
    size = _with_itself(len(text) - 1)
    sealed = record.model_copy(update={"files": {**sizes, own: size}})
    return sealed, text.replace(place + b"0", place + str(size).encode())


def _with_itself(length: int) -> int:
    """A number that is `length` plus how many digits it has."""
    size = length + 1
    while size != length + len(str(size)):
        size = length + len(str(size))
    return size
