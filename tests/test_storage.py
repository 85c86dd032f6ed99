"""What is written is whole and on the disk, and nothing is deleted that is not camcli's."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camcli.config.file import load_config
from camcli.errors import ConfigError
from camcli.images.find import Item
from camcli.pipeline import job
from camcli.pipeline.job import Job
from camcli.records import SCHEMA_VERSION
from camcli.results.claim import claimed
from camcli.results.ledger import Entry, Ledger, Line, entry_of
from camcli.results.lock import Lock
from camcli.results.manifest import Manifest, Model
from camcli.results.resume import vanished
from camcli.results.rundir import RunDir
from camcli.results.shard import shard_of
from camcli.results.storage import fitted, make_folders, remove, sweep, write_all, write_atomic
from tests.conftest import Ended, save_image
from tests.test_readback import RECORD, TOLD
from tests.test_resume import SMALL, images
from tests.test_run import lines, manifest

Camcli = Callable[..., Ended]
RUNNING = Manifest(schema_version=SCHEMA_VERSION, status="running")
TEXT = json.dumps(RECORD).encode() + b"\n"
LINE = Line(entry_of(RECORD, 0, len(TEXT)), TEXT)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each fsync and rename: what was called, and the name of the file or folder."""
    found: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def fsync(number: int) -> None:
        name = os.readlink(f"/proc/self/fd/{number}")
        found.append(("sync folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "sync file", name))
        sync(number)

    def rename(old: Path, new: Path) -> None:
        found.append(("rename", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    return found


def test_the_manifest_and_tidied_records_survive_a_power_cut(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    with RunDir(tmp_path) as run:
        run.begin(RUNNING)
        for _ in range(2):
            run.append(LINE)
        calls.clear()
        run.settle([])
        run.write_manifest(RUNNING)
    steps = [what for what, _ in calls]
    assert steps == ["sync file", "rename", "sync folder"] * 2
    assert [name for what, name in calls if what == "rename"] == [
        str(tmp_path / "results.jsonl"),
        str(tmp_path / "run.json"),
    ]
    assert {name for what, name in calls if what == "sync folder"} == {str(tmp_path)}
    assert all(Path(name).name.startswith(".camcli.tmp-") for what, name in calls if what == "sync file")


def test_files_of_one_image_are_not_worth_a_sync(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    with RunDir(tmp_path) as run:
        calls.clear()
        run.write("overlays/a/b.jpg", b"x")
    assert [what for what, _ in calls] == ["rename"]


@pytest.mark.parametrize(("number", "fatal"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_network_file_systems_that_cannot_sync_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fatal: bool
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if fatal:
        with pytest.raises(OSError, match="Input/output"):
            write_atomic(tmp_path / "a", b"x", sync=True)
    else:
        write_atomic(tmp_path / "a", b"x", sync=True)
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """As a disk that is nearly full, a pipe or a signal makes them."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda number, data: real(number, data[:most]))
    with RunDir(tmp_path) as run:
        run.begin(RUNNING)
        run.append(LINE)
    assert json.loads((tmp_path / "results.jsonl").read_text()) == RECORD
    with (tmp_path / "x").open("wb") as file:
        write_all(file.fileno(), bytes(range(256)))
    assert (tmp_path / "x").read_bytes() == bytes(range(256))


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == ["a"]


def test_folders_are_made_below_the_run_folder_and_never_the_run_folder(tmp_path: Path) -> None:
    make_folders(tmp_path, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(FileNotFoundError):
        make_folders(tmp_path / "gone", tmp_path / "gone" / "a")
    make_folders(tmp_path, tmp_path)


def test_sweeping_takes_temporary_files_only(tmp_path: Path) -> None:
    mine = tmp_path / "overlays" / ".camcli.tmp-cat.jpg.gradcam.1-cat.jpg"
    left = tmp_path / "overlays" / f".camcli.tmp-{'0a' * 8}"
    left.parent.mkdir()
    for path in (mine, left):
        path.touch()
    sweep(tmp_path)
    assert list(left.parent.iterdir()) == [mine]


def test_records_cannot_make_tidying_delete_what_is_not_camclis(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 2), tmp_path / "out"
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    first, second = lines(out)
    precious = [tmp_path / "precious.txt", out / "notes.txt", out / "results-1-of-2.txt", out / "overlays2" / "x"]
    (out / "overlays2").mkdir()
    for path in precious:
        path.write_text("mine")
    shared = out / next(iter(second["files"]))
    forged = {
        **first,
        "files": {
            "../precious.txt": 4,
            "notes.txt": 4,
            "results-1-of-2.txt": 4,
            "overlays2/x": 4,
            str(precious[0]): 4,
            "overlays/../notes.txt": 4,
            "overlays/../../precious.txt": 4,
            "run.json": 4,
            str(shared.relative_to(out)): 4,
        },
    }
    old = out / "overlays" / "old.jpg"
    old.touch()
    forged["files"]["overlays/old.jpg"] = 0
    text = "".join(json.dumps(r) + "\n" for r in (forged, first, second))
    (out / "results.jsonl").write_text(text)
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    assert lines(out) == [first, second]
    assert not old.exists()
    assert all(path.exists() for path in (*precious, shared, out / "run.json"))


def entry(name: str, source: Path) -> Entry:
    """A record of an image."""
    return entry_of({**RECORD, "id": name, "source": str(source)}, 0, 0)


def test_a_dangling_link_is_still_an_input(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    ledger = Ledger()
    for name in ("link.jpg", "gone.jpg"):
        ledger.add(entry(name, tmp_path / name))
    assert vanished([], ledger) == ("gone.jpg",)


def test_a_dangling_link_is_a_failure_until_it_leads_somewhere(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 1), tmp_path / "out"
    (folder / "link.jpg").symlink_to(tmp_path / "later.jpg")
    words = ("run", folder, "--out", out, *SMALL)
    assert camcli(*words).code == 1
    assert "nothing to do" in camcli(*words).err
    save_image(tmp_path / "later.jpg", 40, 40)
    assert camcli(*words).code == 0
    assert len(lines(out)) == 2


def test_a_merged_run_began_with_its_first_part(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 8), tmp_path / "out"
    for part, started in (("1-of-2", "2024-01-02T00:00:00+00:00"), ("2-of-2", "2024-01-01T00:00:00+00:00")):
        assert camcli("run", folder, "--out", out, *SMALL, "--shard", part.replace("-of-", "/")).code == 0
        told = json.loads((out / f"run-{part}.json").read_text())
        (out / f"run-{part}.json").write_text(json.dumps({**told, "started": started, "seconds": 2.0}))
    assert camcli("merge", out).code == 0
    assert manifest(out)["started"] == "2024-01-01T00:00:00+00:00"
    assert manifest(out)["seconds"] == 4.0
    assert "shard" not in manifest(out)


def test_a_share_of_errors_is_of_the_images_of_the_part(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(tmp_path / "in", 20)
    jobs: list[Job] = []

    def run(_: Any, found: Job, *__: Any) -> int:
        jobs.append(found)
        return 0

    monkeypatch.setattr("camcli.cli.run._run", run)
    for part in ("1/4", "2/4"):
        camcli("run", folder, "--out", tmp_path / "out", "--shard", part, "--max-errors", "50%")
    whole = camcli("run", folder, "--out", tmp_path / "out", "--max-errors", "50%")
    assert whole.code == 0
    *parts, one = jobs
    assert [j.policy.max_errors for j in parts] == [len(j.mine) // 2 for j in parts]
    assert all(0 < len(j.mine) < 20 for j in parts)
    assert one.policy.max_errors == 10


def test_a_variable_that_is_set_but_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shard_of(None, {"SLURM_ARRAY_TASK_COUNT": ""}) is None
    array = {"JOB_COMPLETION_INDEX": "", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": ""}
    assert str(shard_of("/4", array)) == "3/4"
    monkeypatch.setenv("EMPTY", "")
    assert load_config(None, ["overlay.alpha=${EMPTY:-0.25}"]).config.overlay.alpha == 0.25


def test_a_home_folder_in_a_path_is_the_same_file_for_a_run_and_the_next(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder, out = images(tmp_path / "in", 2), tmp_path / "out"
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    words = ("run", folder, "--out", out, *SMALL, "-s", "model.labels=~/labels.txt")
    assert camcli(*words).code == 0
    assert {record["predictions"][0]["label"] for record in lines(out)} <= set("abcd")
    monkeypatch.setattr("camcli.pipeline.prepare.load_model", lambda *_: pytest.fail("the model was loaded"))
    assert "nothing to do" in camcli(*words).err
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "labels.txt").write_text("a\nb\nc\ne\n")
    ended = camcli(*words)
    assert ended.code == 2
    assert "model.labels_sha256: " in ended.err


def test_weights_that_were_replaced_are_noticed_without_loading_them(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"a")
    config = load_config(None, [f"model={{source: timm, name: x, weights: {tmp_path}/w.pth}}"]).config
    digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"  # of "a"
    told = RUNNING.model_copy(update={"model": Model(weights=str(tmp_path / "w.pth"), weights_sha256=digest)})
    assert job._same_files(config, told)
    (tmp_path / "w.pth").write_bytes(b"b")
    assert not job._same_files(config, told)
    assert job._same_files(config, RUNNING.model_copy(update={"model": Model(weights="none")}))


def test_the_run_folder_itself_is_never_removed(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.jpg", b"x")
    remove(tmp_path, ["a.jpg"])
    assert tmp_path.is_dir()


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_what_a_killed_run_left_half_written_is_swept(tmp_path: Path, status: str) -> None:
    left = tmp_path / f".camcli.tmp-{'0a' * 8}"
    left.touch()
    (tmp_path / "run.json").write_text(json.dumps({**TOLD, "status": status}))
    with RunDir(tmp_path) as run:
        run.begin(RUNNING)
    assert left.exists() is (status != "running")


def test_a_record_without_its_end_is_not_joined_with_the_next(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 2), tmp_path / "out"
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    (out / "results.jsonl").write_bytes((out / "results.jsonl").read_bytes()[:-1])
    save_image(folder / "new.jpg", 40, 40)
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    assert [record["id"] for record in lines(out)] == ["00.jpg", "01.png", "new.jpg"]


def test_records_come_into_the_order_of_the_images(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("b.jpg", "a.jpg"):
        save_image(folder / name, 40, 40)
        assert camcli("run", folder, "--out", out, *SMALL).code == 0
    assert [record["id"] for record in lines(out)] == ["a.jpg", "b.jpg"]


def test_an_input_that_is_asked_for_is_not_given_up(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.add(entry("gone.jpg", tmp_path / "gone.jpg"))
    assert vanished([Item("gone.jpg", tmp_path / "gone.jpg")], ledger) == ()


def test_a_folder_that_another_job_took_meanwhile_is_refused_under_the_lock(tmp_path: Path) -> None:
    (tmp_path / "concepts.json").touch()
    with pytest.raises(ConfigError, match="belongs to one job"), claimed(tmp_path, "run", ""):
        pass


def test_a_lock_is_signed_anew(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("x" * 500)
    assert Lock(tmp_path / ".lock").acquire()
    assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_marked_folders_stay_apart_from_folders_with_a_mark() -> None:
    assert len({fitted(f"overlays/{name}/b.jpg") for name in ("a.jpg", "a.jpg~", "a.jpg~~")}) == 3
