"""Streams and errors that nobody expects: the work is done, the exit code is true, and a log says what broke."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, TextIO

import pytest

from camcli.cli import stdio
from camcli.cli.app import main
from camcli.pipeline import crash
from camcli.results.versions import versions
from tests.conftest import Ended, save_image
from tests.test_run import TINY, lines

Camcli = Callable[..., Ended]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """One image in a folder."""
    return save_image(tmp_path / "in" / "a.jpg", 90, 80).parent


def full() -> TextIO:
    """A stream on a disk without room."""
    return open("/dev/full", "w")


def unread() -> TextIO:
    """A pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed() -> None:
    """What Python has for a stream that was closed before it started."""


def code_of(monkeypatch: pytest.MonkeyPatch, *words: object, **streams: TextIO | None) -> int:
    """The exit code of a command with other standard streams."""
    monkeypatch.setattr(sys, "argv", ["camcli", *map(str, words)])
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as ended:
        main()
    monkeypatch.undo()
    assert isinstance(ended.value.code, int)
    for stream in filter(None, streams.values()):
        stream.close()
    return ended.value.code


@pytest.mark.parametrize("stream", [full, unread, closed])
def test_a_run_is_done_whatever_becomes_of_its_messages(
    monkeypatch: pytest.MonkeyPatch, image: Path, tmp_path: Path, stream: Callable[[], TextIO | None]
) -> None:
    words = ("run", image, "--out", tmp_path / "out", *TINY)
    (image / "b.jpg").write_text("no image")
    assert code_of(monkeypatch, *words, stderr=stream()) == 1
    assert [record["status"] for record in lines(tmp_path / "out")] == ["done", "failed"]


@pytest.mark.parametrize(("stream", "code"), [(full, 3), (unread, 0), (closed, 0)])
def test_a_result_that_cannot_be_printed_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    image: Path,
    tmp_path: Path,
    stream: Callable[[], TextIO | None],
    code: int,
) -> None:
    words = ("run", image, "--out", tmp_path / "out", "--json", "--quiet", *TINY)
    assert code_of(monkeypatch, *words, stdout=stream()) == code
    assert len(lines(tmp_path / "out")) == 1
    said = "camcli: standard output cannot be written: No space left on device\n"
    assert capfd.readouterr().err == (said if code else "")


def test_a_lost_result_does_not_hide_that_the_command_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("modle: demo\n")
    assert code_of(monkeypatch, "config", "check", tmp_path / "c.yaml", stdout=full()) == 2


def test_a_closed_standard_input_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert code_of(monkeypatch, "run", "-", "--out", tmp_path / "out", stdin=None) == 2
    assert "standard input is closed" in capfd.readouterr().err


def started(*words: object, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "camcli", *map(str, words)], capture_output=True, timeout=60, **how)


def test_characters_that_the_terminal_lacks_are_escaped(camcli: Camcli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "日.jpg").write_text("no image")
    assert camcli("run", tmp_path / "in", "--out", tmp_path / "out", *TINY).code == 1
    ended = started("status", tmp_path / "out", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (ended.returncode, ended.stderr) == (1, b"")
    assert b"\\u65e5.jpg" in ended.stdout


def test_files_do_not_get_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    """What a library writes to descriptor 2 would end up in them."""
    code = (
        "import os; from camcli.cli import stdio\n"
        "with stdio.steady(): print(os.open('f', os.O_CREAT | os.O_WRONLY) > 2)"
    )
    words = ["sh", "-c", '"$@" 2>&- <&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(words, capture_output=True, timeout=60, cwd=tmp_path).stdout == b"True\n"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "camcli"


def broken(*words: object, **more: object) -> None:
    """Stands for a defect."""
    raise ZeroDivisionError("nobody\nexpected this")


@pytest.mark.parametrize("error", [ZeroDivisionError, BrokenPipeError, MemoryError, RecursionError])
def test_a_defect_is_exit_code_70_with_a_log_in_the_run_folder(
    camcli: Camcli, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*words: object) -> None:
        raise error("nobody\nexpected this")

    monkeypatch.setattr("camcli.pipeline.run._planned", fail)
    ended = camcli("run", image, "--out", tmp_path / "out", *TINY, "--log-format", "json")
    told = json.loads(ended.err.splitlines()[-1])
    assert (ended.code, told["event"], told["exit_code"]) == (70, "error", 70)
    assert f"unexpected error, {error.__name__}: nobody expected this" in told["message"]
    [log] = (tmp_path / "out").glob("*.log")
    assert str(log) in told["message"]
    assert "in _planned" not in log.read_text()
    assert all(words in log.read_text() for words in ("Traceback", "in perform", f"{error.__name__}: nobody", "torch "))


def test_a_defect_without_a_run_folder_is_logged_with_the_users_state(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    monkeypatch.setattr("camcli.images.find.discover", broken)
    for words in (("run", tmp_path, "--out", tmp_path / "out"), ("dff", tmp_path, "--out", tmp_path / "out")):
        ended = camcli(*words)
        assert ended.code == 70
        assert len(ended.err.splitlines()) == 1
        assert str(state) in ended.err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("camcli.engine.methods.table.listed", broken)
    assert camcli("methods").code == 70


def test_a_defect_is_logged_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    (tmp_path / "state").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "gone"
    error = crash.internal_error(ZeroDivisionError("x"), folder)
    [log] = tmp_path.glob("*.log")
    assert str(log) in str(error)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert "Traceback" not in str(error)
    assert "ZeroDivisionError: x" in str(crash.internal_error(ZeroDivisionError("x"), folder)).splitlines()[-1]


def test_an_interrupt_outside_a_run_is_130(camcli: Camcli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("camcli.engine.methods.table.listed", interrupted)
    assert camcli("methods").code == 130


def test_libraries_without_metadata_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("camcli.results.versions.version", missing)
    assert versions()["torch"] == "unknown"
    assert versions()["camcli"] != "unknown"


def test_a_slow_reader_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe is full when the text comes, and is read only once somebody waits for that."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    with suppress(BlockingIOError):
        while True:
            filled += os.write(writer, b"." * 4096)
    received: list[bytes] = []

    def read() -> None:
        with open(reader, "rb") as pipe:
            received.append(pipe.read())

    thread = threading.Thread(target=read)
    real = select.select

    def wait(*words: Any) -> Any:
        if not thread.ident:
            thread.start()
        return real(*words)

    monkeypatch.setattr(select, "select", wait)
    with open(writer, "wb", buffering=0):
        text = stdio.Output(stdio.Outlet(writer), "utf-8", line_buffering=False)
        text.write("x" * 300_000)
        assert text.loss() is None
    thread.join()
    assert received == [b"." * filled + b"x" * 300_000]


@pytest.mark.parametrize(("code", "expected"), [(0, 3), (1, 3), (2, 2), (130, 130)])
def test_a_lost_result_is_fatal_unless_the_command_was_stopped(
    monkeypatch: pytest.MonkeyPatch, code: int, expected: int
) -> None:
    def invoke() -> int:
        print("a result")
        return code

    monkeypatch.setattr("camcli.cli.app._invoke", invoke)
    assert code_of(monkeypatch, "methods", stdout=full()) == expected
