"""A run, wired: config -> model -> layers -> stages -> run folder. The only module that knows all the others."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from camcli.config.schema import DFF
from camcli.errors import ConfigError
from camcli.images.libtiff import quiet_decoders
from camcli.pipeline.concepts import have_concepts
from camcli.pipeline.flow import Backend
from camcli.pipeline.interrupt import Interrupt
from camcli.pipeline.job import Job, report_of
from camcli.pipeline.prepare import Prepared, prepare
from camcli.pipeline.progress import CountsPasses, Progress, Silent
from camcli.pipeline.recorder import Recorder
from camcli.pipeline.stages import through_stages
from camcli.pipeline.workers import Task, in_processes
from camcli.records import SCHEMA_VERSION, RunReport
from camcli.results.fingerprint import SHORT, fingerprint, identity, look_of, same_numbers
from camcli.results.manifest import (
    NOT_BEGUN,
    Manifest,
    Model,
    Precision,
    UsedBackend,
    ended,
    libraries,
    listing,
    part,
    running,
)
from camcli.results.merge import refuse_another_run
from camcli.results.resume import Plan, plan, refuse_another_config, refuse_other_names
from camcli.results.run import refuse_strange
from camcli.results.rundir import RunDir
from camcli.results.versions import versions

_FINISHING = "finishing the batches under way, at most {}; again to stop now"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and the manifest that it left in run.json."""

    report: RunReport
    manifest: Manifest


def perform(
    job: Job, progress: Progress | None = None, interrupt: Interrupt | None = None, prepared: Prepared | None = None
) -> Outcome:
    """Do a job; raises CamcliError when the run as a whole cannot go on.

    progress: is told of each image. prepared: from `prepare` with the same config, to spare loading the model again.
    interrupt: once it has an exit code, the batches that engines are at are finished, and the run ends with that code.
    """
    started, clock, progress = datetime.now(UTC), time.monotonic(), progress or Silent()
    _refuse_to_keep(job)
    with RunDir(job.out, job.suffix, job.kind) as folder, quiet_decoders():
        if not job.policy.fresh:
            refuse_strange(folder.earlier, "--fresh starts over, and another --out leaves it")
            refuse_other_names(job.out, job.items, folder.ledger)
        ready = prepared or prepare(job.config, job.items, job.offline, _earlier(job, folder), together=bool(job.shard))
        ready.start_clock()
        settings = _settings(job, ready, started)
        policy = job.policy
        recorder = Recorder(folder, settings.made_with, policy.max_errors, policy.tolerance.known)

        def stopped() -> bool:
            return bool(interrupt and interrupt.exit_code) or recorder.too_many

        _refuse_to_split(job, len(ready.devices))
        _refuse_to_mix(job, folder, settings)
        if job.config.finds_concepts:
            have_concepts(job, ready, folder, settings.fingerprint, progress)
        work = _planned(job, folder, settings)
        settings = _with_libraries(settings, folder)
        if interrupt:
            interrupt.begin(_FINISHING.format(len(ready.devices) * len(ready.engines)))
        folder.begin(running(settings))
        if isinstance(progress, CountsPasses):
            ready.tell_of_passes(progress.passed)
        progress.begin(len(work.kept) + len(work.todo), len(work.kept))
        backend = _backend(job, ready, folder, settings.fingerprint, work)
        backend(work.todo, stopped, partial(recorder.record, advance=progress.advance))
        folder.settle([item.id for item in job.mine], work.vanished)
        seconds = round(time.monotonic() - clock, 3)
        code = interrupt.exit_code if interrupt else 0
        summary = _summary(job, work, recorder, ready.precision.used, seconds, code)
        told = ended(settings, summary, folder.ledger.entries, bool(interrupt and interrupt.exit_code))
        told = _with_libraries(told, folder).model_copy(update={"profile": ready.stopwatch.rounded()})
        folder.write_manifest(told)
    return Outcome(summary, told)


def _earlier(job: Job, folder: RunDir) -> Manifest | None:
    """The manifest of the last run into the folder if the same numbers were requested, so that its choices hold on."""
    told = folder.earlier.manifest
    same = not job.policy.fresh and same_numbers(told.config, job.config.model_dump(mode="json"))
    return told if same else None


def _with_libraries(told: Manifest, folder: RunDir) -> Manifest:
    known = libraries(folder.ledger.entries.values(), folder.earlier.manifest, told.versions)
    return told.model_copy(update={"libraries": known})


def _backend(job: Job, ready: Prepared, folder: RunDir, fingerprint: str, work: Plan) -> Backend:
    """This process or, where there are several devices, one process for each."""
    if len(ready.devices) > 1 and work.todo:
        settled = ready.settled(job.config), ready.precision
        task = Task(*settled, job.out, job.suffix, fingerprint, job.offline)
        return partial(in_processes, task, ready.devices, ready.stopwatch)
    return partial(through_stages, job.config, ready, folder, fingerprint)


def _refuse_to_split(job: Job, devices: int) -> None:
    """A range for all images needs all of them in one process; raises ConfigError."""
    split = "with --shard" if job.shard else "between devices" if devices > 1 else ""
    if job.shard and job.config.finds_concepts:
        raise ConfigError(f"{DFF} finds what all images share, so it cannot be split {split}")
    if split and job.config.in_one_range:
        raise ConfigError(f"overlay.scale run compares all images, so it cannot be split {split}")


def _refuse_to_keep(job: Job) -> None:
    """Results of other concepts cannot be kept beside new ones, since a folder has one set; raises ConfigError."""
    if job.policy.keep_going and job.config.finds_concepts:
        raise ConfigError(f"{DFF} has one set of concepts for all images, so --keep-going cannot keep other results")


def _refuse_to_mix(job: Job, folder: RunDir, settings: Manifest) -> None:
    """Raises ConfigError where what is there may not be kept; `--fresh` deletes it."""
    if job.policy.fresh:
        folder.start_over()
    elif not job.policy.keep_going:
        keeping = "" if job.config.finds_concepts else "--keep-going keeps them as they are, "
        refuse_another_config(
            folder.earlier, settings, f"--fresh starts over, {keeping}and another --out leaves them alone"
        )
        if job.shard:
            refuse_another_run(job.out, job.shard, settings)


def _planned(job: Job, folder: RunDir, settings: Manifest) -> Plan:
    """What is left to do."""
    look = "" if job.policy.keep_going else settings.look[:SHORT]
    work = plan(job.mine, folder.ledger, job.out, job.policy, look)
    if job.config.in_one_range and work.todo:
        return Plan((), tuple(job.mine), work.vanished)
    return work


def _summary(job: Job, work: Plan, recorder: Recorder, precision: str, seconds: float, interrupted: int) -> RunReport:
    entries = recorder.folder.ledger.entries
    recorded = [entries[name] for name in (*work.kept, *recorder.seen)]
    left_out = len(work.kept) + len(work.todo) - len(recorded)
    report = report_of(job, recorded, len(work.kept), left_out, precision)
    return replace(
        report,
        seconds=seconds,
        exit_code=interrupted or report.exit_code,
        vanished=len(work.vanished),
        foreign=sum(entry.made_with != recorder.made_with for entry in entries.values()),
        explained=sum(entries[name].done for name in recorder.seen),
    )


def _notes(job: Job, ready: Prepared) -> list[str]:
    """What a user should know before the run."""
    instead = job.config.runtime.backend == "openvino" != ready.backend.used
    backend = [f"torch computes the whole network: {ready.backend.why}"] if instead else []
    return [*ready.model.notes, *(layer.note for layer in ready.layers if layer.note), *backend]


def _settings(job: Job, ready: Prepared, started: datetime) -> Manifest:
    """What is known of a run before it begins."""
    model, config = ready.model, job.config.model_dump(mode="json")
    taps = [[asdict(tap) for tap in layer.taps] for layer in ready.layers]
    preprocess = asdict(model.preprocess)
    chosen: dict[str, Any] = {"precision": ready.precision.used, "backend": ready.backend.used}
    if ready.precision.guard:
        chosen["guard"] = asdict(ready.precision.guard)
    code = {"code_sha256": model.code_sha256} if model.code_sha256 else {}
    used = {**config, "runtime": {**config["runtime"], **chosen}, "model": {**config["model"], **code}}
    options = {name: told.model_dump(mode="json") for name, told in ready.engines[0].options.items()}
    who = identity(used, model.weights_sha256, model.labels, taps, preprocess, options, SCHEMA_VERSION)
    found = Manifest(
        schema_version=SCHEMA_VERSION,
        status=NOT_BEGUN,
        started=started.isoformat(timespec="seconds"),
        fingerprint=fingerprint(who),
        look=look_of(who["overlay"]),
        identity=who,
        config=config,
        inputs=listing(job.items, job.asked),
        model=Model(
            source=model.source,
            name=model.name,
            weights=model.weights,
            weights_sha256=model.weights_sha256,
            code=model.code,
            code_sha256=model.code_sha256,
            classes=len(model.labels),
            activation=model.activation,
        ),
        input=who["input"],
        layers=who["layer"],
        notes=_notes(job, ready),
        device=", ".join(map(str, ready.devices)),
        precision=Precision(**asdict(ready.precision)),
        backend=UsedBackend(used=ready.backend.used, why=ready.backend.why),
        batch_size=ready.batch_size,
        versions=versions(),
    )
    return found.model_copy(update={"shard": part(job.items, job.shard)}) if job.shard else found
