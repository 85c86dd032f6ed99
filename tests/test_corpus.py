"""Every kind of file and name: the right heatmap or the right failure, the others unharmed, no hang, no noise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camcli.images import Preprocess, decode
from tests.conftest import Ended, RedDetector, loaded
from tests.corpus import HEIGHT, WIDTH, Corpus, build, encoded, good_kinds, png
from tests.test_resume import pictures
from tests.test_run import TINY, lines

Camcli = Callable[..., Ended]


@pytest.fixture
def red(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is one that knows red from blue, and sees the whole of each picture."""
    whole = Preprocess((64, 64), (64, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", "squash")
    monkeypatch.setattr("camcli.pipeline.load_model", lambda *_: loaded(RedDetector(), whole))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    """The folder and the fate of each file in it."""
    folder = tmp_path_factory.mktemp("corpus")
    return folder, build(folder)


def run_corpus(camcli: Camcli, folder: Path, out: Path) -> tuple[Ended, dict[bytes, dict[str, Any]]]:
    """The command and its records by id."""
    ended = camcli("run", folder, "--out", out, "-s", "targets=[0]", "-s", "layer=rectify", "-s", "overlay.format=png")
    return ended, {os.fsencode(record["id"]): record for record in lines(out)}


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


def test_nothing_but_the_summary_is_said(
    camcli: Camcli, red: None, corpus: tuple[Path, Corpus], tmp_path: Path
) -> None:
    folder, fates = corpus
    ended, _ = run_corpus(camcli, folder, tmp_path / "out")
    said = [line.split()[0] for line in ended.err.splitlines()]
    assert said[1:-1] == ["explained", "failed", "seconds"]
    assert "\x1b" not in ended.err


def test_no_two_files_share_an_output_and_none_is_outside(
    camcli: Camcli, red: None, corpus: tuple[Path, Corpus], tmp_path: Path
) -> None:
    folder, fates = corpus
    before = sorted(os.listdir(os.fsencode(folder)))
    _, records = run_corpus(camcli, folder, tmp_path / "out")
    named = [name for record in records.values() for name in record.get("files", {})]
    assert len(named) == len(set(named))
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written - {"run.json", "results.jsonl", ".lock"} == set(named)
    assert sorted(os.listdir(os.fsencode(folder))) == before
    assert os.listdir(tmp_path) == ["out"]
    again = camcli(
        "run", folder, "--out", tmp_path / "out", "-s", "targets=[0]", "-s", "layer=rectify", "-s", "overlay.format=png"
    )
    assert f"nothing to do: all {len(fates)} images" in again.err


def test_every_output_is_ascii_json_and_escapes_are_shown(
    camcli: Camcli, red: None, corpus: tuple[Path, Corpus], tmp_path: Path
) -> None:
    folder, fates = corpus
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


def test_a_picture_near_the_limit_is_explained_without_a_word(camcli: Camcli, tmp_path: Path) -> None:
    side = 9_600
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "large.png").write_bytes(png(np.zeros((side, side // 8), np.uint8), 0, 1, size=(side, side)))
    words = (*TINY, "-s", "overlay.size=model")
    ended = camcli("run", tmp_path / "in", "--out", tmp_path / "out", *words)
    assert (ended.code, "Warning" in ended.err) == (0, False), ended.err


def test_a_large_picture_is_read_again_for_its_overlay(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "in", 3)
    assert camcli("run", folder, "--out", tmp_path / "kept", *TINY).code == 0
    monkeypatch.setattr("camcli.stream.KEPT_PIXELS", 0)
    assert camcli("run", folder, "--out", tmp_path / "again", *TINY).code == 0
    for path in (tmp_path / "kept" / "overlays").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "overlays" / path.name).read_bytes()


def test_a_picture_that_changes_while_it_is_read_is_a_failure(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "in", 1)
    monkeypatch.setattr("camcli.stream.KEPT_PIXELS", 0)
    explain = "camcli.engine.Engine.explain"
    from camcli.engine import Engine

    real = Engine.explain

    def touched(self: Engine, *words: Any) -> Any:
        os.utime(folder / "00.jpg", (1, 1))
        return real(self, *words)

    monkeypatch.setattr(explain, touched)
    assert camcli("run", folder, "--out", tmp_path / "out", *TINY).code == 1
    [record] = lines(tmp_path / "out")
    assert (record["stage"], record["kind"]) == ("read", "Changed")


def test_a_format_too_small_for_a_picture_is_a_failure_of_that_picture(camcli: Camcli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 2)
    (folder / "long.png").write_bytes(encoded(Image.new("RGB", (30_000, 2), "blue"), "PNG"))
    assert camcli("run", folder, "--out", tmp_path / "out", *TINY, "-s", "overlay.format=webp").code == 1
    assert [(r["id"], r.get("stage")) for r in lines(tmp_path / "out")] == [
        ("00.jpg", None),
        ("01.png", None),
        ("long.png", "write"),
    ]


def test_vanished_and_unreadable_files_are_failures(camcli: Camcli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 2)
    (tmp_path / "list.txt").write_text(f"{folder}/00.jpg\n{folder}/gone.jpg\n{folder}/01.png\n{tmp_path}\n")
    assert camcli("run", f"@{tmp_path}/list.txt", "--out", tmp_path / "out", *TINY, "--ext", "none").code == 1
    kinds = {r["id"]: r.get("kind") for r in lines(tmp_path / "out")}
    assert kinds == {"in/00.jpg": None, "in/gone.jpg": "FileNotFoundError", "in/01.png": None}


def test_files_that_nobody_may_read_are_failures(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 2)
    (folder / "closed").mkdir()
    (folder / "01.png").chmod(0)
    (folder / "closed").chmod(0)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, json.dumps(as_nobody(folder)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    (folder / "closed").chmod(0o700)
    found = json.loads(os.read(read, 10_000))
    assert found == {"00.jpg": "", "01.png": "read PermissionError", "closed": "read PermissionError"}


def as_nobody(folder: Path) -> dict[str, str]:
    """How each file fails for a user without rights."""
    from camcli.errors import ItemError
    from camcli.inputs import discover

    for place in (folder, *folder.parents[:2]):
        os.chmod(place, 0o755)
    if os.getuid() == 0:
        os.setuid(65534)
    found = {}
    for item in discover([str(folder)]):
        try:
            decode(item.path)
            found[item.id] = ""
        except ItemError as error:
            found[item.id] = f"{error.stage} {error.kind}"
    return found
