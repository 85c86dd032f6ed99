"""Another look for a run: from its kept maps without a model, by a command and by the next run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camcli.config.schema import OverlayConfig
from camcli.pipeline.interrupt import Interrupt
from camcli.pipeline.repaint import repaint
from camcli.records import Failure
from camcli.results.lock import Lock
from tests.conftest import SHAPES, Ended, save_image
from tests.test_overlays import records

Camcli = Callable[..., Ended]
LOOKS = {
    "lines": "{style: contours, format: png, caption: true}",
    "grid": "{grid: true, size: model, alpha: 0.3}",
    "one range": "{style: spotlight, scale: run, format: webp, size: 300}",
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two shapes, a portrait in deep grey that is larger than the model's input, and a file that is no image."""
    for name in ("01-circle-star.jpg", "12-star.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes((SHAPES / name).read_bytes())
    deep = np.random.default_rng(0).integers(0, 40_000, (601, 333), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "in" / "tall.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    return tmp_path / "in"


def explain(camcli: Camcli, images: Path, out: Path, *settings: str, maps: str = "npz") -> Ended:
    """A run of the embedded model, of two methods of which one is signed."""
    words = (
        "methods=[gradcam, guided-backprop]",
        "targets={top: 2}",
        "input.range=[0, 30000]",
        f"maps={maps}",
        *settings,
    )
    return camcli("run", images, "--out", out, *[word for setting in words for word in ("-s", setting)])


def contents(out: Path) -> dict[str, bytes]:
    """All files but the manifest, and the lock's."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in files if p.name not in ("run.json", ".lock")}


@pytest.mark.parametrize("look", LOOKS)
def test_a_run_painted_anew_is_a_run_with_that_look(camcli: Camcli, images: Path, tmp_path: Path, look: str) -> None:
    assert explain(camcli, images, tmp_path / "out").code == 1
    ended = camcli("paint", tmp_path / "out", "-s", f"overlay={LOOKS[look]}")
    assert (ended.code, "3 images painted anew, 1 failed before" in ended.err) == (0, True), ended.err
    assert explain(camcli, images, tmp_path / "fresh", f"overlay={LOOKS[look]}").code == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    told, fresh = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("out", "fresh"))
    for key in ("look", "looks", "fingerprint", "identity", "config", "counts", "status", "libraries"):
        assert told[key] == fresh[key], key
    again = explain(camcli, images, tmp_path / "out", f"overlay={LOOKS[look]}")
    assert "nothing to do" in again.err
    assert "0 images painted anew, 3 looked so already, 1 failed before" in camcli("paint", tmp_path / "out").err


def test_a_field_is_set_on_the_look_that_is_there(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    explain(camcli, images, tmp_path / "out", "overlay.format=png")
    assert camcli("paint", tmp_path / "out", "-s", "overlay.style=blend").code == 0
    told = json.loads((tmp_path / "out" / "run.json").read_text())["config"]["overlay"]
    assert (told["format"], told["style"]) == ("png", "blend")


class After(Interrupt):
    """As if a signal had come after so many images; also who is told of them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def begin(self, *_: object) -> None:
        """Nothing."""

    def advance(self, failure: Failure | None) -> None:
        """One more image."""
        self.count -= 1
        self.exit_code = 130 if self.count <= 0 else 0


def test_painting_that_was_stopped_or_killed_goes_on(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    settings = "overlay.format=png", "runtime.threads=1"
    for name in ("out", "whole"):
        explain(camcli, images, tmp_path / name, "runtime.threads=1")
    after = After(1)
    stopped = repaint(tmp_path / "out", OverlayConfig(format="png"), after, after)
    assert (stopped.exit_code, 0 < stopped.painted < 4) == (130, True)
    assert len({record["look"] for record in records(tmp_path / "out")}) == 2
    file = tmp_path / "out" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "running"}))
    assert "painted anew" in camcli("paint", tmp_path / "out").err
    assert camcli("paint", tmp_path / "whole", "-s", settings[0]).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert json.loads(file.read_text())["status"] == "finished"
    assert "nothing to do" in explain(camcli, images, tmp_path / "out", *settings).err


def test_what_has_changed_or_is_gone_is_left_and_said(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    explain(camcli, images, tmp_path / "out")
    before = {record["id"]: record for record in records(tmp_path / "out")}
    (images / "12-star.png").unlink()
    save_image(images / "tall.png", 300, 600)
    ended = camcli("paint", tmp_path / "out", "-s", "overlay.alpha=0.2")
    assert ended.code == 1
    assert f"{images / '12-star.png'}: is gone since then" in ended.err
    assert f"{images / 'tall.png'}: has changed since then" in ended.err
    assert "1 image painted anew, 1 failed before, 2 left as they are" in ended.err
    after = {record["id"]: record for record in records(tmp_path / "out")}
    assert list(after) == list(before)
    assert [name for name in before if before[name] == after[name]] == ["12-star.png", "tall.png"]


@pytest.mark.parametrize("maps", ["npz", "png16"])
def test_a_damaged_map_is_of_one_image_alone(camcli: Camcli, images: Path, tmp_path: Path, maps: str) -> None:
    out = tmp_path / "out"
    explain(camcli, images, out, maps=maps)
    file = next((out / "maps").glob("12-star.png*"))
    file.write_bytes(b"torn".ljust(file.stat().st_size))
    ended = camcli("paint", out, "-s", "overlay.alpha=0.2")
    assert (ended.code, f"{file}: the map cannot be read" in ended.err) == (1, True), ended.err
    assert "2 images painted anew, 1 failed before, 1 left as they are" in ended.err


def test_without_maps_nothing_can_be_painted(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    explain(camcli, images, tmp_path / "out", maps="none")
    before = contents(tmp_path / "out")
    ended = camcli("paint", tmp_path / "out", "-s", "overlay.alpha=0.2")
    assert (ended.code, "keeps no maps to paint from" in ended.err, "maps=npz" in ended.err) == (2, True, True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("maps", ["npz", "none"])
def test_a_run_that_only_looks_different_sees_to_it_itself(
    camcli: Camcli, images: Path, tmp_path: Path, maps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = "overlay={style: blend, caption: true}"
    explain(camcli, images, tmp_path / "out", maps=maps)
    with monkeypatch.context() as patch:
        if maps == "npz":
            patch.setattr("camcli.pipeline.run.perform", lambda *_: pytest.fail("explained again"))
        ended = explain(camcli, images, tmp_path / "out", look, maps=maps)
    assert ended.code == 1, ended.err
    assert ("3 images painted anew, 1 failed before" in ended.err) == (maps == "npz")
    assert ended.err.count("to be explained again: ") == (3 if maps == "none" else 0)
    explain(camcli, images, tmp_path / "fresh", look, maps=maps)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    kept = explain(camcli, images, tmp_path / "out", "overlay.alpha=0.1", maps="npz")
    assert kept.code == (2 if maps == "none" else 1)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("-s", "model=timm/resnet18"), 2, "it takes fields of overlay only"),
        (("-s", "overlay.alpha=2"), 2, "overlay.alpha: input should be less than or equal to 1"),
        (("-s", "overlay.style=none"), 2, "overlay.style"),
    ],
)
def test_other_words_are_refused(
    camcli: Camcli, tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    assert camcli("run", SHAPES, "--limit", 1, "--out", tmp_path / "out").code == 0
    ended = camcli("paint", tmp_path / "out", *words)
    assert (ended.code, sentence in ended.err) == (code, True), ended.err


def test_a_folder_that_is_none_or_in_use_is_refused(camcli: Camcli, tmp_path: Path) -> None:
    ended = camcli("paint", tmp_path)
    assert (ended.code, "no run folder of camcli" in ended.err) == (2, True)
    camcli("run", SHAPES, "--limit", 1, "--out", tmp_path / "out", "-s", "maps=npz")
    lock = Lock(tmp_path / "out" / ".lock")
    assert lock.acquire()
    try:
        assert camcli("paint", tmp_path / "out", "-s", "overlay.alpha=0.2").code == 75
    finally:
        lock.release()


def test_painting_needs_no_torch(camcli: Camcli, tmp_path: Path) -> None:
    camcli("run", SHAPES, "--limit", 1, "--out", tmp_path / "out", "-s", "maps=png16")
    code = (
        "import sys; from camcli.cli.app import main; sys.argv = ['camcli', 'paint', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "assert 'torch' not in sys.modules"
    )
    words = str(tmp_path / "out"), "-s", "overlay.alpha=1"
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, timeout=60)
