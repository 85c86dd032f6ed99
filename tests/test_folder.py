"""One folder belongs to one job, is what it was when the run began, and holds files of camcli's own only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from camcli.errors import LockedError, OutputError
from camcli.results.claim import Kind, lock_file
from camcli.results.ledger import Line
from camcli.results.lock import Lock, is_held
from camcli.results.manifest import NOTHING
from camcli.results.rundir import RunDir
from tests.conftest import Ended, save_image
from tests.test_resume import SMALL, images
from tests.test_run import TINY, lines, manifest

Camcli = Callable[..., Ended]

JOBS: dict[str, tuple[str, ...]] = {
    "whole": ("run",),
    "part": ("run", "--shard", "1/2"),
    "other part": ("run", "--shard", "1/3"),
    "dff": ("dff", "--concepts", "2"),
}
HOLDS = {"whole": "a run that is not divided", "part": "a run in 2 parts", "dff": "the concepts of `camcli dff`"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images."""
    return images(tmp_path_factory.mktemp("in"), 6)


def everything(out: Path) -> dict[str, bytes]:
    """All files but locks."""
    return {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file() and not p.name.startswith(".lock")}


@pytest.mark.parametrize("first", list(HOLDS))
def test_a_folder_belongs_to_one_job(camcli: Camcli, folder: Path, tmp_path: Path, first: str) -> None:
    out = tmp_path / "out"
    assert camcli(*JOBS[first], folder, "--out", out, *SMALL).code == 0
    before = everything(out)
    for second, words in JOBS.items():
        if second == first:
            continue
        for fresh in ((), ("--fresh",)):
            ended = camcli(*words, folder, "--out", out, *SMALL, *fresh)
            assert ended.code == 2, (second, fresh, ended.err)
            assert f"{out}: holds {HOLDS[first]}" in ended.err
            assert "choose another --out" in ended.err
        assert everything(out) == before


def test_dff_again_replaces_what_it_made(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert camcli("dff", folder, "--out", out, *TINY, "-k", "2").code == 0
    assert camcli("dff", folder, "--out", out, *TINY, "-k", "3", "--fresh").code == 0
    assert len(json.loads((out / "concepts.json").read_text())["concepts"]) == 3
    assert manifest(out)["counts"]["done"] == 6


PAIRS: list[tuple[tuple[Kind, str], tuple[Kind, str]]] = [
    (("run", ""), ("run", "")),
    (("run", ""), ("run", "-1-of-2")),
    (("run", "-1-of-2"), ("run", "")),
    (("run", "-1-of-2"), ("run", "-1-of-2")),
    (("run", "-1-of-2"), ("run", "-1-of-3")),
    (("run", "-1-of-2"), ("merge", "")),
    (("dff", ""), ("run", "")),
    (("run", "-1-of-2"), ("dff", "")),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_jobs_that_begin_at_the_same_time_keep_each_other_out(
    tmp_path: Path, first: tuple[Kind, str], second: tuple[Kind, str]
) -> None:
    with RunDir(tmp_path, first[1], first[0]):
        for lock in tmp_path.iterdir():
            assert lock.read_text() in ("", f"process {os.getpid()} on {socket.gethostname()}\n")
            lock.write_text("process 7 elsewhere\n" if lock.stat().st_size else "")
        for _ in range(2):
            with pytest.raises(LockedError, match=r"another run writes there.* \(process 7 elsewhere\)"):
                RunDir(tmp_path, second[1], second[0]).__enter__()
    with RunDir(tmp_path, second[1], second[0]):
        pass


def test_parts_of_one_run_share_the_folder(tmp_path: Path) -> None:
    with RunDir(tmp_path, "-1-of-2"), RunDir(tmp_path, "-2-of-2"):
        assert is_held(lock_file(tmp_path, "-1-of-2"))
        assert is_held(lock_file(tmp_path, "-2-of-2"))
    assert not is_held(lock_file(tmp_path, "-1-of-2"))
    assert not is_held(tmp_path / "nowhere")


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        Lock(tmp_path / ".lock").acquire()
        os.write(writer, b"x")
        signal.pause()
    assert os.read(reader, 1)
    assert is_held(tmp_path / ".lock")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not is_held(tmp_path / ".lock")
    assert Lock(tmp_path / ".lock").acquire()


def away(out: Path, how: str) -> None:
    """Take the run folder, or the records in it, from under the run."""
    if how == "removed":
        shutil.rmtree(out.rename(out.with_name("away")), ignore_errors=True)
    elif how == "results removed":
        (out / "results.jsonl").unlink()
    elif how == "results changed":
        with (out / "results.jsonl").open("ab") as file:
            file.write(b"{}\n")
    else:
        out.rename(out.with_name("away"))
        if how == "replaced":
            out.mkdir()


@pytest.fixture
def at_the_third(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """Functions to call just before the third record is appended."""
    real, calls = RunDir.append, [0]
    todo: list[Callable[[], None]] = []

    def append(self: RunDir, line: Line) -> None:
        calls[0] += 1
        if calls[0] == 3:
            todo[0]()
        real(self, line)

    monkeypatch.setattr(RunDir, "append", append)
    yield todo
    assert calls[0] == 3, "the run ends at the record that cannot be kept"


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced", "results removed", "results changed"])
def test_a_folder_that_goes_away_ends_the_run_at_once(
    camcli: Camcli, folder: Path, tmp_path: Path, how: str, at_the_third: list[Callable[[], None]]
) -> None:
    out = tmp_path / "out"
    at_the_third.append(lambda: away(out, how))
    ended = camcli("run", folder, "--out", out, *SMALL)
    assert ended.code == 3, ended.err
    assert "removed or renamed" in ended.err
    assert f"{out}" in ended.err
    if how in ("removed", "renamed"):
        assert not out.exists()
    if how == "replaced":
        assert list(out.iterdir()) == []


def test_files_are_not_written_into_a_folder_that_is_gone(tmp_path: Path) -> None:
    with RunDir(tmp_path / "out") as run:
        run.write("overlays/a.jpg", b"x")
        (tmp_path / "out").rename(tmp_path / "away")
        with pytest.raises(OutputError, match="removed or renamed during the run"):
            run.write("overlays/b.jpg", b"x")
        with pytest.raises(OutputError, match="removed or renamed during the run"):
            run.write_manifest(NOTHING)
    assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "away").rglob("*.jpg")] == ["a.jpg"]


@pytest.mark.parametrize("name", [".lock", "results.jsonl", "run.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(
    camcli: Camcli, folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / name) if kind == "pipe" else (out / name).mkdir()
    for words in (("run", folder, "--out", out, *TINY), ("run", folder, "--out", out, *TINY, "--fresh")):
        ended = camcli(*words)
        assert ended.code == 3, ended.err
        assert f"{out / name}: " in ended.err
    assert camcli("status", out).code in (2, 3)
    assert camcli("merge", out).code == 2


@pytest.mark.parametrize("name", [".lock", "results.jsonl"])
def test_nothing_is_changed_through_a_hard_link(camcli: Camcli, folder: Path, tmp_path: Path, name: str) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    assert camcli("run", folder, "--out", out, *SMALL, "--limit", "3").code == 0
    copy.write_bytes((out / name).read_bytes())
    (out / name).unlink()
    os.link(copy, out / name)
    before = copy.read_bytes()
    ended = camcli("run", folder, "--out", out, *SMALL)
    assert copy.read_bytes() == before
    if name == ".lock":
        assert ended.code == 3
        assert f"{out / name}: has another name (a hard link)" in ended.err
    else:
        assert ended.code == 0
        assert len(lines(out)) == 6


def test_a_folder_that_is_named_like_an_output_harms_nobody(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    inside = ("a.jpg", "a.jpg.gradcam.3-class-3.jpg/b.jpg", "a.jpg.gradcam.3-class-3.jpg~/b.jpg", "a.jpg.json/c.jpg")
    for name in inside:
        save_image(folder / name, 40, 40)
    words = ("run", folder, "--out", out, *TINY, "-s", "targets=[3]", "-s", "maps=png16")
    assert camcli(*words).code == 0
    records = lines(out)
    assert [record["id"] for record in records] == sorted(inside)
    files = [name for record in records for name in record["files"]]
    assert len(set(files)) == len(files) == 3 * len(inside)
    assert "overlays/a.jpg.gradcam.3-class-3.jpg" in files
    assert "overlays/a.jpg.gradcam.3-class-3.jpg~/b.jpg.gradcam.3-class-3.jpg" in files
    assert all((out / name).is_file() for name in files)


def two_folders(place: Path) -> tuple[Path, Path]:
    """`a` with three images, `b` with two of the same names and one of its own."""
    images(place / "a", 3)
    for seed, name in enumerate(("00.jpg", "01.png", "own.png"), 7):
        save_image(place / "b" / name, 50, 50, seed)
    return place / "a", place / "b"


def refused(camcli: Camcli, out: Path, *words: object) -> str:
    """The message of a run that must change nothing."""
    before = everything(out)
    ended = camcli("run", *words, "--out", out, *TINY)
    assert ended.code == 2, ended.err
    assert everything(out) == before
    return ended.err


def test_one_more_input_does_not_rename_what_is_there(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two_folders(tmp_path)
    out = tmp_path / "out"
    assert camcli("run", a, "--out", out, *TINY).code == 0
    monkeypatch.setattr("camcli.pipeline.prepare.load_model", lambda *_: pytest.fail("the model was loaded"))
    told = refused(camcli, out, a, b)
    assert "3 of its images would get other ids: 00.jpg -> a/00.jpg" in told
    assert f"start over with --fresh --root {tmp_path}" in told
    told = refused(camcli, out, f"{a}/*")
    assert f"--root {a} keeps the ids that are there" in told
    monkeypatch.undo()
    assert camcli("run", f"{a}/*", "--out", out, *TINY, "--root", a).code == 0
    assert {record["id"] for record in lines(out)} == {"00.jpg", "01.png", "02.png"}
    assert camcli("run", a, b, "--out", out, *TINY, "--fresh").code == 0
    assert len(lines(out)) == 6
    told = refused(camcli, out, a)
    assert f"--root {tmp_path} keeps the ids that are there" in told
    assert camcli("run", a, "--out", out, *TINY, "--root", tmp_path).code == 0
    assert len(lines(out)) == 6


def test_another_folder_is_not_mixed_with_what_is_there(camcli: Camcli, tmp_path: Path) -> None:
    a, b = two_folders(tmp_path)
    out = tmp_path / "out"
    assert camcli("run", a, "--out", out, *TINY).code == 0
    told = refused(camcli, out, b)
    assert f"other images with the same ids: 00.jpg is {a}/00.jpg there, and would be {b}/00.jpg" in told
    (b / "00.jpg").unlink()
    (b / "01.png").unlink()
    assert f"holds images below {a}, and these are below {b}" in refused(camcli, out, b)
    assert camcli("run", b, "--out", out, *TINY, "--fresh").code == 0
    assert [record["id"] for record in lines(out)] == ["own.png"]


def test_parts_are_about_one_folder(camcli: Camcli, tmp_path: Path) -> None:
    a, b = images(tmp_path / "a", 8), images(tmp_path / "b", 8)
    out = tmp_path / "out"
    assert camcli("run", a, "--out", out, *TINY, "--shard", "1/2").code == 0
    told = refused(camcli, out, b, "--shard", "2/2")
    assert f"part 1/2 is about images below {a}, and this one about images below {b}" in told


def test_a_folder_that_was_moved_is_the_same(camcli: Camcli, tmp_path: Path) -> None:
    a, _ = two_folders(tmp_path)
    out = tmp_path / "out"
    assert camcli("run", a, "--out", out, *TINY).code == 0
    moved = a.rename(tmp_path / "moved")
    assert camcli("run", moved, "--out", out, *TINY).code == 0
    assert manifest(out)["resumed"]["kept"] == 3


@pytest.mark.parametrize("how", ["folder", "two folders", "list", "glob", "file", "root"])
def test_status_lists_again_by_the_same_rule(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    two_folders(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    Path("list.txt").write_text("a/00.jpg\n../data/b/own.png\n")
    words: dict[str, tuple[str, ...]] = {
        "folder": ("a",),
        "two folders": ("a", "b"),
        "list": ("@list.txt",),
        "glob": ("*/0*",),
        "file": ("a/00.jpg", "../data/b/own.png"),
        "root": ("--root", "..", "../data/a"),
    }
    out = tmp_path / "out"
    assert camcli("run", *words[how], "--out", out, *TINY).code == 0
    monkeypatch.chdir(tmp_path)
    ended = camcli("status", out)
    assert ended.code == 0, ended.out
    assert "missing         0" in ended.out
    save_image(tmp_path / "data" / "a" / "03.jpg", 40, 40)
    found = json.loads(camcli("status", out, "--json").out)
    new = {"folder": ["03.jpg"], "two folders": ["a/03.jpg"], "glob": ["a/03.jpg"], "root": ["data/a/03.jpg"]}
    assert found["missing"] == new.get(how, [])
