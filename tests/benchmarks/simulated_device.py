"""How fast a device the pipeline keeps busy: engines that only wait, against the limits of device and file work.

    python -m tests.benchmarks.simulated_device                     100 ... 5,000 images a second, 500x375
    python -m tests.benchmarks.simulated_device --rates 500 --size 4000x3000 --images 32 --threads 1

The device answers so many images a second: it sleeps without Python's lock, as a GPU computes, for one batch at a time.
What is reached is held against the smaller of that rate and the rate of the necessary file work on the same cores:
decode, resize, paint, encode and write, in processes that share nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from camcli.config.schema import RunConfig
from camcli.engine.engine import Engine, Explanation
from camcli.engine.targets import Chooser, likeliest
from camcli.errors import ItemError
from camcli.images.decode import load_image
from camcli.images.find import discover
from camcli.images.memory import keep_freed_memory
from camcli.images.preprocess import Preprocess
from camcli.pipeline.job import Job
from camcli.pipeline.prepare import Prepared, prepare
from camcli.pipeline.run import perform
from camcli.render.overlay import encode, paint

RATES = (100, 200, 400, 800, 1500, 3000, 5000)
SIZES = {"500x375": (500, 375), "4000x3000": (4000, 3000)}
Work = Callable[[], object]


@contextmanager
def device(ready: Prepared, rate: float) -> Iterator[None]:
    """Inside, all engines are one device that answers `rate` images a second, at once where that is 0.

    The answers are those of the model for noise: five predictions and a heatmap.
    """
    size = (1, *ready.model.preprocess.size, 3)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    [answer] = ready.engines[0].explain(pixels, likeliest)
    one_at_a_time = Lock()

    def explain(
        engine: Engine, pixels: Tensor, choose: Chooser, count: int | None = None
    ) -> list[Explanation | ItemError]:
        if rate:
            with one_at_a_time:
                time.sleep(len(pixels) / rate)
        assert isinstance(answer, Explanation)
        return [replace(answer)] * (count or len(pixels))

    with patch.object(Engine, "explain", explain):
        yield


def pipeline(config: RunConfig, paths: Sequence[Path], out: Path, rate: float = 0) -> Work:
    """A run of `paths` on such a device, from disk to disk."""
    items = discover([str(path) for path in paths])
    batch = config.runtime.batch_size
    assert isinstance(batch, int)
    ready = prepare(config, items, batch_size=batch)

    def work() -> object:
        with device(ready, rate):
            return perform(Job(config, items, Path(tempfile.mkdtemp(dir=out))), prepared=ready)

    return work


def file_work(config: RunConfig, preprocess: Preprocess, paths: Sequence[Path], out: Path, cores: int) -> Work:
    """What no pipeline can do without, on `cores` processes that were started before: no hash, no record, no report."""
    pool = ProcessPoolExecutor(cores, get_context("spawn"), keep_freed_memory)
    folder = Path(tempfile.mkdtemp(dir=out))
    one = partial(_file_work, config, preprocess, folder)
    return lambda: list(pool.map(one, paths, chunksize=max(1, len(paths) // cores // 4)))


def _file_work(config: RunConfig, preprocess: Preprocess, folder: Path, path: Path) -> None:
    heat = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    whole = config.overlay.size == "original"
    image = load_image(path, preprocess, whole)
    (folder / f"{path.stem}.jpg").write_bytes(encode(paint(image, heat, config.overlay, last=True), config.overlay))


def main() -> None:
    """The command line."""
    from tests.benchmarks.throughput import config_of, machine, medians, write_images

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", type=int, default=list(RATES))
    parser.add_argument("--size", choices=SIZES, default="500x375")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(machine("cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, SIZES[args.size], args.images)
        config = config_of("mobilenetv3_large", "fp32", args.batch, "cpu")
        config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"threads": args.threads})})
        preprocess = prepare(config, (), batch_size=1).model.preprocess
        works = {"files": (file_work(config, preprocess, paths, folder, args.threads), args.images)}
        works |= {str(rate): (pipeline(config, paths, folder, rate), args.images) for rate in args.rates}
        seconds = medians(works, args.rounds)
    limit = 1 / seconds.pop("files")
    print(f"{args.threads} cores, {args.size}: the file work alone is {limit:.0f} images/s")
    print("| the device answers, images/s | reached | of the smaller limit |\n|---|---|---|")
    for rate, each in seconds.items():
        print(f"| {rate} | {1 / each:.0f} | {1 / each / min(limit, float(rate)):.2f} |")


if __name__ == "__main__":
    keep_freed_memory()
    main()
