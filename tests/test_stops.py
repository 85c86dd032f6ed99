"""Signals and limits of errors: what is under way is finished, nothing else is begun, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch

from camcli.cli.progress import Progress
from camcli.errors import OutputError
from camcli.pipeline.interrupt import Interrupt
from camcli.results.ledger import Line
from camcli.results.rundir import RunDir
from tests.conftest import REPO, Ended
from tests.test_faults import failing_engine
from tests.test_resume import SMALL, contents, images
from tests.test_run import TINY, lines, manifest
from tests.test_workers import TWO, children, gone

Camcli = Callable[..., Ended]
WAIT = 60.0


def started(code: str, *words: object, **more: Any) -> subprocess.Popen[str]:
    """The command, after `code`, which says "now" on standard output when it is time for a signal."""
    command = [sys.executable, "-c", code, *map(str, words)]
    run = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    assert run.stdout
    assert run.stdout.readline() == "now\n"
    return run


def ended(run: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code as a shell sees it, standard error); never waits for long."""
    try:
        _, err = run.communicate(timeout=WAIT)
    finally:
        run.kill()
    return (128 - run.returncode if run.returncode < 0 else run.returncode), err


WHILE_IT_IMPORTS = """
import sys, time
class Slow:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            print("now", flush=True)
            time.sleep(100)
sys.meta_path.insert(0, Slow())
from camcli.__main__ import main
main()
"""
WHILE_IT_LOADS = """
import time
from camcli.pipeline import prepare
from camcli.__main__ import main
def slow(*words):
    print("now", flush=True)
    while True:
        time.sleep(1)
prepare.load_model = slow
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("code", [WHILE_IT_IMPORTS, WHILE_IT_LOADS], ids=["imports", "loads"])
def test_a_signal_during_the_start_acts_at_once(camcli: Camcli, tmp_path: Path, code: str, number: int) -> None:
    folder, out = images(tmp_path / "in", 2), tmp_path / "out"
    run = started(code, "run", folder, "--out", out, *SMALL)
    run.send_signal(number)
    code_, err = ended(run)
    assert (code_, "Traceback" in err) == (128 + number, False), err
    if code is WHILE_IT_LOADS:
        assert camcli("run", folder, "--out", out, *SMALL).code == 0


@pytest.mark.parametrize("scale", ["image", "run"])
def test_a_signal_finishes_one_batch_of_each_engine_and_says_so(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str
) -> None:
    folder, out = images(tmp_path / "in", 40), tmp_path / "out"
    batches: list[int] = []
    told, both = threading.Event(), threading.Barrier(2)
    real = Progress.tell_now

    def tell(self: Progress, text: str) -> None:
        real(self, text)
        told.set()

    monkeypatch.setattr(Progress, "tell_now", tell)

    def interrupting(pixels: torch.Tensor) -> None:
        batches.append(len(pixels))
        if both.wait(WAIT) == 0 and len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        assert told.wait(WAIT)

    failing_engine(monkeypatch, interrupting)
    words = ("run", folder, *SMALL, "-s", f"overlay.scale={scale}", "--out")
    stopped = camcli(*words, out)
    assert (stopped.code, batches) == (143, [4, 4])
    assert "finishing the batches under way, at most 2; again to stop now\n" in stopped.err
    assert [r["id"] for r in lines(out)] == (sorted(os.listdir(folder))[:8] if scale == "image" else [])
    assert manifest(out)["status"] == "interrupted"
    monkeypatch.undo()
    assert camcli(*words, out).code == 0
    assert camcli(*words, tmp_path / "once").code == 0
    assert contents(out) == contents(tmp_path / "once")


def test_a_signal_while_all_are_painted_in_one_range_ends_the_run(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunDir.append

    def interrupting(self: RunDir, line: Line) -> None:
        real(self, line)
        if len(self.ledger.entries) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDir, "append", interrupting)
    folder, out = images(tmp_path / "in", 12), tmp_path / "out"
    assert camcli("run", folder, "--out", out, *SMALL, "-s", "overlay.scale=run").code == 143
    assert 1 <= len(lines(out)) <= 1 + 3 * 2  # what two threads were at or had done


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_to_all_processes_while_workers_import_is_told_by_the_exit_code(tmp_path: Path) -> None:
    words = ["run", str(images(tmp_path / "in", 8)), "--out", str(tmp_path / "out"), *SMALL, *TWO]
    run = subprocess.Popen(
        [sys.executable, "-m", "camcli", *words], cwd=REPO, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + WAIT
    while len(children(run.pid)) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    workers = children(run.pid)
    os.killpg(run.pid, signal.SIGINT)
    code, err = ended(run)
    assert (code, "Traceback" in err) == (130, False), err
    assert "at most 2; again to stop now" in err
    assert len(workers) == 2
    assert all(gone(pid) for pid in workers)
    assert manifest(tmp_path / "out")["status"] == "interrupted"


def test_what_ignores_a_signal_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            interrupt.begin("")
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.exit_code == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.exit_code == 143
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def threads_at_the_end(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads of pools that are alive when a run folder is given free."""
    found: list[str] = []
    real = RunDir.__exit__

    def leaving(
        self: RunDir, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        found.extend(thread.name for thread in threading.enumerate() if "Pool" in thread.name)
        real(self, kind, error, trace)

    monkeypatch.setattr(RunDir, "__exit__", leaving)
    return found


@pytest.mark.parametrize("scale", ["image", "run"])
def test_all_threads_have_ended_before_the_folder_is_free(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_at_the_end: list[str], scale: str
) -> None:
    written: list[str] = []
    real = RunDir.write

    def writing(self: RunDir, name: str, data: bytes) -> None:
        written.append(name)
        real(self, name, data)

    def full(self: RunDir, line: str) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(RunDir, "write", writing)
    monkeypatch.setattr(RunDir, "append", full)
    folder = images(tmp_path / "in", 40)
    assert camcli("run", folder, "--out", tmp_path / "out", *SMALL, "-s", f"overlay.scale={scale}").code == 3
    assert threads_at_the_end == []
    assert 0 < len(written) < 2 * 40


@pytest.mark.parametrize(("words", "recorded"), [(("--fail-fast",), 1), (("--max-errors", "5"), 6)])
def test_no_more_failures_are_recorded_than_the_limit_and_one(
    camcli: Camcli, tmp_path: Path, words: tuple[str, ...], recorded: int
) -> None:
    folder, out = images(tmp_path / "in", 4), tmp_path / "out"
    for i in range(60):
        (folder / f"a{i:02}.jpg").write_text("no image")
    stopped = camcli("run", folder, "--out", out, *TINY, *words)
    assert stopped.code == 1
    assert manifest(out)["counts"] == {"done": 4, "failed": recorded, "skipped": 60 - recorded}
    assert [r["id"] for r in lines(out)] == sorted(os.listdir(folder))[: 4 + recorded]


def test_all_devices_cannot_share_one_range_when_they_are_several(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("run", images(tmp_path / "in", 3), "--out", tmp_path / "out", *TINY, "-s", "overlay.scale=run")
    for count, code in ((2, 2), (1, 0)):
        monkeypatch.setattr("camcli.pipeline.prepare.devices_of", lambda names, n=count: [torch.device("cpu")] * n)
        refused = camcli(*words, "--device", "all")
        assert (refused.code, "cannot be split between devices" in refused.err) == (code, code == 2), refused.err
