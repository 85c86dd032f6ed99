"""How long a run would take, from one image that is explained for the purpose."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from camcli.errors import CamcliError, ModelError
from camcli.images.find import Item
from camcli.pipeline.job import Job
from camcli.pipeline.prepare import Prepared, devices_of, prepare
from camcli.pipeline.run import perform
from camcli.results.resume import Policy

TRIED = 5
LONG = 2.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """image: what was measured. start: seconds to be ready. each: seconds for one image, alone in its batch.

    at_once: how many engines share the images.
    """

    image: str
    start: float
    each: float
    at_once: int

    def seconds(self, images: int) -> float:
        """For so many images, from the start of the run."""
        return self.start + self.each * images / min(self.at_once, max(images, 1))


def estimate(job: Job) -> Estimate:
    """Measured on the first image that can be explained; nothing is downloaded, and nothing is left behind.

    Raises ConfigError where the run would be refused, and CamcliError where no image could be measured.
    """
    started, devices = time.monotonic(), devices_of(job.config.runtime.device)
    runtime = job.config.runtime.model_copy(update={"device": str(devices[0])})
    job = replace(job, config=job.config.model_copy(update={"runtime": runtime}))
    ready = _prepared(job)
    start, at_once = time.monotonic() - started, len(ready.engines) * len(devices)
    for item in job.mine[:TRIED]:
        if (each := _measured(job, item, ready)) is not None:
            return Estimate(item.id, start, each, at_once)
    raise CamcliError("none of the first images can be explained")


def _prepared(job: Job) -> Prepared:
    model = job.config.model
    try:
        return prepare(job.config, job.mine, offline=True, batch_size=1)
    except ModelError as error:
        if model.weights != "pretrained":
            raise
        name = f"{model.source}/{model.name}"
        raise ModelError(f"its weights are not at hand (`camcli models fetch {name}` gets them)") from error


def _measured(job: Job, item: Item, ready: Prepared) -> float | None:
    """Seconds for one image, None where it fails; the second time of two, for the first one warms up."""
    with TemporaryDirectory(prefix="camcli-") as folder:
        seconds = [_once(job, [item], Path(folder) / "1", ready)]
        if seconds[0] is not None and seconds[0] < LONG:
            seconds.append(_once(job, [item], Path(folder) / "2", ready))
        return seconds[-1]


def _once(job: Job, items: Sequence[Item], out: Path, ready: Prepared) -> float | None:
    started = time.monotonic()
    alone = replace(job, items=items, out=out, shard=None, policy=Policy())
    report = perform(alone, prepared=ready).report
    return time.monotonic() - started if report.done else None
