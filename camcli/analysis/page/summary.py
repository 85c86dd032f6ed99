"""The overview: what ran, how it ended, and what deserves a look, from the manifest and the rows of all images."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from camcli.analysis.page.rows import FLAGS
from camcli.render.styles import palette
from camcli.results.manifest import Manifest
from camcli.results.run import Run

BINS = 20
STRIP = 12
MESSAGES = 3
Row = dict[str, Any]


def overview(run: Run, rows: Sequence[Row], bundle: int, bundles: int) -> dict[str, Any]:
    """What the page's first view says; bundles: in how many pieces of `bundle` chunks the rows come."""
    done, failed = [row for row in rows if "c" in row], [row for row in rows if "e" in row]
    look = run.manifest.config.get("overlay", {})
    return {
        "title": run.path.absolute().name,
        "bundle": bundle,
        "bundles": bundles,
        "facts": _facts(run.manifest),
        "done": len(done),
        "failed": len(failed),
        "seconds": run.manifest.seconds,
        "histogram": _histogram(done),
        "classes": _classes(done),
        "failures": _failures(failed),
        "look": _look(done),
        "flags": FLAGS,
        "concepts": [concept.label for concept in run.concepts],
        "colours": _colours(look.get("colormap", "inferno")),
        "alpha": look.get("alpha") or 0.75,
    }


def _facts(manifest: Manifest) -> list[list[str]]:
    """What ran, as names and values."""
    model, config, precision = manifest.model, manifest.config, manifest.precision
    said = {
        "status": manifest.status,
        "model": f"{model.source}/{model.name}, {model.classes} classes",
        "weights": f"{Path(model.weights).name} sha256 {model.weights_sha256[:12]}"
        if model.weights_sha256
        else "random",
        "layer": "; ".join(map(_layer, manifest.layers)),
        "methods": ", ".join(map(str, config.get("methods", []))),
        "targets": ", ".join(
            f"{name} {value}" for name, value in config.get("targets", {}).items() if value is not None
        ),
        "precision": f"{precision.used}, {precision.why}" if precision else "",
        "device": manifest.device,
        "started": manifest.started.replace("T", " ").replace("+00:00", " UTC"),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "fingerprint": manifest.fingerprint[:12],
    }
    return [[name, value] for name, value in said.items() if value]


def _layer(taps: Sequence[dict[str, Any]]) -> str:
    """The places that a map is read from, and the shape of what is there."""
    return " + ".join(f"{tap.get('path')} ({_shape(tap.get('layout') or {})})" for tap in taps)


def _shape(layout: dict[str, Any]) -> str:
    return f"{'x'.join(map(str, layout.get('grid', [])))} {layout.get('kind', '')}".strip()


def _histogram(rows: Iterable[Row]) -> list[int]:
    """How many images have a top-1 probability in each twentieth."""
    counts = Counter(min(int(row["p"] * BINS), BINS - 1) for row in rows)
    return [counts[i] for i in range(BINS)]


def _classes(rows: Iterable[Row]) -> list[list[Any]]:
    """[index, label, images, mean probability] of each class that is the most probable one, most images first."""
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in rows:
        found[row["c"], row["l"]].append(row["p"])
    ranked = sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return [[index, label, len(p), round(sum(p) / len(p), 4)] for (index, label), p in ranked]


def _failures(rows: Sequence[Row]) -> list[list[Any]]:
    """[kind, images, first messages], most first."""
    counts = Counter(row["e"] for row in rows)
    return [[kind, n, [r["m"] for r in rows if r["e"] == kind][:MESSAGES]] for kind, n in counts.most_common()]


def _look(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What deserves a look: the least certain first, then what was flagged."""
    found = [_section("least certain", "", sorted(rows, key=lambda row: float(row["p"])))]
    found.append(_section("closest calls", "", sorted(rows, key=lambda row: float(row["g"]))))
    found += [_section(flag, flag, [row for row in rows if flag in row["f"]]) for flag in FLAGS]
    return [section for section in found if section["rows"]]


def _section(name: str, flag: str, rows: Sequence[Row]) -> dict[str, Any]:
    return {"name": name, "flag": flag, "images": len(rows) if flag else 0, "rows": rows[:STRIP]}


def _colours(colormap: str) -> dict[str, str]:
    """256 RGB triples in base64, of the run's colour map, of the page's own, and of RdBu_r for signed maps."""
    names = dict.fromkeys([colormap, "inferno", "turbo", "cividis", "RdBu_r"])
    return {name: base64.b64encode(palette(name).tobytes()).decode() for name in names}
