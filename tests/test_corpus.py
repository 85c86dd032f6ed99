"""Every kind of file and name: the right heatmap or the right failure, the others unharmed, no hang, no noise."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camcli.engine.engine import Engine
from camcli.errors import ItemError
from camcli.images.decode import decode
from camcli.images.find import discover
from camcli.images.preprocess import Preprocess
from tests.conftest import Ended, RedDetector, loaded
from tests.corpus import HEIGHT, WIDTH, Corpus, build, encoded, good_kinds
from tests.test_resume import images
from tests.test_run import TINY, lines

Camcli = Callable[..., Ended]


@pytest.fixture
def red(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is one that knows red from blue, and sees the whole of each image."""
    whole = Preprocess((64, 64), (64, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", "squash")
    monkeypatch.setattr("camcli.pipeline.prepare.load_model", lambda *_: loaded(RedDetector(), whole))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    """The folder and the fate of each file in it."""
    folder = tmp_path_factory.mktemp("corpus")
    return folder, build(folder)


def run_corpus(camcli: Camcli, folder: Path, out: Path) -> tuple[Ended, dict[bytes, dict[str, Any]]]:
    """The command and its records by id."""
    look = "overlay={format: png, size: original}"
    ended = camcli("run", folder, "--out", out, "-s", "targets=[0]", "-s", "layer=rectify", "-s", look)
    records = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    return ended, {os.fsencode(record["id"]): record for record in records}


def test_each_file_meets_its_fate(camcli: Camcli, red: None, corpus: tuple[Path, Corpus], tmp_path: Path) -> None:
    folder, fates = corpus
    assert len(fates) >= 60
    ended, records = run_corpus(camcli, folder, tmp_path / "out")
    assert ended.code == 1, ended.err
    assert records.keys() == fates.keys()
    for name, fate in fates.items():
        record = records[name]
        if fate.stage:
            assert (record["status"], record.get("stage")) == ("failed", fate.stage), record
            assert record["kind"] in fate.kinds, record
            continue
        assert record["status"] == "done", record
        assert (record["width"], record["height"]) == fate.size, name
        [heatmap] = record["heatmaps"]
        assert heatmap["empty"] is not fate.red, name
        if fate.red:
            x, y = heatmap["peak"]
            assert 0.1 * WIDTH < x < 0.4 * WIDTH, name
            assert 0.1 * HEIGHT < y < 0.4 * HEIGHT, name
        with Image.open(tmp_path / "out" / heatmap["overlay"]) as overlay:
            assert overlay.size == fate.size
    check_files(tmp_path / "out", records)
    counts = dict(line.split()[:2] for line in ended.err.splitlines() if line.startswith(("explained ", "failed ")))
    failed = sum(bool(fate.stage) for fate in fates.values())
    assert counts == {"explained": str(len(fates) - failed), "failed": str(failed)}
    assert "Warning" not in ended.err
    assert os.listdir(tmp_path) == ["out"]
    again, _ = run_corpus(camcli, folder, tmp_path / "out")
    assert f"nothing to do: all {len(fates)} images" in again.err


def check_files(out: Path, records: dict[bytes, dict[str, Any]]) -> None:
    """No two images share an output, and nothing else was written."""
    named = [name for record in records.values() for name in record.get("files", {})]
    assert len(named) == len(set(named))
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert written - {"run.json", "results.jsonl", ".lock"} == set(named)


def test_every_output_is_ascii_json_and_escapes_are_shown(
    camcli: Camcli, red: None, corpus: tuple[Path, Corpus], tmp_path: Path
) -> None:
    folder, _fates = corpus
    for words in (("--dry-run",), ("--log-format", "json"), ("--junit", tmp_path / "junit.xml")):
        ended = camcli("run", folder, "--out", tmp_path / "out", "-s", "targets=[0]", "-s", "layer=rectify", *words)
        assert "\x1b" not in ended.err
    assert (tmp_path / "out" / "results.jsonl").read_bytes().isascii()
    assert "\x1b" not in camcli("status", tmp_path / "out").out
    assert b"\x1b" not in (tmp_path / "junit.xml").read_bytes()


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif", "grey32.tif", "float.tif"])
def test_deep_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(good_kinds()[name][0])
    grey = np.asarray(decode(tmp_path / name), dtype=np.int16)[..., 0].ravel()
    assert np.abs(grey - np.linspace(0, 255, WIDTH * HEIGHT)).max() <= 1


@pytest.mark.parametrize("name", ["rgb16.png", "rgb16.tif"])
def test_deep_colour_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(good_kinds()[name][0])
    assert np.abs(np.asarray(decode(tmp_path / name), int) - np.asarray(decode_plain(tmp_path), int)).max() <= 1


def decode_plain(folder: Path) -> Image.Image:
    """The scene without loss."""
    (folder / "plain.png").write_bytes(good_kinds()["plain.png"][0])
    return decode(folder / "plain.png")


def test_a_image_near_the_limit_is_explained_without_a_word(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 60 * 50 - 1)
    ended = camcli("run", images(tmp_path / "in", 1), "--out", tmp_path / "out", *TINY)
    assert (ended.code, "Warning" in ended.err) == (0, False), ended.err


def test_a_large_image_is_read_again_for_its_overlay(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(tmp_path / "in", 3)
    assert camcli("run", folder, "--out", tmp_path / "kept", *TINY).code == 0
    monkeypatch.setattr("camcli.images.memory.Budget.keep", lambda self, size: size == 0)
    assert camcli("run", folder, "--out", tmp_path / "again", *TINY).code == 0
    for path in (tmp_path / "kept" / "overlays").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "overlays" / path.name).read_bytes()


def test_a_image_that_changes_while_it_is_read_is_a_failure(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(tmp_path / "in", 1)
    monkeypatch.setattr("camcli.images.memory.Budget.keep", lambda self, size: size == 0)
    real = Engine.explain

    def touched(self: Engine, *words: Any) -> Any:
        os.utime(folder / "00.jpg", (1, 1))
        return real(self, *words)

    monkeypatch.setattr(Engine, "explain", touched)
    assert camcli("run", folder, "--out", tmp_path / "out", *TINY).code == 1
    [record] = lines(tmp_path / "out")
    assert (record["stage"], record["kind"]) == ("read", "Changed")


def test_a_format_too_small_for_a_image_is_a_failure_of_that_image(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 2)
    (folder / "long.png").write_bytes(encoded(Image.new("RGB", (30_000, 2), "blue"), "PNG"))
    assert (
        camcli("run", folder, "--out", tmp_path / "out", *TINY, "-s", "overlay={format: webp, size: original}").code
        == 1
    )
    assert [(r["id"], r.get("stage")) for r in lines(tmp_path / "out")] == [
        ("00.jpg", None),
        ("01.png", None),
        ("long.png", "write"),
    ]


def test_vanished_files_are_failures(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 2)
    (tmp_path / "list.txt").write_text(f"{folder}/00.jpg\n{folder}/gone.jpg\n{folder}/01.png\n")
    words = ("run", f"@{tmp_path}/list.txt", "--root", folder, "--out", tmp_path / "out", *TINY)
    assert camcli(*words).code == 1
    kinds = {r["id"]: r.get("kind") for r in lines(tmp_path / "out")}
    assert kinds == {"00.jpg": None, "gone.jpg": "FileNotFoundError", "01.png": None}


def test_files_that_may_not_be_read_are_failures() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = images(Path(place), 2)
        (folder / "closed").mkdir()
        for name, mode in ((".", 0o755), ("01.png", 0), ("closed", 0)):
            (folder / name).chmod(mode)
        read, write = os.pipe()
        if os.fork() == 0:
            _tell_as_nobody(folder, write)
        os.close(write)
        with os.fdopen(read) as told:
            found = json.load(told)
        os.wait()
        (folder / "closed").chmod(0o700)
    assert found == {"00.jpg": "", "01.png": "read PermissionError", "closed": "read PermissionError"}


def _tell_as_nobody(folder: Path, write: int) -> None:
    """In a child: how each file fails for a user without rights."""
    found = {}
    try:
        if os.getuid() == 0:
            os.setuid(65534)
        for item in discover([str(folder)]):
            try:
                decode(item.path)
                found[item.id] = ""
            except ItemError as error:
                found[item.id] = f"{error.stage} {error.kind}"
        os.write(write, json.dumps(found).encode())
    finally:
        os._exit(0)
