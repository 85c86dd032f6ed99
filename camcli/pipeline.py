"""A run, wired: config -> model -> layers -> stream -> run folder. The only module that knows all the others."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from camcli import libtiff, manifest, report
from camcli.config import RunConfig
from camcli.engine import Engine
from camcli.errors import ConfigError
from camcli.fingerprint import fingerprint, identity
from camcli.inputs import Item
from camcli.interrupt import Interrupt
from camcli.job import Job
from camcli.layers import Candidate, TargetLayer, list_candidates, resolve_cached
from camcli.methods import METHODS
from camcli.models import LoadedModel, load_model
from camcli.progress import Progress
from camcli.recorder import Recorder
from camcli.records import RunReport
from camcli.resume import Plan, Policy, plan, refuse_another_config
from camcli.rundir import RunDir
from camcli.stream import Stream, even_batches
from camcli.targets import against, chooser
from camcli.versions import versions


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and the manifest that it left in run.json."""

    report: RunReport
    manifest: manifest.Manifest


def run(config: RunConfig, items: Sequence[Item], out: Path) -> Outcome:
    """Explain `items` into the folder `out`, silently; raises CamcliError when the run as a whole cannot go on."""
    return perform(Job(config, items, out), Progress(None), None)


def perform(job: Job, progress: Progress, interrupt: Interrupt | None) -> Outcome:
    """Do a job; raises CamcliError when the run as a whole cannot go on.

    interrupt: once it has an exit code, what is in flight is finished, and the run ends with that code.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    with RunDir(job.out, job.suffix) as folder:
        engine, layers = _engine(job.config, job.offline)
        settings = _settings(job, engine, layers, started)
        recorder = Recorder(job.config, engine, folder, settings["fingerprint"])

        def stopped() -> bool:
            return bool(interrupt and interrupt.exit_code) or _too_many(recorder, job.policy)

        stream = _stream(job, engine, stopped)
        work = _prepared(job, folder, settings)
        folder.begin(manifest.opening(settings))
        progress.begin(len(work.kept) + len(work.todo), len(work.kept))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            libtiff.hush()
            recorder.record(stream, work.todo, progress.advance)
        folder.settle([item.id for item in job.mine], work.vanished)
        seconds = round(time.monotonic() - clock, 3)
        summary = _summary(job, work, recorder, seconds, interrupt.exit_code if interrupt else 0)
        ended = manifest.closing(settings, summary, folder.ledger.entries, bool(interrupt and interrupt.exit_code))
        folder.write_manifest(ended)
    return Outcome(summary, ended)


def _engine(config: RunConfig, offline: bool) -> tuple[Engine, list[TargetLayer]]:
    methods = [METHODS.get(name) for name in config.methods]
    model = load_model(config.model, config.input, offline)
    layers = resolve_layers(model, config)
    engine = Engine(
        model,
        layers,
        methods,
        device(config.runtime.device),
        config.runtime.precision,
        config.options,
        config.smoothing,
        against(config.targets, model.labels),
    )
    return engine, layers


def _stream(job: Job, engine: Engine, stopped: Callable[[], bool]) -> Stream:
    runtime = job.config.runtime
    return Stream(
        engine,
        chooser(job.config.targets, engine.model.labels),
        even_batches(len(job.items), runtime.batch_size),
        runtime.threads or os.cpu_count() or 1,
        stopped,
    )


def _prepared(job: Job, folder: RunDir, settings: Mapping[str, Any]) -> Plan:
    """What is left to do, once it is clear that what is there may be kept; raises ConfigError otherwise."""
    if job.shard and job.config.overlay.scale == "run":
        raise ConfigError("overlay.scale run compares all pictures, so it cannot be split with --shard")
    if job.policy.fresh:
        folder.start_over()
    elif not job.policy.keep_going:
        refuse_another_config(job.out, folder.ledger, folder.earlier, settings["identity"], settings["fingerprint"])
    work = plan(job.mine, folder.ledger, job.out, job.policy)
    if job.config.overlay.scale == "run" and work.todo:
        return Plan((), tuple(job.mine), work.vanished)
    return work


def _too_many(recorder: Recorder, policy: Policy) -> bool:
    return policy.max_errors is not None and recorder.failures.total() > policy.max_errors


def _summary(job: Job, work: Plan, recorder: Recorder, seconds: float, interrupted: int) -> RunReport:
    recorded = [recorder.folder.ledger.entries[name] for name in (*work.kept, *recorder.seen)]
    failures = manifest.failures(recorded)
    records = recorder.folder.ledger.entries.values()
    return RunReport(
        done=len(recorded) - failures.total(),
        failed=failures.total(),
        skipped=len(work.kept) + len(work.todo) - len(recorded),
        seconds=seconds,
        out=str(job.out),
        exit_code=interrupted or (1 if failures else 0),
        failures=dict(sorted(failures.items())),
        kept=len(work.kept),
        vanished=len(work.vanished),
        foreign=sum(entry.fingerprint != recorder.fingerprint for entry in records),
    )


def _settings(job: Job, engine: Engine, layers: Sequence[TargetLayer], started: datetime) -> dict[str, Any]:
    """What is known of a run before it begins."""
    model, config = engine.model, job.config.model_dump(mode="json")
    taps = [[asdict(tap) for tap in layer.taps] for layer in layers]
    preprocess = asdict(model.preprocess)
    who = identity(config, model.weights_sha256, model.labels, taps, preprocess, report.SCHEMA_VERSION)
    found = {
        "schema_version": manifest.VERSION,
        "started": started.isoformat(timespec="seconds"),
        "fingerprint": fingerprint(who),
        "identity": who,
        "config": config,
        "inputs": manifest.listing(job.items, job.asked),
        "model": {
            "source": model.source,
            "name": model.name,
            "weights": model.weights,
            "weights_sha256": model.weights_sha256,
            "classes": len(model.labels),
            "activation": model.activation,
        },
        "input": preprocess,
        "layers": taps,
        "device": str(engine.device),
        "versions": versions(),
    }
    return {**found, "shard": manifest.part(job.items, job.shard)} if job.shard else found


def candidates(config: RunConfig, offline: bool = False) -> list[Candidate]:
    """The layers of the model of `config` that maps can be read from."""
    model = load_model(config.model, config.input, offline)
    return list_candidates(model.module, model.preprocess.size)


def resolve_layers(model: LoadedModel, config: RunConfig) -> list[TargetLayer]:
    """The target layers that a config names, from the cache where they were found before; raises LayerError."""
    size = model.preprocess.size
    asked = [config.model.model_dump(exclude={"weights", "labels"}), model.weights_sha256, size, versions()]
    paths = [None if path == "auto" else path for path in config.layer]
    return [resolve_cached(json.dumps([*asked, path]), model.module, size, path) for path in paths]


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
