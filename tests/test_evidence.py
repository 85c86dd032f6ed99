"""Images with little or nothing to see are counted, wherever a run is told of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camcli.results.counts import without_evidence
from camcli.results.ledger import Entry, entry_of
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
        likely = [p["index"] for p in record["top"] if p["probability"] >= 0.5]
        assert [h["target"]["index"] for h in record["heatmaps"]] == (likely or [record["top"][0]["index"]])


def test_maps_that_need_no_class_are_there_without_one(camcli: Camcli, tmp_path: Path) -> None:
    blank(tmp_path / "in", "a.png")
    settings = (*ABOVE, "-s", "methods=[gradcam, eigencam]", "-s", "overlay.grid=true")
    ended = camcli("run", tmp_path / "in", "--out", tmp_path / "out", *settings)
    assert "1 image: no class above 0.5, so only maps that need none" in ended.err
    assert told(tmp_path / "out") == {"no_class": 1}
    [record] = records(tmp_path / "out")
    assert [(h["method"], h["target"]) for h in record["heatmaps"]] == [("eigencam", None)]
    assert record["grids"] == ["overlays/a.png.grid.jpg"]


def entry(probability: float, *heatmaps: tuple[float | None, bool]) -> Entry:
    """Of an image with heatmaps of a class or of none (None), empty or not."""
    maps = [{"target": p and {"probability": p}, "empty": empty} for p, empty in heatmaps]
    record = {"id": "a", "source": "/a", "status": "done", "heatmaps": maps, "top": [{"probability": probability}]}
    return entry_of(record, 0, 1)


@pytest.mark.parametrize(
    ("found", "above", "lack"),
    [
        (entry(0.9, (0.9, False)), 0.5, None),
        (entry(0.5, (0.5, False)), 0.5, None),
        (entry(0.4, (0.4, False)), 0.5, "below"),
        (entry(0.4, (0.4, False)), None, None),
        (entry(0.4), 0.5, "no_heatmap"),
        (entry(0.4, (None, False)), 0.5, "no_class"),
        (entry(0.9, (None, False)), 0.5, None),
        (entry(0.9, (0.9, True), (0.8, True)), 0.5, "empty"),
        (entry(0.9, (0.9, True), (0.8, False)), 0.5, None),
    ],
)
def test_what_an_image_lacks(found: Entry, above: float | None, lack: str | None) -> None:
    assert without_evidence([found], above) == ({lack: 1} if lack else {})
