"""The parts of a run, each made with --shard, as one run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from camcli.errors import ConfigError, IncompleteError
from camcli.results.fingerprint import differences
from camcli.results.ledger import line_of
from camcli.results.manifest import NOTHING, Manifest, ids_hash
from camcli.results.resume import refuse_another_config
from camcli.results.run import Run, refuse_strange, results_file, run_in
from camcli.results.rundir import RunDir
from camcli.results.shard import Shard

_SUMMED = ("failures", "without_evidence", "fingerprints", "looks", "resumed", "counts", "profile", "precisions")

_APART = "move run.json and results.jsonl elsewhere, and merge again"


@dataclass(frozen=True, slots=True)
class PartRun:
    """A part, and what it has left; once it is finished, its ids are in the order of its positions."""

    shard: Shard
    run: Run

    @property
    def places(self) -> Iterator[tuple[int, str]]:
        """(position in the whole run, id)."""
        positions = self.run.manifest.shard.positions if self.run.manifest.shard else ()
        return zip(positions, self.run.ledger.entries, strict=False)


def merge(out: Path) -> Manifest:
    """Write results.jsonl and run.json from the parts in `out`, and return the manifest.

    Raises IncompleteError that names each part that is missing or unfinished, and ConfigError for parts of
    different runs.
    """
    _finished(out)
    with RunDir(out, kind="merge") as folder:
        parts = _finished(out)
        for run in (folder.earlier, *(part.run for part in parts)):
            refuse_strange(run)
        _check_alike(out, parts)
        refuse_another_config(folder.earlier, parts[0].run.manifest, _APART)
        folder.replace_results(_lines(parts))
        joined = _joined([part.run.manifest for part in parts])
        folder.write_manifest(joined)
    return joined


def shards_in(out: Path) -> list[Shard]:
    """The parts that have begun in `out`, in order; raises ConfigError where they are of different divisions."""
    if not out.is_dir():
        raise ConfigError(f"{out}: no such folder")
    found = [re.fullmatch(r"run-(\d+)-of-(\d+)\.json", path.name) for path in out.glob("run-*-of-*.json")]
    shards = sorted((Shard(int(m[1]), int(m[2])) for m in found if m), key=lambda s: (s.count, s.index))
    counts = sorted({shard.count for shard in shards})
    if len(counts) > 1:
        raise ConfigError(f"{out}: holds parts of {' and '.join(map(str, counts))}; use one --out for each division")
    return shards


def _finished(out: Path) -> list[PartRun]:
    """Raises ConfigError where there are none and IncompleteError where they are not all finished."""
    begun = shards_in(out)
    if not begun:
        raise ConfigError(f"{out}: holds no parts of a run; they are made with `camcli run --shard I/N`")
    count = begun[0].count
    parts = [PartRun(shard, run_in(out, shard.suffix)) for shard in (Shard(i, count) for i in range(1, count + 1))]
    missing = [f"{p.shard} ({p.run.manifest.status})" for p in parts if p.run.manifest.status != "finished"]
    if missing:
        raise IncompleteError(f"{out}: parts are missing: {', '.join(missing)}; run each with --shard I/{count}")
    return parts


def refuse_another_run(out: Path, shard: Shard, settings: Manifest) -> None:
    """Raises ConfigError where another part in `out` was made with another config than `settings`."""
    others = [PartRun(other, run_in(out, other.suffix)) for other in shards_in(out) if other != shard]
    for other in others:
        told = other.run.manifest
        if told == NOTHING:
            continue
        if told.inputs.roots != settings.inputs.roots:
            raise ConfigError(
                f"{out}: part {other.shard} is about images below {', '.join(told.inputs.roots)}, and this one "
                f"about images below {', '.join(settings.inputs.roots)}; choose another --out, or give the same inputs"
            )
        if told.made_with != settings.made_with:
            raise ConfigError(
                f"{_unlike(out, settings, other)}\nall parts of a run have one config: choose another --out, or "
                "start every part over with --fresh"
            )


def _check_alike(out: Path, parts: Sequence[PartRun]) -> None:
    """Raises ConfigError unless all parts had the same settings and images, which together are complete."""
    first = parts[0].run.manifest
    for part in parts[1:]:
        if part.run.manifest.made_with != first.made_with:
            raise ConfigError(_unlike(out, first, part))
        if _images(part.run.manifest) != _images(first):
            raise ConfigError(f"{out}: part {part.shard} found other images than the first; run it again")
    places = sorted(place for part in parts for place in part.places)
    complete = [position for position, _ in places] == list(range(len(places)))
    if not complete or ids_hash(name for _, name in places) != first.inputs.sha256:
        raise IncompleteError(f"{out}: the parts' records do not cover each image once; run them again")


def _images(told: Manifest) -> tuple[int, str, list[str]]:
    return told.inputs.images, told.inputs.sha256, told.inputs.roots


def _unlike(out: Path, settings: Manifest, other: PartRun) -> str:
    changes = "".join(f"\n  {line}" for line in differences(settings.identity, other.run.manifest.identity))
    return f"{out}: part {other.shard} was made with another config:{changes}"


def _lines(parts: Sequence[PartRun]) -> Iterator[bytes]:
    """All records in the order of the whole run."""
    places = sorted((position, number, name) for number, part in enumerate(parts) for position, name in part.places)
    with ExitStack() as stack:
        files = [stack.enter_context(results_file(part.run.path, part.run.suffix).open("rb")) for part in parts]
        for _, number, name in places:
            yield line_of(files[number], parts[number].run.ledger.entries[name])


def _joined(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest, as a run that was not divided would have left it."""
    told = [one.as_json() for one in manifests]
    summed = {name: _sum(one.get(name, {}) for one in told) for name in _SUMMED}
    of_all = {
        "libraries": {key: value for one in manifests for key, value in one.libraries.items()},
        "started": min(one.started for one in manifests),
        "seconds": round(sum(one.seconds for one in manifests), 3),
        "exit_code": 1 if summed["counts"].get("failed") else 0,
    }
    first = {key: value for key, value in told[0].items() if key != "shard"}
    return Manifest.model_validate({**first, **summed, **of_all})


def _sum(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum for each name."""
    total: dict[str, float] = {}
    for one in counts:
        for name, value in one.items():
            total[name] = round(total.get(name, 0) + value, 3)
    return dict(sorted(total.items()))
