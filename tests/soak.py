"""Thousands of images with bad ones among them: counts add up, memory stays flat, nothing is left open.

python -m tests.soak --images 10000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from camcli.cli.progress import Progress
from camcli.config.file import load_config
from camcli.images.find import discover
from camcli.pipeline.job import Job, settled
from camcli.pipeline.run import perform
from camcli.records import Failure
from tests.conftest import save_image
from tests.corpus import bad_kinds

BAD_SHARE = 0.03
DISTINCT = 50
TINY = ["model={source: timm, name: test_resnet, weights: none, num_classes: 4}", "input.size=64"]


@dataclass(frozen=True)
class Figures:
    """What a soak measured; memory in MiB, early after a tenth of the images and late at the end."""

    images: int
    done: int
    failed: int
    bad: int
    records: int
    early: float
    late: float
    threads: int
    handles: int
    seconds: float
    again_seconds: float


class Watch(Progress):
    """Notes the memory on the way."""

    def __init__(self) -> None:
        super().__init__(None)
        self.memory: list[float] = []

    def advance(self, failure: Failure | None) -> None:
        """One more record."""
        super().advance(failure)
        if self.count % max(1, self.total // 100) == 0:
            self.memory.append(resident())


def resident() -> float:
    """Memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(images: int, place: Path) -> Figures:
    """Run over `images` files in `place`, three in a hundred of them bad, and then again."""
    bad = fill(place / "in", images)
    config = load_config(None, TINY).config
    job = Job(config, discover([str(place / "in")]), place / "out")
    warm = Job(config, job.items[:40], place / "warm")
    perform(warm)
    threads, handles = threading.active_count(), open_handles()
    watch, clock = Watch(), time.monotonic()
    report = perform(job, watch).report
    seconds = time.monotonic() - clock
    clock = time.monotonic()
    assert settled(job, job.earlier())
    return Figures(
        images,
        report.done,
        report.failed,
        bad,
        (place / "out" / "results.jsonl").read_bytes().count(b"\n"),
        max(watch.memory[: len(watch.memory) // 10]),
        max(watch.memory[-len(watch.memory) // 10 :]),
        threading.active_count() - threads,
        open_handles() - handles,
        round(seconds, 1),
        round(time.monotonic() - clock, 2),
    )


def fill(folder: Path, images: int) -> int:
    """Links to a few images and a few bad files under many names; how many are bad."""
    folder.mkdir()
    good = [save_image(folder.parent / "good" / f"{i}.jpg", 100 + i, 80, i) for i in range(DISTINCT)]
    broken = []
    for number, (data, _) in enumerate(bad_kinds().values()):
        broken.append(folder.parent / f"broken{number}")
        broken[-1].write_bytes(data)
    chosen = set(random.Random(3).sample(range(images), round(images * BAD_SHARE)))
    for i in range(images):
        source = broken[i % len(broken)] if i in chosen else good[i % DISTINCT]
        os.link(source, folder / f"{i:06}.jpg")
    return len(chosen)


def open_handles() -> int:
    """Files that this process has open."""
    return len(os.listdir("/proc/self/fd"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(asdict(soak(parser.parse_args().images, Path(place))), indent=2))


if __name__ == "__main__":
    main()
