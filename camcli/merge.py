"""The parts of a run, each made with --shard, as one run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from camcli import manifest
from camcli.errors import ConfigError, IncompleteError
from camcli.fingerprint import differences
from camcli.ledger import Ledger, line_of, read_ledger
from camcli.resume import refuse_another_config
from camcli.rundir import RunDir, read_manifest, results_file
from camcli.shard import Shard

_SUMMED = ("failures", "fingerprints", "resumed", "counts", "profile")


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
    with RunDir(out) as folder:
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
    found = [re.fullmatch(r"run-(\d+)-of-(\d+)\.json", path.name) for path in out.glob("run-*-of-*.json")]
    shards = sorted((Shard(int(m[1]), int(m[2])) for m in found if m), key=lambda s: (s.count, s.index))
    counts = sorted({shard.count for shard in shards})
    if len(counts) > 1:
        raise ConfigError(f"{out}: holds parts of {' and '.join(map(str, counts))}; use one --out for each division")
    return shards


def _parts(out: Path) -> list[Part]:
    begun = {shard.index: shard for shard in shards_in(out)}
    if not begun:
        raise ConfigError(f"{out}: holds no parts of a run; they are made with `camcli run --shard I/N`")
    count = next(iter(begun.values())).count
    parts, missing = [], []
    for shard in (Shard(index, count) for index in range(1, count + 1)):
        found = read_manifest(out, shard.suffix)
        if found is None or found.get("status") != "finished":
            missing.append(f"{shard} ({found.get('status') if found else 'not begun'})")
        else:
            parts.append(Part(shard, found, read_ledger(results_file(out, shard.suffix))))
    if missing:
        raise IncompleteError(f"{out}: parts are missing: {', '.join(missing)}; run each with --shard I/{count}")
    return parts


def _check_alike(out: Path, parts: Sequence[Part]) -> None:
    """Raises ConfigError unless all parts had the same settings and pictures, which together are complete."""
    first = parts[0].manifest
    for part in parts[1:]:
        if part.manifest["fingerprint"] != first["fingerprint"]:
            changes = "".join(f"\n  {line}" for line in differences(first["identity"], part.manifest["identity"]))
            raise ConfigError(f"{out}: part {part.shard} was made with another config than the first:{changes}")
        if part.manifest["inputs"] != first["inputs"]:
            raise ConfigError(f"{out}: part {part.shard} found other images than the first; run it again")
    positions = Counter(position for part in parts for position, _ in part.places)
    if positions != Counter(range(first["inputs"]["images"])):
        raise IncompleteError(f"{out}: the parts' records do not cover each image once; run them again")


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
            total.update(one[field])
        joined[field] = {name: round(value, 3) for name, value in sorted(total.items())}
    joined["started"] = min(one["started"] for one in manifests)
    joined["seconds"] = round(sum(one["seconds"] for one in manifests), 3)
    joined["exit_code"] = 1 if joined["counts"]["failed"] else 0
    return joined
