"""Several devices, one process each: one run folder, whatever happens to the processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from camcli.config.schema import RunConfig
from camcli.engine.precision import Choice
from camcli.errors import InternalError
from camcli.pipeline import workers
from tests.conftest import Ended, save_image
from tests.test_resume import SMALL, contents, images
from tests.test_run import TINY, manifest

Camcli = Callable[..., Ended]

TWO = ("--device", "cpu,cpu")
MANY = 600


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many images that something can happen on the way."""
    folder = tmp_path_factory.mktemp("many")
    first = save_image(folder / "0000.jpg", 64, 64)
    for i in range(1, MANY):
        os.link(first, folder / f"{i:04}.jpg")
    return folder


@pytest.fixture
def begun(many: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run on two devices that has recorded its first images."""
    words = [sys.executable, "-m", "camcli", "run", str(many), "--out", str(tmp_path / "out"), *TWO, *SMALL]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as run:
        results, end = tmp_path / "out" / "results.jsonl", time.monotonic() + 120
        while not (results.exists() and results.stat().st_size) and time.monotonic() < end:
            time.sleep(0.05)
        yield run
        run.kill()


def children(pid: int) -> list[int]:
    """Processes on devices that `pid` has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has buried yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def completed(many: Path, out: Path) -> bool:
    """Whether the same command brings the run to its end."""
    words = [sys.executable, "-m", "camcli", "run", str(many), "--out", str(out), *SMALL, "--quiet"]
    return subprocess.run(words, timeout=300).returncode == 0 and recorded(out) == MANY


def recorded(out: Path) -> int:
    """How many images have a record."""
    return len({json.loads(line)["id"] for line in (out / "results.jsonl").read_text().splitlines()})


def test_two_devices_leave_what_one_leaves(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 14)
    (folder / "05.jpg").write_text("no image")
    assert camcli("run", folder, "--out", tmp_path / "one", *SMALL).code == 1
    ended = camcli("run", folder, "--out", tmp_path / "two", *SMALL, *TWO, "--profile")
    assert ended.code == 1, ended.err
    assert "bounds the run" in ended.err
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert (one.keys(), one.pop("run.json")) != (two.keys(), two.pop("run.json"))
    assert one == two
    assert manifest(tmp_path / "two")["device"] == "cpu, cpu"
    assert manifest(tmp_path / "two")["profile"]["forward"] > 0


def test_one_range_for_all_images_cannot_be_split(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 2)
    ended = camcli("run", folder, "--out", tmp_path / "out", *TINY, *TWO, "-s", "overlay.scale=run")
    assert (ended.code, "between devices" in ended.err) == (2, True), ended.err


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_ends_all_processes_and_the_run_can_go_on(
    begun: subprocess.Popen[str], many: Path, tmp_path: Path
) -> None:
    at_work = children(begun.pid)
    assert len(at_work) == 2
    begun.send_signal(signal.SIGTERM)
    _, err = begun.communicate(timeout=120)
    assert begun.returncode == 143, err
    assert "Traceback" not in err
    assert all(gone(pid) for pid in at_work)
    assert 0 < recorded(tmp_path / "out") < MANY
    assert manifest(tmp_path / "out")["status"] == "interrupted"
    assert completed(many, tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_process_that_dies_ends_the_run_and_the_next_one_completes_it(
    begun: subprocess.Popen[str], many: Path, tmp_path: Path
) -> None:
    os.kill(children(begun.pid)[0], signal.SIGKILL)
    _, err = begun.communicate(timeout=120)
    assert begun.returncode == 3, err
    assert "the process on cpu ended with exit code -9; the same command goes on from there" in err
    assert completed(many, tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_process_outlives_the_one_that_started_it(begun: subprocess.Popen[str], many: Path, tmp_path: Path) -> None:
    at_work = children(begun.pid)
    begun.kill()
    begun.wait()
    end = time.monotonic() + 60
    while not all(gone(pid) for pid in at_work) and time.monotonic() < end:
        time.sleep(0.1)
    assert all(gone(pid) for pid in at_work)
    assert completed(many, tmp_path / "out")


def test_a_defect_in_a_process_comes_back_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object) -> None:
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setattr(workers, "_explained", broken)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    task = workers.Task(RunConfig(), Choice("fp32", ""), tmp_path, "", "", offline=True)
    workers._work(task, [], sender, multiprocessing.Event())
    error = receiver.recv()
    assert isinstance(error, InternalError)
    [log] = tmp_path.glob("*.log")
    assert str(log) in str(error)
    assert "in broken" in log.read_text()
