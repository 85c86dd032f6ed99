"""Images with little or nothing to see are counted, wherever a run is told of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camcli.pipeline.record import lack
from camcli.records import Box, Heatmap, ImageResult, Prediction
from tests.conftest import SHAPES, Ended

Camcli = Callable[..., Ended]
ABOVE = ("-s", "targets={above: 0.5}")
WORDS = "no class above 0.5, so no heatmap"


def blank(folder: Path, *names: str) -> None:
    """Images in which the embedded model sees no shape."""
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (150, 130), (120, 130, 125)).save(folder / name)


def shapes(folder: Path, count: int) -> None:
    """Images in which it sees some."""
    folder.mkdir(exist_ok=True)
    for path in sorted(SHAPES.iterdir())[:count]:
        (folder / path.name).write_bytes(path.read_bytes())


def told(out: Path) -> Any:
    """What run.json counts."""
    return json.loads((out / "run.json").read_text())["without_evidence"]


def records(out: Path) -> list[dict[str, Any]]:
    """Of a run."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_images_without_a_heatmap_are_counted_through_resumes_and_parts(camcli: Camcli, tmp_path: Path) -> None:
    blank(tmp_path / "in", "a.png", "b.png")
    shapes(tmp_path / "in", 2)
    words = "run", tmp_path / "in", *ABOVE
    first = camcli(*words, "--out", tmp_path / "out")
    assert (first.code, f"2 images: {WORDS}" in first.err) == (0, True)
    assert told(tmp_path / "out") == {"no_heatmap": 2}
    again = camcli(*words, "--out", tmp_path / "out")
    assert ("nothing to do" in again.err, f"2 images: {WORDS}" in again.err) == (True, True)
    blank(tmp_path / "in", "c.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"not an image")
    grown = camcli(*words, "--out", tmp_path / "out")
    assert (grown.code, f"3 images: {WORDS}" in grown.err) == (1, True)
    assert told(tmp_path / "out") == {"no_heatmap": 3}
    status = camcli("status", tmp_path / "out", "--json")
    assert json.loads(status.out)["without_evidence"] == {"no_heatmap": 3}
    assert f"3 images: {WORDS}" in camcli("status", tmp_path / "out").out
    as_json = camcli(*words, "--out", tmp_path / "out", "--log-format", "json")
    assert json.loads(as_json.err.splitlines()[-1])["without_evidence"] == {"no_heatmap": 3}
    for part in ("1/2", "2/2"):
        camcli(*words, "--out", tmp_path / "parts", "--shard", part)
    assert f"3 images: {WORDS}" in camcli("merge", tmp_path / "parts").err
    assert told(tmp_path / "parts") == {"no_heatmap": 3}


def test_the_embedded_model_falls_back_to_the_most_probable_class_and_says_so(camcli: Camcli, tmp_path: Path) -> None:
    blank(tmp_path / "in", "a.png")
    with Image.open(SHAPES / "03-ring-triangle.jpg") as clear:
        Image.blend(Image.new("RGB", clear.size, (120, 120, 120)), clear, 0.2).save(tmp_path / "in" / "faint.png")
    shapes(tmp_path / "in", 2)
    ended = camcli("run", tmp_path / "in", "--out", tmp_path / "out")
    assert "1 image: no class above 0.5, so the most probable one is shown" in ended.err
    assert "1 image: no evidence in any heatmap, so nothing is painted" in ended.err
    assert told(tmp_path / "out") == {"below": 1, "empty": 1}
    for record in records(tmp_path / "out"):
        likely = [p["index"] for p in record["predictions"] if p["probability"] >= 0.5]
        assert [h["target"]["index"] for h in record["heatmaps"]] == (likely or [record["predictions"][0]["index"]])


def test_maps_that_need_no_class_are_there_without_one(camcli: Camcli, tmp_path: Path) -> None:
    blank(tmp_path / "in", "a.png")
    settings = (*ABOVE, "-s", "methods=[gradcam, eigencam]", "-s", "overlay.grid=true")
    ended = camcli("run", tmp_path / "in", "--out", tmp_path / "out", *settings)
    assert "1 image: no class above 0.5, so only maps that need none" in ended.err
    assert told(tmp_path / "out") == {"no_class": 1}
    [record] = records(tmp_path / "out")
    assert [(h["method"], h["target"]) for h in record["heatmaps"]] == [("eigencam", None)]
    assert record["grids"] == ["overlays/a.png.grid.jpg"]


def found(probability: float, *heatmaps: tuple[float | None, bool]) -> ImageResult:
    """For an image with heatmaps of a class or of none (None), empty or not."""
    heat = np.zeros((2, 2), np.float32)
    maps = [
        Heatmap("gradcam", "last", p and Prediction(0, "a", p, 0.0), heat, 0.0, 1.0, empty)  # type: ignore[arg-type]
        for p, empty in heatmaps
    ]
    return ImageResult("a", "/a", (2, 2), Box(0, 0, 2, 2), (Prediction(0, "a", probability, 0.0),), tuple(maps))


@pytest.mark.parametrize(
    ("result", "above", "lacks"),
    [
        (found(0.9, (0.9, False)), 0.5, None),
        (found(0.5, (0.5, False)), 0.5, None),
        (found(0.4, (0.4, False)), 0.5, "below"),
        (found(0.4, (0.4, False)), None, None),
        (found(0.4), 0.5, "no_heatmap"),
        (found(0.4, (None, False)), 0.5, "no_class"),
        (found(0.9, (None, False)), 0.5, None),
        (found(0.9, (0.9, True), (0.8, True)), 0.5, "empty"),
        (found(0.9, (0.9, True), (0.8, False)), 0.5, None),
    ],
)
def test_what_an_image_lacks(result: ImageResult, above: float | None, lacks: str | None) -> None:
    assert lack(result, above) == lacks


def test_images_of_another_threshold_are_counted_by_their_own(camcli: Camcli, tmp_path: Path) -> None:
    """The first image reaches 0.5 and not 1, so it lacks something only in the run that asked for 1."""
    shapes(tmp_path / "in", 1)
    words = "run", tmp_path / "in", "--out", tmp_path / "out"
    assert "no class above 1.0, so the most" in camcli(*words, "-s", "targets={above: 1, else: top1}").err
    blank(tmp_path / "in", "z.png")
    ended = camcli(*words, *ABOVE, "--keep-going")
    assert "1 of the records were made with another config" in ended.err
    assert told(tmp_path / "out") == {"below": 1, "no_heatmap": 1}
    for text in (ended.err, camcli("status", tmp_path / "out").out):
        assert "1 image: no class above the threshold of its run, so the most probable one is shown" in text
