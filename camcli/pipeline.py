"""A run, wired: config -> model -> layers -> stream -> run folder. The only module that knows all the others."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from camcli import report
from camcli.config import RunConfig
from camcli.engine import Engine
from camcli.errors import ConfigError, ItemError
from camcli.geometry import Heat
from camcli.images import Picture, load_picture
from camcli.inputs import Item
from camcli.interrupt import Interrupt
from camcli.layers import Candidate, TargetLayer, list_candidates, resolve_layer
from camcli.methods import METHODS
from camcli.models import LoadedModel, load_model
from camcli.records import Failure, Heatmap, ImageResult, RunReport
from camcli.rundir import RunDir
from camcli.stream import Stream, failure
from camcli.targets import chooser
from camcli.writers import maps
from camcli.writers.overlay import overlay_bytes, overlay_name

MANIFEST_VERSION = 1
_LIBRARIES = ("camcli", "torch", "torchvision", "timm", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and the manifest that it left in run.json."""

    report: RunReport
    manifest: dict[str, Any]


def run(
    config: RunConfig,
    items: Sequence[Item],
    out: Path,
    advance: Callable[[bool], None] = lambda failed: None,
    interrupt: Interrupt | None = None,
    offline: bool = False,
) -> Outcome:
    """Explain `items` into the folder `out`; raises CamcliError when the run as a whole cannot go on.

    advance: told after each record whether it is a failure. interrupt: once it has an exit code, what is in
    flight is finished, and the run ends with that code.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    methods = [METHODS.get(name) for name in config.methods]
    model = load_model(config.model, config.input, offline)
    layers = resolve_layers(model, config.layer)
    engine = Engine(model, layers, methods, device(config.runtime.device), config.runtime.precision)
    stream = Stream(
        engine,
        chooser(config.targets, model.labels),
        config.runtime.batch_size,
        config.runtime.threads or os.cpu_count() or 1,
        lambda: bool(interrupt and interrupt.exit_code),
    )
    with RunDir(out) as folder:
        recorder = _Recorder(config, engine, folder)
        recorder.record(stream, items, advance)
        failed = recorder.failures.total()
        summary = RunReport(
            done=recorder.done,
            failed=failed,
            skipped=len(items) - recorder.done - failed,
            seconds=round(time.monotonic() - clock, 3),
            out=str(out),
            exit_code=(interrupt.exit_code if interrupt else 0) or (1 if failed else 0),
            failures=dict(recorder.failures),
        )
        manifest = _manifest(config, engine, layers, summary, started)
        folder.write_manifest(manifest)
    return Outcome(summary, manifest)


def candidates(config: RunConfig, offline: bool = False) -> list[Candidate]:
    """The layers of the model of `config` that maps can be read from."""
    model = load_model(config.model, config.input, offline)
    return list_candidates(model.module, model.preprocess.size)


def resolve_layers(model: LoadedModel, paths: Sequence[str]) -> list[TargetLayer]:
    """The target layers that a config names; raises LayerError."""
    size = model.preprocess.size
    return [resolve_layer(model.module, size, None if path == "auto" else path) for path in paths]


def device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one; raises ConfigError for a device that torch does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"runtime.device: {name!r} is not to be had here: {reason}") from None


class _Recorder:
    """Writes each result's files, then its record, and counts."""

    def __init__(self, config: RunConfig, engine: Engine, folder: RunDir) -> None:
        self.config = config
        self.layer = engine.layer
        self.folder = folder
        model = engine.model
        self.preprocess = model.preprocess
        self.model = report.ModelRecord(source=model.source, name=model.name, weights_sha256=model.weights_sha256)
        self.full_range: dict[str, float] = {}
        self.done = 0
        self.failures: Counter[str] = Counter()

    def record(self, stream: Stream, items: Sequence[Item], advance: Callable[[bool], None]) -> None:
        """Run the stream to its end."""
        if self.config.overlay.scale == "run":
            outcomes = self._in_one_range(stream, items)
        else:
            outcomes = stream.outcomes(items, self._write)
        for outcome in outcomes:
            self._append(outcome)
            advance(isinstance(outcome, Failure))

    def _append(self, outcome: report.ImageRecord | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures[outcome.kind] += 1
            self.folder.append(report.to_json(report.failure_record(outcome)))
        else:
            self.done += 1
            self.folder.append(report.to_json(outcome))

    def _in_one_range(self, stream: Stream, items: Sequence[Item]) -> Iterator[report.ImageRecord | Failure]:
        """Explain everything, find each method's largest value, then read the pictures again to paint them."""
        results: list[ImageResult] = []
        for outcome in stream.outcomes(items, lambda result, picture: result):
            if isinstance(outcome, Failure):
                yield outcome
            else:
                results.append(outcome)
        for heatmap in (heatmap for result in results for heatmap in result.heatmaps):
            self.full_range[heatmap.method] = max(self.full_range.get(heatmap.method, 0.0), heatmap.raw_max)
        with ThreadPoolExecutor(stream.threads) as pool:
            yield from pool.map(self._write_again, results)

    def _write_again(self, result: ImageResult) -> report.ImageRecord | Failure:
        try:
            return self._write(result, load_picture(Path(result.source), self.preprocess))
        except ItemError as error:
            return failure(Item(result.id, Path(result.source)), error)
        except OSError as error:
            return Failure(result.id, result.source, "write", type(error).__name__, str(error))

    def _write(self, result: ImageResult, picture: Picture) -> report.ImageRecord:
        files = maps.WRITERS[self.config.maps](result)
        overlays = [overlay_name(result, heatmap, self.config.overlay) for heatmap in result.heatmaps]
        record = report.image_record(result, self.model, self.layer, overlays, list(files))
        for name, heatmap in zip(overlays, result.heatmaps, strict=True):
            files[name] = overlay_bytes(picture, self._shown(heatmap), self.config.overlay)
        if self.config.report:
            files[f"reports/{result.id}.json"] = report.to_json(record, indent=2).encode() + b"\n"
        for name, data in files.items():
            self.folder.write(name, data)
        return record

    def _shown(self, heatmap: Heatmap) -> Heat:
        """The heat that the colours stand for: scaled by the picture's own range, or by that of the run."""
        top = self.full_range.get(heatmap.method, 0.0)
        if heatmap.empty or top <= 0:
            return heatmap.heat
        low = max(heatmap.raw_min, 0.0)
        return (heatmap.heat * (heatmap.raw_max - low) + low) / top


def _manifest(
    config: RunConfig, engine: Engine, layers: Sequence[TargetLayer], summary: RunReport, started: datetime
) -> dict[str, Any]:
    model = engine.model
    return {
        "schema_version": MANIFEST_VERSION,
        "started": started.isoformat(timespec="seconds"),
        "seconds": summary.seconds,
        "exit_code": summary.exit_code,
        "counts": {"done": summary.done, "failed": summary.failed, "skipped": summary.skipped},
        "failures": summary.failures,
        "config": config.model_dump(mode="json"),
        "model": {
            "source": model.source,
            "name": model.name,
            "weights": model.weights,
            "weights_sha256": model.weights_sha256,
            "classes": len(model.labels),
            "activation": model.activation,
        },
        "input": asdict(model.preprocess),
        "layers": [[asdict(tap) for tap in layer.taps] for layer in layers],
        "device": str(engine.device),
        "versions": {name: version(name) for name in _LIBRARIES},
    }
