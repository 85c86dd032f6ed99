"""How well and how fast each method explains the embedded model, as the table in the README of the methods.

    python -m tests.benchmarks.quality --scenes 500 --write            measure all methods and write the table
    python -m tests.benchmarks.quality igos++ --scenes 60 --write      one of them; the others keep their figures
    python -m tests.benchmarks.quality igos++ --set steps=5            with other options than the defaults

Scenes are those that training never saw. A scene's figure is the mean over the shapes in it, each explained for
itself; the table has the mean over scenes and the half-width of its 95 % interval (1.96 standard errors).

pointing     the hottest pixel lies inside the shape's exact mask
energy       share of the heat that lies inside the mask; negative heat does not count
deletion     area under the class's probability as the hottest pixels go first, insertion as they come: faithfulness.py
sparseness   the Gini index of the heat
seconds      process time for each image with all its shapes on one thread, the forward pass included
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig, OptionsConfig
from camcli.demo.scenes import Scene, scene
from camcli.engine.engine import Engine
from camcli.engine.layers import resolve_layer
from camcli.engine.methods import METHODS
from camcli.errors import MethodError
from camcli.models.demo import SIZE
from camcli.models.source import load_model
from tests.benchmarks.faithfulness import faithfulness, sparseness
from tests.benchmarks.methods import at_image_size, explained

FIGURES = ("pointing", "energy", "deletion", "insertion", "sparseness", "seconds")
STORE = Path(__file__).with_name("quality.json")
README = Path(__file__).parents[2] / "camcli" / "engine" / "methods" / "README.md"
MARKS = "<!-- quality -->", "<!-- /quality -->"
Row = dict[str, Any]


def measured(name: str, scenes: int, seed: int, options: dict[str, Any]) -> Row:
    """Of one method: mean and half-width of each figure, and the first scene's figures; none where it refuses."""
    model = load_model(ModelConfig(), InputConfig())
    layers = [resolve_layer(model.module, (SIZE, SIZE))]
    engine = Engine(model, layers, [METHODS.get(name)], options=OptionsConfig.model_validate({name: options}))
    try:
        found = np.array([list(of_scene(engine, scene(seed, index))) for index in range(scenes)])
    except MethodError as error:
        return {"refuses": str(error)}
    half = 1.96 * found.std(axis=0, ddof=1) / len(found) ** 0.5
    figures = {key: [float(m), float(h)] for key, m, h in zip(FIGURES, found.mean(axis=0), half, strict=True)}
    first = dict(zip(FIGURES[:-1], map(float, found[0]), strict=False))
    return {"scenes": scenes, "seed": seed, "options": options, "figures": figures, "first": first}


def of_scene(engine: Engine, drawn: Scene) -> Iterator[float]:
    """The FIGURES of one scene."""
    start = time.process_time()
    heats = list(explained(engine, drawn))
    seconds = time.process_time() - start
    image = engine.normalise(torch.from_numpy(drawn.image)[None])[0]
    rows = [of_map(engine, image, heat, *shape) for heat, shape in zip(heats, drawn.shapes, strict=True)]
    yield from (float(value) for value in np.mean(rows, axis=0))
    yield seconds


def of_map(
    engine: Engine, image: torch.Tensor, heat: NDArray[np.float32], label: int, mask: NDArray[np.bool_]
) -> list[float]:
    """The FIGURES of one map, without seconds."""
    full = at_image_size(heat, mask.shape).clip(min=0)
    curves = faithfulness(engine, image, full, label)
    pointing, energy = bool(full.any() and mask.flat[full.argmax()]), (full * mask).sum() / max(full.sum(), 1e-12)
    return [float(pointing), float(energy), curves.deletion, curves.insertion, sparseness(full)]


def stored() -> dict[str, Row]:
    """What was measured last, by method."""
    found: dict[str, Row] = json.loads(STORE.read_text()) if STORE.exists() else {}
    return found


def markdown(rows: dict[str, Row]) -> str:
    """The table, in the order of the registry."""
    lines = ["| method | " + " | ".join(FIGURES) + " | scenes |", "|---" * (len(FIGURES) + 2) + "|"]
    for name in METHODS:
        row = rows.get(name, {"refuses": ""})
        if "refuses" in row:
            lines.append(f"| `{name}` | refuses this model |" + " |" * len(FIGURES))
            continue
        told = "".join(f", {key} {value}" for key, value in row["options"].items())
        cells = [_cell(key, *row["figures"][key]) for key in FIGURES]
        lines.append(f"| `{name}`{told} | " + " | ".join(cells) + f" | {row['scenes']} |")
    return "\n".join(lines)


def _cell(key: str, mean: float, half: float) -> str:
    return f"{mean:.3g}" if key == "seconds" else f"{mean:.2f} ± {half:.2f}"


def write(rows: dict[str, Row]) -> None:
    """Keep the figures and put the table in its place."""
    STORE.write_text(json.dumps({name: rows[name] for name in METHODS if name in rows}, indent=1) + "\n")
    before, _, rest = README.read_text().partition(MARKS[0])
    README.write_text(f"{before}{MARKS[0]}\n{markdown(rows)}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--write", action="store_true", help="keep the figures and write the table")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    options = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in args.set)}
    for name in args.methods or METHODS:
        found = measured(name, args.scenes, args.seed, options)
        print(json.dumps({name: found}), flush=True)
        if args.write:
            write({**stored(), name: found})


if __name__ == "__main__":
    main()
