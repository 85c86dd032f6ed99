"""A run folder, read: records, failures, heat and overlays, for all who look at results. Never torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camcli.errors import ConfigError
from camcli.results.ledger import Entry, Ledger, line_of, read_ledger
from camcli.results.report import FailureRecord, ImageRecord, parse
from camcli.results.rundir import Manifest, read_manifest, results_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Run:
    """What a finished, interrupted or running run has left in `path` by now.

    manifest: the content of run.json. ledger: one entry for each image, of which records are read when asked for.
    """

    path: Path
    manifest: Manifest
    ledger: Ledger

    def __len__(self) -> int:
        """How many images have a record, explained or failed."""
        return len(self.ledger.entries)

    def records(self) -> Iterator[ImageRecord]:
        """The images that were explained, in order."""
        for record in self._read(done=True):
            assert isinstance(record, ImageRecord)
            yield record

    def failures(self) -> Iterator[FailureRecord]:
        """The images that failed, in order."""
        for record in self._read(done=False):
            assert isinstance(record, FailureRecord)
            yield record

    def _read(self, done: bool) -> Iterator[ImageRecord | FailureRecord]:
        wanted: list[Entry] = [entry for entry in self.ledger.entries.values() if entry.done == done]
        if wanted:
            with results_file(self.path).open("rb") as file:
                for entry in wanted:
                    yield parse(line_of(file, entry))

    def overlay(self, record: ImageRecord, index: int = 0) -> Path:
        """The overlay of one of a record's heatmaps."""
        return self.path / record.heatmaps[index].overlay

    def heat(self, record: ImageRecord, index: int = 0) -> NDArray[np.float32]:
        """float32 [h,w] of one of a record's heatmaps, 0..1 or -1..1; raises ConfigError where no maps were kept."""
        if not record.maps:
            raise ConfigError(f"{self.path}: keeps no maps; run it with --set maps=npz")
        heatmap, names = record.heatmaps[index], record.maps
        if names[0].endswith(".npz"):
            import numpy as np

            with np.load(self.path / names[0]) as arrays:
                target = f".{heatmap.target.index}" if heatmap.target else ""
                found: NDArray[np.float32] = arrays[heatmap.method + target]
                return found
        return _from_png(self.path / names[index], heatmap.signed)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each image and heatmap; needs pandas."""
        import pandas  # type: ignore[import-untyped]

        rows = [
            {
                "id": record.id,
                "top1": record.top[0].label,
                "probability": record.top[0].probability,
                **{key: value for key, value in heatmap.model_dump().items() if key not in ("target", "against")},
                "target": heatmap.target.label if heatmap.target else None,
                "target_probability": heatmap.target.probability if heatmap.target else None,
            }
            for record in self.records()
            for heatmap in record.heatmaps
        ]
        return pandas.DataFrame(rows)


def open_run(out: str | Path) -> Run:
    """The run in the folder `out`; raises ConfigError where it is none."""
    path = Path(out)
    manifest = read_manifest(path)
    if manifest is None:
        raise ConfigError(f"{path}: no run folder of camcli, for there is no readable run.json in it")
    return Run(path, manifest, read_ledger(results_file(path)))


def _from_png(path: Path, signed: bool) -> NDArray[np.float32]:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        unit = np.asarray(image, dtype=np.float32) / np.float32(65535)
    return 2 * unit - 1 if signed else unit
