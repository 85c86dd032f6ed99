"""A run folder, read: records, failures, heat and overlays, for all who look at results. Never torch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camcli.config.schema import DFF
from camcli.errors import ConfigError
from camcli.results.claim import parts_in
from camcli.results.concepts import Concept, read_learnt
from camcli.results.ledger import Entry, Ledger, line_of, read_ledger
from camcli.results.manifest import NOTHING, Manifest, read_manifest
from camcli.results.report import FailureRecord, HeatmapRecord, ImageRecord, parse
from camcli.results.rows import Row, columns, rows_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# NumPy parses headers with `ast`, which before Python 3.12 fails now and then where several threads do
# (https://github.com/python/cpython/issues/106905).
_ONE_HEADER_AT_A_TIME = threading.Lock()

_AGAIN = "--fresh starts over when it is run again, and the camcli that wrote it can read it"


def results_file(path: Path, suffix: str = "") -> Path:
    """Where the records of a run, or of the part called `suffix`, are."""
    return path / f"results{suffix}.jsonl"


@dataclass(frozen=True)
class Run:
    """What a finished, interrupted or running run has left in `path` by now.

    manifest: the content of run.json. suffix: of the part that it is, such as `-3-of-8`; empty for a whole run.
    """

    path: Path
    manifest: Manifest
    suffix: str = ""

    @cached_property
    def ledger(self) -> Ledger:
        """One entry for each image, read once when first asked for; raises OutputError."""
        return read_ledger(results_file(self.path, self.suffix))

    @property
    def strange(self) -> str:
        """What there is that this camcli cannot read and another run would lose; empty: nothing."""
        return self.ledger.strange or self.manifest.strange

    def __len__(self) -> int:
        """How many images have a record, explained or failed."""
        return len(self.ledger.entries)

    def records(self) -> Iterator[ImageRecord]:
        """The images that were explained, in order; raises ConfigError for a record that camcli did not write."""
        for record in self.read(entry for entry in self.ledger.entries.values() if entry.done):
            assert isinstance(record, ImageRecord)
            yield record

    def failures(self) -> Iterator[FailureRecord]:
        """The images that failed, in order; raises as `records`."""
        for record in self.read(entry for entry in self.ledger.entries.values() if not entry.done):
            assert isinstance(record, FailureRecord)
            yield record

    def read(self, entries: Iterable[Entry]) -> Iterator[ImageRecord | FailureRecord]:
        """The records of some of the ledger's entries, in their order; raises as `records`."""
        path = results_file(self.path, self.suffix)
        if not path.exists():
            return
        with path.open("rb") as file:
            for entry in entries:
                try:
                    yield parse(line_of(file, entry))
                except ValueError as error:
                    raise ConfigError(f"{path}: the record of {entry.id} is none of camcli's: {error}") from None

    def rows(self) -> Iterator[Row]:
        """The run as a table: a row for each image and heatmap, in order; raises as `records`."""
        return rows_of(self.read(self.ledger.entries.values()))

    @property
    def finds_concepts(self) -> bool:
        """Whether it was to find what the images share, by `camcli dff`."""
        return self.manifest.config.get("methods") == [DFF]

    @property
    def command(self) -> str:
        """The command that goes on with it, for messages."""
        return "`camcli dff`" if self.finds_concepts else "`camcli run`"

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What the images share, in a run that found that; the heatmaps' `concept.index` counts them."""
        found = read_learnt(self.path) if self.finds_concepts else None
        return found.concepts if found else ()

    def overlay(self, record: ImageRecord, index: int = 0) -> Path:
        """The overlay of one of a record's heatmaps."""
        return self.path / record.heatmaps[index].overlay

    def heat(self, record: ImageRecord, index: int = 0) -> NDArray[np.float32]:
        """float32 [h,w] of one of a record's heatmaps, 0..1 or -1..1.

        Raises ConfigError where no maps were kept, and for a file that is gone or damaged.
        """
        if not record.maps:
            raise ConfigError(f"{self.path}: keeps no maps; run it with --set maps=npz")
        heatmap, packed = record.heatmaps[index], record.maps[0].endswith(".npz")
        file = self.path / record.maps[0 if packed else index]
        try:
            found = _from_npz(file, heatmap) if packed else _from_png(file, heatmap.signed)
            if found.ndim != 2:
                raise ValueError(f"a map of {found.ndim} dimensions")
        except Exception as error:  # NumPy and Pillow raise many kinds for a file that is damaged
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            step = "delete it, and the same run makes it anew"
            raise ConfigError(f"{file}: the map cannot be read: {reason}; {step}") from None
        return found

    def to_pandas(self) -> Any:
        """`rows` as a DataFrame; needs pandas."""
        import pandas  # type: ignore[import-untyped]

        return pandas.DataFrame([row.cells() for row in self.rows()], columns=list(columns()))


def run_in(path: Path, suffix: str = "") -> Run:
    """What a run, or the part called `suffix`, has left in `path`; a run.json that is not camcli's counts as none.

    Raises OutputError for files that cannot be read.
    """
    try:
        return Run(path, read_manifest(path, suffix), suffix)
    except ConfigError:
        return Run(path, NOTHING, suffix)


def open_run(out: str | Path) -> Run:
    """The run in the folder `out`; raises ConfigError where it is none, or one that this camcli cannot read."""
    path = Path(out)
    run = Run(path, read_manifest(path))
    refuse_no_run(run)
    refuse_strange(run)
    return run


def refuse_no_run(run: Run) -> None:
    """Raises ConfigError where there is no run.json."""
    if run.manifest == NOTHING:
        step = "; `camcli merge` joins the parts that are there" if parts_in(run.path) else ""
        raise ConfigError(f"{run.path}: no run folder of camcli, for there is no run.json in it{step}")


def refuse_strange(run: Run, step: str = _AGAIN) -> None:
    """Raises ConfigError when there is something in the results that this camcli cannot read and would lose.

    step: what to do about it.
    """
    if run.strange:
        raise ConfigError(f"{run.path}: its results hold {run.strange}; {step}")


def _from_npz(path: Path, heatmap: HeatmapRecord) -> NDArray[np.float32]:
    import numpy as np

    of = heatmap.target or heatmap.concept
    with path.open("rb") as file, _ONE_HEADER_AT_A_TIME, np.load(file) as arrays:
        found: NDArray[np.float32] = arrays[f"{heatmap.method}.{of.index}" if of else heatmap.method]
        return found


def _from_png(path: Path, signed: bool) -> NDArray[np.float32]:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        unit = np.asarray(image, dtype=np.float32) / np.float32(65535)
    return 2 * unit - 1 if signed else unit
