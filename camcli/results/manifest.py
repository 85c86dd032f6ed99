"""run.json, typed: settings and surroundings of a run, and how it ended."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from camcli import records
from camcli.errors import ConfigError
from camcli.images.find import Item, roots_of
from camcli.records import SCHEMA_VERSION, BackendName, RunReport
from camcli.results import storage, versions
from camcli.results.counts import precisions
from camcli.results.fingerprint import SHORT
from camcli.results.ledger import Entry, strange_schema
from camcli.results.shard import Shard

NOT_BEGUN = "not begun"

Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    """Fields that a later camcli adds are kept; those that it leaves out have defaults."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())


class Inputs(_Section):
    """Which images a run is about: what the user named, how many, a hash of their ids in order, and their roots."""

    images: Count = 0
    sha256: str = ""
    names: list[str] = []
    ext: list[str] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    root: str | None = None
    folder: str | None = None
    roots: list[str] = []


class Model(_Section):
    """Which classifier; weights: where they came from, of which weights_sha256 is None for random ones.

    code: the Python file of the user's that builds it.
    """

    source: str = ""
    name: str = ""
    weights: str = ""
    weights_sha256: str | None = None
    code: str | None = None
    code_sha256: str | None = None
    classes: Count = 0
    activation: str = "softmax"


class Guard(_Section):
    """What 16 bits were trusted with, as in `engine.precision`."""

    model_config = ConfigDict(extra="forbid")

    logits: float
    maps: dict[str, float]


class UsedBackend(_Section):
    """What computed the network before the target layer, and why."""

    used: BackendName
    why: str


class Precision(_Section):
    """Of the forward pass, and why."""

    used: records.Precision
    why: str
    guard: Guard | None = None


class Counts(_Section):
    """How the images of a run ended."""

    done: Count = 0
    failed: Count = 0
    skipped: Count = 0


class Resumed(_Section):
    """kept: images that an earlier run had explained. vanished: images of an earlier run whose files are gone."""

    kept: Count = 0
    vanished: Count = 0


class Part(_Section):
    """Part `index` of `count`; positions: of its images in the order of all."""

    index: int
    count: int
    positions: list[int]


class Manifest(_Section):
    """What run.json says, in reading order.

    status: running, finished, interrupted, stopped, or `not begun` where there is no run. layers: for each layer, the
    taps that it is read from. precision, backend, batch_size: what was chosen, None where that is not known. libraries:
    the versions that made the records, by the key that records bear. config: as requested. identity: what decides about
    results; `fingerprint` is the hash of what decides about numbers, `look` that of how overlays look, and fingerprints
    and looks count the records that have each.
    """

    schema_version: int
    status: str
    started: str = ""
    seconds: float = 0.0
    exit_code: int = 0
    counts: Counts = Counts()
    failures: dict[str, int] = {}
    without_evidence: dict[str, int] = {}
    model: Model = Model()
    layers: list[list[dict[str, Any]]] = []
    notes: list[str] = []
    inputs: Inputs = Inputs()
    skipped_files: dict[str, int] = {}
    resumed: Resumed = Resumed()
    shard: Part | None = None
    device: str = ""
    precision: Precision | None = None
    backend: UsedBackend | None = None
    precisions: dict[str, int] = {}
    batch_size: Annotated[int, Field(ge=1)] | None = None
    profile: dict[str, float] = {}
    process: dict[str, Any] = {}
    versions: dict[str, str] = {}
    libraries: dict[str, dict[str, str]] = {}
    input: dict[str, Any] = {}
    config: dict[str, Any] = {}
    fingerprint: str = ""
    look: str = ""
    fingerprints: dict[str, int] = {}
    looks: dict[str, int] = {}
    identity: dict[str, Any] = {}

    @property
    def strange(self) -> str:
        """What this camcli cannot read in it, empty for nothing."""
        return strange_schema("a manifest", self.schema_version)

    @property
    def made_with(self) -> tuple[str, str]:
        """Fingerprint and look as this run's own records bear them."""
        return self.fingerprint[:SHORT], self.look[:SHORT]

    @property
    def labels_sha256(self) -> str:
        """Hash of the labels that the model had, empty where that is not known."""
        model = self.identity.get("model")
        return str(model.get("labels_sha256", "")) if isinstance(model, Mapping) else ""

    @property
    def above(self) -> float | None:
        """What `targets.above` was, None where classes were chosen otherwise."""
        targets = self.config.get("targets")
        above = targets.get("above") if isinstance(targets, Mapping) else None
        return above if isinstance(above, float) else None

    def as_json(self) -> dict[str, Any]:
        """What was said, as plain JSON values in reading order."""
        return self.model_dump(exclude_unset=True)


NOTHING = Manifest(schema_version=SCHEMA_VERSION, status=NOT_BEGUN)


def manifest_file(path: Path, suffix: str = "") -> Path:
    """Where the manifest of a run, or of the part called `suffix`, is."""
    return path / f"run{suffix}.json"


def read_manifest(path: Path, suffix: str = "") -> Manifest:
    """The manifest in the run folder `path`, NOTHING where there is none.

    Raises OutputError for a file that cannot be read, and ConfigError for one that camcli did not write.
    """
    file = manifest_file(path, suffix)
    if not os.path.lexists(file):
        return NOTHING
    with storage.fatal(file, "read"):
        data = storage.read_regular(file)
    try:
        return parsed(data)
    except ValueError as error:
        raise ConfigError(f"{file}: is no manifest that camcli wrote: {error}") from None


def parsed(data: bytes) -> Manifest:
    """The manifest in `data`; raises ValueError with the reason where it is none."""
    try:
        found = json.loads(data)
        json.dumps(found, allow_nan=False)
        return Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{place}: {first['msg'].lower()}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from None


def running(settings: Manifest) -> Manifest:
    """The manifest while the run is on its way."""
    process = {"pid": os.getpid(), "host": socket.gethostname()}
    return settings.model_copy(update={"status": "running", "process": process})


def ended(settings: Manifest, report: RunReport, entries: Mapping[str, Entry], interrupted: bool) -> Manifest:
    """The manifest at the end; `entries` are all the records in the folder."""
    unfinished = "interrupted" if interrupted else "stopped"
    return settings.model_copy(
        update={
            "status": unfinished if report.skipped else "finished",
            "seconds": report.seconds,
            "exit_code": report.exit_code,
            "counts": Counts(done=report.done, failed=report.failed, skipped=report.skipped),
            "failures": report.failures,
            "without_evidence": report.without_evidence,
            "skipped_files": report.skipped_files,
            "fingerprints": dict(sorted(Counter(entry.fingerprint for entry in entries.values()).items())),
            "looks": dict(sorted(Counter(entry.look for entry in entries.values()).items())),
            "precisions": precisions(entries.values()),
            "resumed": Resumed(kept=report.kept, vanished=report.vanished),
        }
    )


def libraries(entries: Iterable[Entry], earlier: Manifest, current: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The versions that made `entries`, by their key; earlier: the manifest of the run before."""
    known = {**earlier.libraries, versions.key(): dict(current)}
    return {key: known.get(key, {}) for key in sorted({entry.versions for entry in entries})}


def listing(items: Sequence[Item], asked: Mapping[str, Any] | None) -> Inputs:
    """Which images a run is about; asked: what the user named."""
    found = {"images": len(items), "sha256": ids_hash(item.id for item in items), "roots": roots_of(items)}
    return Inputs.model_validate({**(asked or {}), **found})


def ids_hash(ids: Iterable[str]) -> str:
    """Hex SHA-256 of ids in their order."""
    digest = hashlib.sha256()
    for name in ids:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()


def part(items: Sequence[Item], shard: Shard) -> Part:
    """Which of all images belong to a part."""
    positions = [position for position, item in enumerate(items) if shard.has(item.id)]
    return Part(index=shard.index, count=shard.count, positions=positions)
