"""The overlays of a run, drawn anew from its maps and images: another look without another forward pass, or torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from camcli.config.schema import OverlayConfig, RunConfig
from camcli.errors import CamcliError, ConfigError, ItemError
from camcli.images.decode import LoadedImage, loading, pixels
from camcli.images.find import state_of, unchanged
from camcli.images.geometry import Heat
from camcli.images.libtiff import quiet_decoders
from camcli.images.preprocess import Preprocess, seen_of
from camcli.images.read import Source
from camcli.pipeline.drawing import draw, drawing_cost, legend_of, tops_of
from camcli.pipeline.flow import until
from camcli.pipeline.interrupt import Interrupt
from camcli.pipeline.limits import budget_for, cores
from camcli.pipeline.order import in_order
from camcli.pipeline.progress import Progress, Silent
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Box, Failure, Heatmap, ImageResult
from camcli.render.overlay import longest
from camcli.results.claim import CONCEPTS
from camcli.results.concepts import VECTORS
from camcli.results.fingerprint import SHORT, look_of
from camcli.results.ledger import Line, line_for
from camcli.results.manifest import Manifest, running
from camcli.results.report import FailureRecord, ImageRecord, line_of_record, sealed
from camcli.results.run import Run, refuse_no_run, refuse_strange, run_in
from camcli.results.rundir import RunDir
from camcli.results.storage import fitted

_FINISHING = "finishing the overlays under way; again to stop now"
NO_MAPS = "NoMaps"


@dataclass(frozen=True, slots=True)
class Repainted:
    """How many images were painted anew, how many looked so already, and which were left as they are, and why.

    failed: images that had failed in the run, which have nothing to be painted.
    """

    painted: int
    kept: int
    failed: int
    left: list[Failure]
    exit_code: int


def repaint(
    out: Path,
    look: OverlayConfig,
    progress: Progress | None = None,
    interrupt: Interrupt | None = None,
    partly: bool = False,
) -> Repainted:
    """Give all overlays of the run in `out` another look; what has it already is kept.

    Images that are gone or changed, and those whose maps were not kept, are left as they are. partly: it goes on with
    a run that sees to them; otherwise none of them having maps is an error. Raises CamcliError.
    """
    progress = progress or Silent()
    with RunDir(out, kind="dff" if run_in(out).finds_concepts else "run") as folder, quiet_decoders():
        run = run_in(out)  # of its own, since the folder's records change while these are read
        refuse_strange(run)
        _refuse_unknown(run)
        told = _with_look(run.manifest, look)
        order = list(run.ledger.entries)
        todo = {name for name, entry in run.ledger.entries.items() if entry.look != told.look[:SHORT]}
        if not partly:
            _refuse_no_maps(run, todo)
        artist = _Artist(run, folder, told, look)
        wanted = (record for record in _records(run) if record.id in todo)
        if interrupt:
            interrupt.begin(_FINISHING)
        folder.begin(running(told))
        progress.begin(len(order), len(order) - len(todo))
        left: list[Failure] = []
        painted = in_order(artist.outcome, until(_stop(interrupt), wanted), artist.threads, lambda: 3 * artist.threads)
        with closing(painted) as outcomes:
            for outcome in outcomes:
                failure = outcome if isinstance(outcome, Failure) else None
                if isinstance(outcome, Failure):
                    left.append(outcome)
                else:
                    folder.append(outcome)
                progress.advance(failure)
        folder.settle(order)
        looks = Counter(entry.look for entry in folder.ledger.entries.values())
        folder.write_manifest(told.model_copy(update={"looks": dict(sorted(looks.items()))}))
    code = interrupt.exit_code if interrupt else 0
    explained = [entry for entry in folder.ledger.entries.values() if entry.done]
    kept = sum(entry.id not in todo for entry in explained)
    anew = sum(entry.look == told.look[:SHORT] for entry in explained) - kept
    return Repainted(anew, kept, len(order) - len(explained), left, code or (1 if left else 0))


def _records(run: Run) -> Iterator[ImageRecord | FailureRecord]:
    yield from run.records()
    yield from run.failures()


def _stop(interrupt: Interrupt | None) -> Callable[[], bool]:
    return lambda: bool(interrupt and interrupt.exit_code)


def _refuse_unknown(run: Run) -> None:
    """Raises ConfigError where it is not known what maps are to be painted on, and for lost concepts, as what."""
    refuse_no_run(run)
    if not run.manifest.input:
        raise ConfigError(f"{run.path}: its run.json does not say what the model saw of its images")
    if run.finds_concepts and not run.concepts:
        raise ConfigError(
            f"{run.path}: {CONCEPTS} or {VECTORS} is missing or damaged, so the maps cannot be painted; "
            f"{run.command} into that folder learns the concepts again"
        )


def _with_look(told: Manifest, look: OverlayConfig) -> Manifest:
    """The manifest as if the run had been asked for this look; one that was killed while painting has its end again."""
    asked = look.model_dump(mode="json")
    whole = told.counts.done + told.counts.failed > 0 and not told.counts.skipped
    return told.model_copy(
        update={
            "config": {**told.config, "overlay": asked},
            "identity": {**told.identity, "overlay": asked},
            "look": look_of(asked),
            "status": ("finished" if whole else "interrupted") if told.status == "running" else told.status,
        }
    )


def _refuse_no_maps(run: Run, todo: Collection[str]) -> None:
    """Raises ConfigError where nothing can be painted because the run kept no maps."""
    shown = [record.maps for record in run.records() if record.id in todo and record.heatmaps]
    if shown and not any(shown):
        raise ConfigError(
            f"{run.path}: keeps no maps to paint from; {run.command} with another look explains its images again, and "
            "a run with --set maps=npz keeps them for the next time"
        )


class _Artist:
    """Draws records of one run anew."""

    def __init__(self, run: Run, folder: RunDir, told: Manifest, look: OverlayConfig) -> None:
        config = RunConfig.model_validate(told.config)
        self.run, self.folder, self.look = run, folder, look
        self.short_look = told.look[:SHORT]
        self.report = config.report
        self.preprocess = _preprocess(told.input)
        self.budget = budget_for(config)
        self.threads = cores(config)
        self.legend = legend_of(run.concepts)
        tops = tops_of(run.records()) if look.scale == "run" and not self.legend else {}
        self.tops = {method: _single(top) for method, top in tops.items()}

    def outcome(self, record: ImageRecord | FailureRecord) -> Line | Failure:
        """The record's line once its files are there, or why it is left as it is; raises OutputError."""
        try:
            return self._line(record)
        except CamcliError:
            raise
        except ItemError as error:
            found = error
        except Exception as error:  # encoders raise many kinds
            found = ItemError("write", type(error).__name__, str(error))
        return Failure(record.id, record.source, found.stage, found.kind, str(found), record.input)

    def _line(self, record: ImageRecord | FailureRecord) -> Line:
        if isinstance(record, FailureRecord):
            if record.stage == "write":
                raise ItemError("write", record.kind, record.message)
            same = replace(record, look=self.short_look)
            return line_for(same, line_of_record(same))
        if record.heatmaps and not record.maps:
            raise ItemError("read", NO_MAPS, f"{record.source}: its maps were not kept")
        source = Source(Path(record.source))
        if not unchanged(record.input, source.path):
            gone = state_of(source.path, with_hash=False) is None
            raise ItemError("read", "Changed", f"{record.source}: {'is gone' if gone else 'has changed'} since then")
        return self._drawn(record, source)

    def _drawn(self, record: ImageRecord, source: Source) -> Line:
        result = self._result(record)
        cost = drawing_cost(len(result.heatmaps), result.size, self.look, self.legend)
        if longest(self.look):
            with pixels(source, longest(self.look), self.budget, cost, self.preprocess.range) as (image, size):
                return self._written(record, result, LoadedImage(image, size, _NO_INPUT, result.seen))
        with loading(source, self.preprocess, 0, self.budget, cost) as loaded:
            return self._written(record, result, loaded)

    def _written(self, record: ImageRecord, result: ImageResult, loaded: LoadedImage) -> Line:
        if loaded.size != result.size:
            raise ItemError("read", "Changed", f"{record.source}: changed while it was being read")
        drawn = draw(result, loaded, self.look, self.tops, Stopwatch(), self.legend)
        files = {**{name: record.files[name] for name in record.maps}, **{n: len(d) for n, d in drawn.files.items()}}
        heatmaps = tuple(replace(h, overlay=o) for h, o in zip(record.heatmaps, drawn.overlays, strict=True))
        told = replace(record, heatmaps=heatmaps, grids=tuple(drawn.grids), files=files, look=self.short_look)
        own = fitted(f"reports/{record.id}.json") if self.report else None
        told, line, text = sealed(told, own)
        for name, data in {**drawn.files, **({own: text} if own else {})}.items():
            self.folder.write(name, data)
        return line_for(told, line)

    def _heat(self, record: ImageRecord, index: int) -> Heat:
        try:
            return self.run.heat(record, index)
        except ConfigError as error:  # one image's maps, which no other image shares
            raise ItemError("read", "DamagedMaps", str(error)) from None

    def _result(self, record: ImageRecord) -> ImageResult:
        """What was found, with the heat that was kept of it."""
        size = record.width, record.height
        exact, told = seen_of(size, self.preprocess), Box(*record.seen)
        seen = exact if _rounded(exact) == _rounded(told) else told
        heatmaps = tuple(_heatmap(record, i, self._heat(record, i)) for i in range(len(record.heatmaps)))
        return ImageResult(
            record.id, record.source, size, seen, record.predictions, heatmaps, record.input, record.precision
        )


_NO_INPUT = np.empty((0, 0, 3), dtype=np.uint8)


def _rounded(box: Box) -> tuple[float, ...]:
    return tuple(round(corner, 2) for corner in (box.x0, box.y0, box.x1, box.y1))


def _preprocess(told: Mapping[str, Any]) -> Preprocess:
    """As run.json says it."""
    return TypeAdapter(Preprocess).validate_python(told)


def _heatmap(record: ImageRecord, index: int, heat: Heat) -> Heatmap:
    h = record.heatmaps[index]
    low, high = _single(h.raw_min), _single(h.raw_max)
    about = h.method, record.layer, h.target, heat, low, high, h.empty, h.signed, h.against, h.reason
    return Heatmap(*about, concept=h.concept.index if h.concept else None)


def _single(value: float) -> float:
    """The float32 that a record's shortest decimal stands for."""
    return float(np.float32(value))
