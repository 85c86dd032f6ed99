"""`precision: auto` against fp32 on crops of photographs: what changes, how many are explained again, what it costs.

python -m tests.benchmarks.precision --crops 1000 needs real weights beside the checkout (tests/test_real_weights.py).
Seconds are of the processor, all threads together, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camcli.config.file import load_config
from camcli.config.schema import RunConfig
from camcli.engine import precision
from camcli.engine.precision import correlation
from camcli.images.find import Item
from camcli.pipeline.job import Job
from camcli.pipeline.run import perform
from tests.conftest import REAL_WEIGHTS
from tests.test_real_weights import MODELS

PHOTOGRAPHS = REAL_WEIGHTS.parent / "photos"
SMALLEST = 48


@dataclass(frozen=True)
class Run:
    """The records of a run by id, its maps by id, its manifest, and the processor's seconds."""

    records: dict[str, dict[str, Any]]
    maps: dict[str, Any]
    manifest: dict[str, Any]
    seconds: float


def crops(folder: Path, count: int, seed: int = 0) -> list[Item]:
    """Square crops anywhere in the photographs, their sides spread evenly over the orders of magnitude."""
    rng = np.random.default_rng(seed)
    photographs = []
    for path in sorted(PHOTOGRAPHS.iterdir()):
        with Image.open(path) as file:
            photographs.append(file.convert("RGB"))
    items = []
    for i in range(count):
        image = photographs[i % len(photographs)]
        side = round(float(np.exp(rng.uniform(np.log(SMALLEST), np.log(min(image.size))))))
        x, y = (int(rng.integers(0, length - side + 1)) for length in image.size)
        name = f"{i:05}.png"
        image.crop((x, y, x + side, y + side)).save(folder / name, compress_level=1)
        items.append(Item(name, folder / name))
    return items


def explained(config: RunConfig, asked: str, items: Sequence[Item], out: Path) -> Run:
    """All of `items` in the precision that is asked."""
    runtime = config.runtime.model_copy(update={"precision": asked, "device": "cpu"})
    look = config.overlay.model_copy(update={"size": "model"})
    config = config.model_copy(update={"runtime": runtime, "overlay": look, "maps": "npz", "report": False})
    start = time.process_time()
    manifest = perform(Job(config, items, out)).manifest.as_json()
    seconds = time.process_time() - start
    records = {r["id"]: r for r in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    maps = {}
    for name, record in records.items():
        with np.load(out / record["maps"][0]) as arrays:
            maps[name] = next(iter(arrays.values()))
    return Run(records, maps, manifest, seconds)


def differences(full: Run, other: Run) -> dict[str, Any]:
    """What `other` has otherwise than `full`, in numbers."""
    changed, lowest, below = [], 1.0, 0
    for name, record in full.records.items():
        theirs = other.records[name]
        same = record["predictions"][0]["index"] == theirs["predictions"][0]["index"]
        targets = [[h["target"]["index"] for h in r["heatmaps"]] for r in (record, theirs)]
        if not same or sorted(targets[0]) != sorted(targets[1]):
            changed.append(name)
            continue
        found = correlation(full.maps[name], other.maps[name])
        lowest, below = min(lowest, found), below + (found < precision.AGREEMENT)
    count = len(full.records)
    return {
        "used": other.manifest["precision"]["used"],
        "guard": other.manifest["precision"]["guard"],
        "top-1 or target changed": len(changed),
        "lowest correlation": round(lowest, 4),
        "maps below 0.99": below,
        "explained again": round(sum(r["precision"] == "fp32" for r in other.records.values()) / count, 4),
        "ms of processor": round(1000 * other.seconds / count, 2),
    }


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, default=1000)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--force", action="store_true", help="keep to 16 bits however many are explained again")
    words = parser.parse_args()
    if words.force:
        precision.MOST_REDONE = 1.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        items = crops(folder / "in", words.crops)
        for name in words.models:
            file = folder / f"{name}.yaml"
            file.write_text(MODELS[name])
            config = load_config(file).config
            found = {p: explained(config, p, items, folder / name / p) for p in ("fp32", "bf16", "auto")}
            print(
                name, json.dumps({p: differences(found["fp32"], one) for p, one in found.items()}, indent=2), flush=True
            )
            print(found["auto"].manifest["precision"]["why"], flush=True)


if __name__ == "__main__":
    main()
