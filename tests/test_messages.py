"""What the command line says: failures reach every log with plain reasons, and mistakes come with the next step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camcli.cli.events import event_line
from camcli.records import Failure, RunReport
from tests.conftest import Ended, save_image
from tests.test_faults import small_disk
from tests.test_run import TINY, lines

__all__ = ["small_disk"]

Camcli = Callable[..., Ended]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image, and seven files that are none."""
    save_image(tmp_path / "in" / "a.jpg", 90, 80)
    for i in range(7):
        (tmp_path / "in" / f"b{i}.jpg").write_text("no image")
    return tmp_path / "in"


@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=["", "quiet"])
def test_the_first_failures_are_named_with_plain_reasons(
    camcli: Camcli, folder: Path, tmp_path: Path, quiet: tuple[str, ...]
) -> None:
    (folder / "b1.jpg").write_bytes(b"")
    ended = camcli("run", folder, "--out", tmp_path / "out", *TINY, *quiet)
    assert ended.code == 1
    named = [line for line in ended.err.splitlines() if line.startswith("failed: ")]
    assert len(named) == 6
    assert named[0].startswith("failed: b0.jpg: not an image that camcli reads; it reads JPEG, PNG, WEBP, ")
    assert named[1] == "failed: b1.jpg: the file is empty"
    assert named[5] == "failed: 2 more, all in results.jsonl"
    assert "UnidentifiedImageError" not in "".join(named)
    assert {r["kind"] for r in lines(tmp_path / "out") if r["status"] == "failed"} == {
        "EmptyFile",
        "UnidentifiedImageError",
    }


def test_a_quiet_log_has_every_failure_and_nothing_else_to_say(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    words = ("run", folder, "--out", tmp_path / "out", *TINY, "--quiet", "--log-format", "json")
    ended = camcli(*words)
    assert ended.code == 1
    told = [json.loads(line) for line in ended.err.splitlines()]
    assert [event["event"] for event in told] == ["failed"] * 7 + ["summary"]
    assert [event["id"] for event in told[:7]] == [f"b{i}.jpg" for i in range(7)]
    assert all("not an image that camcli reads" in event["message"] for event in told[:7])
    assert (told[-1]["failed"], told[-1]["done"]) == (7, 1)
    again = camcli(*words)
    assert again.code == 1
    assert [json.loads(line)["message"] for line in again.err.splitlines()] == ["nothing to do"]
    for path in folder.glob("b*"):
        path.unlink()
    assert camcli(*words).err == ""


def test_names_and_reasons_of_failures_stay_on_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    from camcli.cli import console, summary

    failures = [
        Failure("a\n\x1b.jpg", "/in/a\n\x1b.jpg", "forward", "RuntimeError", "no\nway", None),
        Failure("b.jpg", "/in/b.jpg", "write", "OSError", "/out/b.jpg: full", None),
    ]
    console.write_messages()
    summary.print_failures(failures, 2)
    assert capfd.readouterr().err.splitlines() == [
        "failed: a\\n\\x1b.jpg: forward: no\\nway",
        "failed: b.jpg: write: /out/b.jpg: full",
    ]


@pytest.mark.parametrize("command", ["run", "dff", "status", "merge"])
def test_an_empty_name_of_a_folder_is_refused(
    camcli: Camcli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (folder, "--out", "") if command in ("run", "dff") else ("",)
    ended = camcli(command, *words)
    assert ended.code == 2
    assert "the name of the output folder is empty" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_an_empty_name_of_a_junit_file_is_refused(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    ended = camcli("run", folder, "--out", tmp_path / "out", "--junit", "")
    assert ended.code == 2
    assert "the name of the JUnit file is empty" in ended.err


@pytest.mark.parametrize("command", [("run",), ("run", "--dry-run"), ("dff",)], ids=" ".join)
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_place_of_the_output_folder_is_refused_before_any_work(
    camcli: Camcli, folder: Path, tmp_path: Path, command: tuple[str, ...], below: str
) -> None:
    (tmp_path / "file").write_text("mine")
    ended = camcli(*command, folder, "--out", tmp_path / "file" / below, "-m", "timm/resnet18.a1_in1k", "--offline")
    assert ended.code == 2
    assert f"{tmp_path}/file is no folder; name another, such as --out {tmp_path}/file-heatmaps" in ended.err
    assert "the same command goes on" not in ended.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_nothing_in_the_place_of_the_output_folder_is_refused(
    camcli: Camcli, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert camcli("run", folder, "--out", tmp_path / "link", *TINY).code == 2
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("command", ["run", "dff"])
def test_inputs_and_output_in_one_folder_are_warned_about(camcli: Camcli, tmp_path: Path, command: str) -> None:
    folder = save_image(tmp_path / "in" / "a.jpg", 90, 80).parent
    (tmp_path / "link").symlink_to(folder)
    ended = camcli(command, tmp_path / "link", "--out", folder, *TINY)
    assert ended.code == 0
    assert f"warning: --out {folder} is also a folder of inputs" in ended.err
    assert "warning: --out" not in camcli(command, folder, "--out", folder / "out", *TINY).err


def test_concepts_are_drawn_of_inputs_only(camcli: Camcli, tmp_path: Path) -> None:
    folder = save_image(tmp_path / "in" / "a.jpg", 90, 80).parent
    for _ in range(2):
        ended = camcli("dff", folder, "--out", folder, *TINY, "--json")
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["inputs"]["images"] == 1


def test_a_full_disk_stops_concepts(camcli: Camcli, tmp_path: Path, small_disk: Path) -> None:
    folder = tmp_path / "in"
    for i in range(20):
        save_image(folder / f"{i}.jpg", 300, 300, i)
    ended = camcli("dff", folder, "--out", small_disk / "out", *TINY, "-s", "overlay={format: png}")
    assert ended.code == 3
    assert "No space left on device" in ended.err


def test_events_are_one_line_each() -> None:
    told: dict[str, Any] = json.loads(event_line("note", message="a\nb\u2028\x1b"))
    assert told["message"] == "a\nb\u2028\x1b"
    assert len(event_line("note", message="a\nb\u2028\x1b").splitlines()) == 1


def test_what_was_not_reached_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    from camcli.cli import console, summary

    console.write_messages()
    report = RunReport(done=11, failed=1, skipped=3, seconds=2.0, out="o", exit_code=1, failures={"E": 1}, kept=8)
    summary.print_summary(report, False, None)
    assert re.search(r"not reached +3 ", capfd.readouterr().err)


def test_methods_are_listed_with_all_that_is_known_of_them(camcli: Camcli) -> None:
    from camcli.engine.methods import listed

    known: dict[str, dict[str, Any]] = {
        m.name: {"needs": list(m.needs), "cost": m.cost, "paper": m.paper} for m in listed()
    }
    told = {
        row["name"]: {key: row[key] for key in ("needs", "cost", "paper")}
        for row in json.loads(camcli("methods", "--json").out)
    }
    assert told == known
    table = camcli("methods").out
    assert all(name in table and about["paper"] in table for name, about in known.items())


def test_the_tree_of_layers_marks_what_is_of_no_use(capfd: pytest.CaptureFixture[str]) -> None:
    from camcli.cli import console

    layout = {"kind": "nchw", "grid": [2, 3], "prefix": 0}
    common = {
        "type": "Conv2d",
        "shape": [1, 4, 2, 3],
        "layout": layout,
        "live": True,
        "live_locations": 1.0,
        "chosen": False,
    }
    console.print_layers(
        [
            {**common, "path": "a"},
            {**common, "path": "a.b", "chosen": True},
            {**common, "path": "a.c", "live": False, "live_locations": 0.0},
            {**common, "path": "d", "layout": None},
        ]
    )
    said = capfd.readouterr().out.splitlines()[1:]
    assert [("no gradient" in line, "<- chosen" in line, "no layout" in line) for line in said] == [
        (False, False, False),
        (False, True, False),
        (True, False, False),
        (False, False, True),
    ]
    assert "2x3" in said[0]
