"""The parts of a run, each made with --shard, as one run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camcli.errors import ConfigError, IncompleteError
from camcli.results import manifest
from camcli.results.fingerprint import differences
from camcli.results.ledger import Ledger, line_of, read_ledger
from camcli.results.resume import refuse_another_config, refuse_strange
from camcli.results.rundir import RunDir, read_manifest, results_file
from camcli.results.shard import Shard

_SUMMED = ("failures", "without_evidence", "fingerprints", "resumed", "counts", "profile", "precisions")


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is finished: ids in the order of its positions."""

    shard: Shard
    manifest: manifest.Manifest
    ledger: Ledger

    @property
    def places(self) -> Iterator[tuple[int, str]]:
        """(position in the whole run, id)."""
        return zip(self.manifest["shard"]["positions"], self.ledger.entries, strict=False)


def merge(out: Path) -> manifest.Manifest:
    """Write results.jsonl and run.json from the parts in `out`, and return the manifest.

    Raises IncompleteError that names each part that is missing or unfinished, and ConfigError for parts of
    different runs.
    """
    _finished(out)
    with RunDir(out, kind="merge") as folder:
        parts = _parts(out)
        _check_alike(out, parts)
        first = parts[0].manifest
        refuse_another_config(out, folder.ledger, folder.earlier, first["identity"], first["fingerprint"])
        folder.replace_results(_lines(out, parts))
        joined = _joined([part.manifest for part in parts])
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


def _parts(out: Path) -> list[Part]:
    """Raises ConfigError where there are none and IncompleteError where they are not all finished."""
    parts = [Part(shard, found, read_ledger(results_file(out, shard.suffix))) for shard, found in _finished(out)]
    for part in parts:
        refuse_strange(out, part.ledger)
    return parts


def _finished(out: Path) -> list[tuple[Shard, manifest.Manifest]]:
    begun = shards_in(out)
    if not begun:
        raise ConfigError(f"{out}: holds no parts of a run; they are made with `camcli run --shard I/N`")
    count = begun[0].count
    found = [(shard, read_manifest(out, shard.suffix)) for shard in (Shard(i, count) for i in range(1, count + 1))]
    finished = [(shard, told) for shard, told in found if told and told.get("status") == "finished"]
    if len(finished) < count:
        ended = dict(finished)
        missing = [f"{s} ({t.get('status') if t else 'not begun'})" for s, t in found if s not in ended]
        raise IncompleteError(f"{out}: parts are missing: {', '.join(missing)}; run each with --shard I/{count}")
    return finished


def refuse_another_run(out: Path, shard: Shard, settings: manifest.Manifest) -> None:
    """Raises ConfigError where another part in `out` was made with another config than `settings`."""
    for other in shards_in(out):
        told = read_manifest(out, other.suffix) if other != shard else None
        if told and told["inputs"].get("roots") != settings["inputs"]["roots"]:
            raise ConfigError(
                f"{out}: part {other} is about images below {', '.join(told['inputs'].get('roots', []))}, and this one "
                f"about images below {', '.join(settings['inputs']['roots'])}; choose another --out, or give the same "
                "inputs"
            )
        if told and told.get("fingerprint") != settings["fingerprint"]:
            raise ConfigError(
                f"{_unlike(out, settings, other, told)}\nall parts of a run have one config: choose another --out, or "
                "start every part over with --fresh"
            )


def _check_alike(out: Path, parts: Sequence[Part]) -> None:
    """Raises ConfigError unless all parts had the same settings and images, which together are complete."""
    first = parts[0].manifest
    for part in parts[1:]:
        if part.manifest["fingerprint"] != first["fingerprint"]:
            raise ConfigError(_unlike(out, first, part.shard, part.manifest))
        if _images(part.manifest) != _images(first):
            raise ConfigError(f"{out}: part {part.shard} found other images than the first; run it again")
    places = sorted(place for part in parts for place in part.places)
    complete = [position for position, _ in places] == list(range(len(places)))
    if not complete or manifest.ids_hash(name for _, name in places) != first["inputs"]["sha256"]:
        raise IncompleteError(f"{out}: the parts' records do not cover each image once; run them again")


def _images(told: manifest.Manifest) -> list[Any]:
    return [told["inputs"].get(field) for field in ("images", "sha256", "roots")]


def _unlike(out: Path, settings: manifest.Manifest, other: Shard, told: manifest.Manifest) -> str:
    changes = "".join(f"\n  {line}" for line in differences(settings["identity"], told["identity"]))
    return f"{out}: part {other} was made with another config:{changes}"


def _lines(out: Path, parts: Sequence[Part]) -> Iterator[bytes]:
    """All records in the order of the whole run."""
    places = sorted((position, number, name) for number, part in enumerate(parts) for position, name in part.places)
    files = [results_file(out, part.shard.suffix).open("rb") for part in parts]
    try:
        for _, number, name in places:
            yield line_of(files[number], parts[number].ledger.entries[name])
    finally:
        for file in files:
            file.close()


def _joined(manifests: Sequence[manifest.Manifest]) -> manifest.Manifest:
    """One manifest, as a run that was not divided would have left it."""
    joined = {key: value for key, value in manifests[0].items() if key != "shard"}
    for field in _SUMMED:
        total: Counter[str] = Counter()
        for one in manifests:
            total.update(one.get(field, {}))
        joined[field] = {name: round(value, 3) for name, value in sorted(total.items())}
    joined["libraries"] = {key: value for one in manifests for key, value in one.get("libraries", {}).items()}
    joined["started"] = min(one["started"] for one in manifests)
    joined["seconds"] = round(sum(one["seconds"] for one in manifests), 3)
    joined["exit_code"] = 1 if joined["counts"]["failed"] else 0
    return joined
