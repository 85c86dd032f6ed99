"""What a run is asked to do, and whether that is done already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camcli.config.schema import RunConfig
from camcli.images.find import Item, state_of
from camcli.models.labels import given_labels
from camcli.records import RunReport
from camcli.results import counts
from camcli.results.claim import Kind
from camcli.results.concepts import read_learnt
from camcli.results.fingerprint import SHORT, labels_hash, look_of, same_numbers, same_request
from camcli.results.ledger import Entry
from camcli.results.manifest import Manifest, listing
from camcli.results.resume import Policy, plan
from camcli.results.run import Run, run_in
from camcli.results.shard import Shard
from camcli.results.versions import versions


@dataclass(frozen=True, slots=True)
class Job:
    """One run, or one part of it.

    items: all images of the run; shard: the part to explain, None for all. asked: what the user named, for the
    manifest. skipped_files: how many files were passed over, by their extension.
    """

    config: RunConfig
    items: Sequence[Item]
    out: Path
    offline: bool = False
    policy: Policy = Policy()  # noqa: RUF009 - frozen
    shard: Shard | None = None
    asked: Mapping[str, Any] | None = None
    skipped_files: Mapping[str, int] = field(default_factory=dict)

    @property
    def mine(self) -> list[Item]:
        """The images of this part."""
        return [item for item in self.items if self.shard is None or self.shard.has(item.id)]

    @property
    def kind(self) -> Kind:
        """Whose the run folder is."""
        return "dff" if self.config.finds_concepts else "run"

    @property
    def suffix(self) -> str:
        """What the files of this part are called by."""
        return self.shard.suffix if self.shard else ""

    def earlier(self) -> Run:
        """What an earlier run has left there."""
        return run_in(self.out, self.suffix)


def settled(job: Job, run: Run) -> tuple[RunReport, Manifest] | None:
    """How the earlier `run` ended, if it was this job and nothing is left to do; needs neither torch nor the lock."""
    told = run.manifest
    if job.policy.fresh or told.precision is None or not _same_job(job, told) or _lacks_concepts(job):
        return None
    ledger, ours = run.ledger, told.made_with
    if run.strange or not ledger.clean or any(entry.made_with != ours for entry in ledger.entries.values()):
        return None
    work = plan(job.mine, ledger, job.out, job.policy)
    kept = [ledger.entries[name] for name in work.kept]
    return None if work.todo or work.vanished else (report_of(job, kept, len(kept), 0, told.precision.used), told)


def look_alone_differs(job: Job) -> bool:
    """Whether the folder has records whose numbers are those that this job asks for, and whose overlays are not."""
    policy, run, asked = job.policy, job.earlier(), job.config.model_dump(mode="json")
    told, look = run.manifest, look_of(asked["overlay"])[:SHORT]
    if policy.fresh or policy.keep_going or job.shard or told.precision is None or _lacks_concepts(job):
        return False
    if told.status != "running" and set(told.looks) <= {look}:
        return False
    if run.strange or not same_numbers(told.config, asked) or not _same_files(job.config, told):
        return False
    ours = told.fingerprint[:SHORT]
    return any(e.look != look and e.fingerprint == ours for e in run.ledger.entries.values())


def _same_job(job: Job, told: Manifest) -> bool:
    """Whether a finished run had the same images, settings, weights, labels and libraries."""
    return (
        told.status == "finished"
        and same_request(told.config, job.config.model_dump(mode="json"))
        and told.inputs == listing(job.items, job.asked)
        and told.versions == versions()
        and _same_files(job.config, told)
    )


def _lacks_concepts(job: Job) -> bool:
    return job.config.finds_concepts and read_learnt(job.out) is None


def _same_files(config: RunConfig, told: Manifest) -> bool:
    labels, weights = config.model.labels, told.model.weights
    if labels and labels_hash(given_labels(labels)) != told.labels_sha256:
        return False
    code = told.model.code
    if code and getattr(state_of(Path(code)), "sha256", None) != told.model.code_sha256:
        return False
    state = None if weights == "none" else state_of(Path(weights))
    return (state.sha256 if state else None) == told.model.weights_sha256


def report_of(job: Job, entries: Sequence[Entry], kept: int, left_out: int, precision: str) -> RunReport:
    """How the images of `entries` ended, `kept` of them in an earlier run; left_out: how many were not reached."""
    failures, tolerance = counts.failures(entries), job.policy.tolerance
    return RunReport(
        done=len(entries) - failures.total(),
        failed=failures.total(),
        skipped=left_out,
        seconds=0.0,
        out=str(job.out),
        exit_code=tolerance.exit_code(entries, left_out),
        failures=dict(sorted(failures.items())),
        kept=kept,
        without_evidence=counts.without_evidence(entries),
        redone=counts.redone(entries, precision),
        skipped_files=dict(job.skipped_files),
        known=tolerance.expected(entries),
        mended=tolerance.mended(entries),
    )
