"""A second run does what is missing and nothing else, and a killed run loses nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camcli.results.storage import sweep, write_atomic
from tests.conftest import Ended, save_image
from tests.driver import Driver
from tests.test_run import TINY, lines, manifest

Camcli = Callable[..., Ended]

SMALL = (*TINY, "-s", "runtime.batch_size=4", "-s", "runtime.threads=2")
KILLS = 30


def images(folder: Path, count: int) -> Path:
    """A folder of small images."""
    for i in range(count):
        save_image(folder / f"{i:02}.{'png' if i % 3 else 'jpg'}", 60 + i, 50, i)
    return folder


def contents(out: Path) -> dict[str, bytes]:
    """All that a run left, but for locks and what run.json says of this run."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    told = json.loads(found.pop("run.json"))
    for session in ("started", "seconds", "resumed", "profile"):
        del told[session]
    return {"run.json": json.dumps(told).encode(), **{k: v for k, v in found.items() if not k.startswith(".lock")}}


def times(out: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


@pytest.fixture
def done(camcli: Camcli, tmp_path: Path) -> tuple[Path, Path]:
    """(inputs, run folder) of a run over six images and one that fails."""
    folder, out = images(tmp_path / "in", 6), tmp_path / "out"
    (folder / "bad.jpg").write_text("no image")
    assert camcli("run", folder, "--out", out, *SMALL).code == 1
    return folder, out


def rewritten(out: Path, before: dict[str, int]) -> set[str]:
    """Ids whose overlays are new."""
    changed = {name for name, when in times(out).items() if before.get(name) != when}
    return {r["id"] for r in lines(out) if any(name in changed for name in r.get("files", {}))}


def test_nothing_to_do_is_said_and_costs_nothing(
    camcli: Camcli, done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = done
    before = times(out)
    monkeypatch.setattr("camcli.pipeline.prepare.load_model", lambda *_: pytest.fail("the model was loaded"))
    ended = camcli("run", folder, "--out", out, *SMALL, "--json")
    assert ended.code == 1
    assert "nothing to do: all 7 images are recorded" in ended.err
    assert "1 of them failed (1 UnidentifiedImageError); --retry-failed tries them again" in ended.err
    assert json.loads(ended.out) == manifest(out)
    assert times(out) == before


def test_speed_settings_are_no_reason_to_start_again(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    ended = camcli("run", folder, "--out", out, *TINY, "-s", "runtime.batch_size=3", "-s", "runtime.device=cpu")
    assert "nothing to do" in ended.err


def test_only_what_is_missing_is_done(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    records = {r["id"]: r for r in lines(out)}
    before = times(out)
    (out / records["00.jpg"]["heatmaps"][0]["overlay"]).unlink()
    cut = out / "reports" / "01.png.json"
    cut.write_bytes(cut.read_bytes()[:-1])
    save_image(folder / "02.png", 33, 44, seed=99)
    save_image(folder / "new.png", 33, 44, seed=7)
    ended = camcli("run", folder, "--out", out, *SMALL)
    assert ended.code == 1
    assert rewritten(out, before) == {"00.jpg", "01.png", "02.png", "new.png"}
    assert manifest(out)["counts"] == {"done": 7, "failed": 1, "skipped": 0}
    assert manifest(out)["resumed"] == {"kept": 4, "vanished": 0}
    assert "from an earlier run" in ended.err


def test_the_result_is_that_of_one_run(camcli: Camcli, done: tuple[Path, Path], tmp_path: Path) -> None:
    folder, out = done
    save_image(folder / "02.png", 33, 44, seed=99)
    save_image(folder / "new.png", 33, 44, seed=7)
    camcli("run", folder, "--out", out, *SMALL)
    camcli("run", folder, "--out", tmp_path / "once", *SMALL)
    assert contents(out) == contents(tmp_path / "once")


def test_by_hash_a_touched_file_is_the_same_and_a_forged_time_is_seen(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    os.utime(folder / "00.jpg")
    assert "nothing to do" in camcli("run", folder, "--out", out, *SMALL, "--check", "hash").err
    status = (folder / "01.png").stat()
    data = bytearray((folder / "01.png").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "01.png").write_bytes(data)
    os.utime(folder / "01.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "changed         1  01.png" in camcli("status", out, "--check", "hash").out
    assert "changed         1  00.jpg" in camcli("status", out).out


def test_failed_images_are_kept_until_asked_for_or_mended(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    assert "nothing to do" in camcli("run", folder, "--out", out, *SMALL).err
    assert manifest(out)["resumed"]["kept"] == 0
    assert camcli("run", folder, "--out", out, *SMALL, "--retry-failed").code == 1
    assert manifest(out)["resumed"]["kept"] == 6
    save_image(folder / "bad.jpg", 40, 40)
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    assert manifest(out)["counts"] == {"done": 7, "failed": 0, "skipped": 0}
    assert len(lines(out)) == 7


def test_a_changed_config_is_refused_with_its_differences(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    before = contents(out)
    other = (*SMALL, "-s", "overlay.alpha=0.7", "-s", "input.size=96")
    ended = camcli("run", folder, "--out", out, *other)
    assert ended.code == 2
    for part in ("overlay.alpha: null -> 0.7", "input.size: [64, 64] -> [96, 96]", "--fresh", "--keep-going"):
        assert part in ended.err
    assert contents(out) == before


def test_fresh_starts_over_and_deletes_only_its_own(camcli: Camcli, done: tuple[Path, Path], tmp_path: Path) -> None:
    folder, out = done
    (out / "overlays" / "notes.txt").write_text("mine")
    assert camcli("run", folder, "--out", out, *SMALL, "-s", "overlay.format=png", "--fresh").code == 1
    camcli("run", folder, "--out", tmp_path / "once", *SMALL, "-s", "overlay.format=png")
    found = contents(out)
    assert found.pop("overlays/notes.txt") == b"mine"
    assert found == contents(tmp_path / "once")


def test_keep_going_keeps_old_images_and_says_how_many(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    before = times(out)
    save_image(folder / "new.png", 33, 44, seed=7)
    other = (*SMALL, "-s", "overlay.alpha=0.7")
    ended = camcli("run", folder, "--out", out, *other, "--keep-going")
    assert "7 of the records were made with another config" in ended.err
    assert rewritten(out, before) == {"new.png"}
    assert sorted(manifest(out)["looks"].values()) == [1, 7]
    assert camcli("run", folder, "--out", out, *other, "-s", "input.size=96").code == 2


def test_a_changed_image_leaves_nothing_of_the_old_one(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 1), tmp_path / "out"
    for target in (0, 1):
        (folder / "00.jpg").write_bytes(
            (images(tmp_path / "more", 2) / f"0{target}.{'png' if target else 'jpg'}").read_bytes()
        )
        assert camcli("run", folder, "--out", out, *SMALL, "-s", f"targets=[{target}]", "--keep-going").code == 0
    assert [p.name for p in (out / "overlays").iterdir()] == ["00.jpg.gradcam.1-class-1.jpg"]


def test_vanished_inputs_are_noticed_and_their_heatmaps_stay(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    overlay = out / lines(out)[0]["heatmaps"][0]["overlay"]
    (folder / lines(out)[0]["id"]).unlink()
    assert "vanished        1  00.jpg" in camcli("status", out).out
    ended = camcli("run", folder, "--out", out, *SMALL)
    assert "1 image of an earlier run is gone" in ended.err
    assert "00.jpg" not in {r["id"] for r in lines(out)}
    assert manifest(out)["resumed"] == {"kept": 6, "vanished": 1}
    assert overlay.exists()


def test_images_that_are_not_asked_for_stay(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    assert camcli("run", folder, "--out", out, *SMALL, "--limit", "2").code == 0
    assert len(lines(out)) == 7
    assert manifest(out)["counts"] == {"done": 2, "failed": 0, "skipped": 0}


@pytest.mark.parametrize("tail", [b'{"id": "00.jpg", "sta', b"\0\0\0\0", b"\0\0\n", b'{"status": "done"}\n', b"[]\n"])
def test_torn_and_foreign_lines_are_passed_over(camcli: Camcli, done: tuple[Path, Path], tail: bytes) -> None:
    folder, out = done
    whole = contents(out)
    with (out / "results.jsonl").open("ab") as file:
        file.write(tail)
    (out / "reports" / "00.jpg.json").unlink()
    assert camcli("run", folder, "--out", out, *SMALL).code == 1
    assert contents(out) == whole


def test_lost_and_damaged_manifests_are_no_loss(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    whole = contents(out)
    for text in (None, "", "[]", "{}"):
        (out / "run.json").unlink() if text is None else (out / "run.json").write_text(text)
        assert camcli("run", folder, "--out", out, *SMALL).code == 1
        assert contents(out) == whole


def test_half_written_files_are_swept_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a" / "b.jpg", b"x", tag="-1-of-2")
    monkeypatch.undo()
    assert len(list((tmp_path / "a").iterdir())) == 1
    sweep(tmp_path, "-2-of-2")
    assert len(list((tmp_path / "a").iterdir())) == 1
    sweep(tmp_path, "-1-of-2")
    assert list((tmp_path / "a").iterdir()) == []


def wait_for_records(out: Path, size: int = 0) -> None:
    """Until a run has opened its records, or has written so many bytes of them."""
    results, end = out / "results.jsonl", time.monotonic() + 120
    while not (results.exists() and results.stat().st_size >= size):
        assert time.monotonic() < end, "the run does not begin"
        time.sleep(0.01)


def check_whole(out: Path) -> None:
    """Whatever moment a run was killed at: whole lines but for the last, and the files that they name."""
    try:
        text = (out / "results.jsonl").read_bytes()
    except FileNotFoundError:
        return
    for line in text.split(b"\n")[:-1]:
        for name, size in json.loads(line).get("files", {}).items():
            assert (out / name).stat().st_size == size
    json.loads((out / "run.json").read_text())


def test_kill_at_any_moment_then_run_again_equals_an_undisturbed_run(driver: Driver, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 30)
    (folder / "bad.jpg").write_text("no image")
    words = ("run", folder, *SMALL, "-s", "maps=npz", "--out")
    driver.run(*words, tmp_path / "warm")
    durations = []
    for name in ("other", "another", "whole"):
        clock = time.monotonic()
        assert driver.run(*words, tmp_path / name) == 1
        durations.append(time.monotonic() - clock)
    duration = min(durations)  # a run that the machine held up would let most kills come too late
    assert contents(tmp_path / "another") == contents(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    moments = random.Random(5)
    killed = 0
    for attempt in range(KILLS // 3):
        out = tmp_path / f"out{attempt}"
        for _ in range(3):
            killed += driver.run_killed(moments.uniform(0, duration), *words, out) == -signal.SIGKILL
            check_whole(out)
        assert driver.run(*words, out) == 1
        assert contents(out) == whole
        assert not list(out.rglob(".camcli*"))
        shutil.rmtree(out)
    assert killed > KILLS // 3


def test_the_second_of_two_runs_is_told_who_holds_the_folder(camcli: Camcli, driver: Driver, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 40), tmp_path / "out"
    pid = driver.start("run", folder, "--out", out, *TINY, "-s", "runtime.batch_size=1", "-s", "methods=scorecam")
    wait_for_records(out)
    ended = camcli("run", folder, "--out", out, *TINY)
    assert ended.code == 75
    assert f"process {pid} on {socket.gethostname()}" in ended.err
    os.kill(pid, signal.SIGKILL)
    assert driver.end() == -signal.SIGKILL
    assert camcli("run", folder, "--out", out, *TINY, "--fresh").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_the_next_one_completes(driver: Driver, tmp_path: Path, number: int) -> None:
    folder, out = images(tmp_path / "in", 60), tmp_path / "out"
    words = ("run", folder, "--out", out, *SMALL)
    pid = driver.start(*words)
    wait_for_records(out)
    os.kill(pid, number)
    assert driver.end() == 128 + number
    assert manifest(out)["status"] == "interrupted"
    assert driver.run(*words) == 0
    assert driver.run("run", folder, "--out", tmp_path / "whole", *SMALL) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_second_signal_stops_at_once(driver: Driver, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 40), tmp_path / "out"
    slow = (*TINY, "-s", "runtime.batch_size=2", "-s", "methods=occlusion", "-s", "options={patch: 8, stride: 2}")
    pid = driver.start("run", folder, "--out", out, *slow)
    wait_for_records(out, 1)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)
    assert driver.end() == -signal.SIGTERM


def test_status_says_how_to_go_on(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    told = camcli("status", out)
    assert told.code == 1
    assert "done            6" in told.out
    assert "failed          1  1 UnidentifiedImageError  bad.jpg" in told.out
    assert "--retry-failed" in told.out
    save_image(folder / "new.png", 33, 44, seed=7)
    (out / "reports" / "00.jpg.json").unlink()
    found: dict[str, Any] = json.loads(camcli("status", out, "--json").out)
    assert (found["missing"], found["damaged"], found["complete"]) == (["new.png"], ["00.jpg"], False)
    (folder / "bad.jpg").unlink()
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    assert camcli("status", out).code == 0


def test_status_of_no_run_folder_is_an_error(camcli: Camcli, tmp_path: Path) -> None:
    ended = camcli("status", tmp_path)
    assert ended.code == 2
    assert "no run folder" in ended.err


def test_one_range_for_all_images_is_never_half_done(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 3), tmp_path / "out"
    words = ("run", folder, *SMALL, "-s", "overlay.scale=run", "--out")
    assert camcli(*words, out).code == 0
    save_image(folder / "new.png", 33, 44, seed=7)
    assert camcli(*words, out).code == 0
    assert camcli(*words, tmp_path / "once").code == 0
    assert contents(out) == contents(tmp_path / "once")
    assert camcli(*words, tmp_path / "parts", "--shard", "1/2").code == 2


def test_a_run_is_running_until_it_ends_or_is_killed(camcli: Camcli, driver: Driver, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 40), tmp_path / "out"
    pid = driver.start("run", folder, "--out", out, *TINY, "-s", "runtime.batch_size=1", "-s", "methods=scorecam")
    wait_for_records(out)
    told = manifest(out)
    assert (told["status"], told["process"]) == ("running", {"pid": pid, "host": socket.gethostname()})
    assert camcli("status", out).out.startswith(f"{out}: running")
    os.kill(pid, signal.SIGKILL)
    driver.end()
    ended = subprocess.run([sys.executable, "-m", "camcli", "status", str(out)], capture_output=True, text=True)
    assert ended.stdout.startswith(f"{out}: interrupted")


def test_a_vanished_image_is_noticed_though_the_same_ones_are_asked_for(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 2), tmp_path / "out"
    for words in ((), ("--limit", 1)):
        assert camcli("run", folder, "--out", out, *TINY, *words).code == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    max(folder.iterdir()).unlink()
    assert camcli("run", folder, "--out", out, *TINY, "--limit", 1).code == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 1
