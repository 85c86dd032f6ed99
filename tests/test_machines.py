"""What scripts, cron and CI servers read: JSON lines, manifests, JUnit files, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

from camcli.config.file import load_config
from tests.conftest import REPO, SHAPES, Ended
from tests.test_resume import images
from tests.test_run import TINY, manifest
from tests.test_workers import TWO

Camcli = Callable[..., Ended]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images and two that fail, one of them with a name that no format likes."""
    found = images(tmp_path / "in", 3)
    for name in ("bad.jpg", "\x1b<&\udcff\n.jpg"):
        (found / name).write_text("no image")
    return found


def events(ended: Ended) -> list[dict[str, object]]:
    """Standard error, every line of it JSON."""
    return [json.loads(line) for line in ended.err.splitlines()]


def test_json_lines_tell_of_each_failure_and_of_the_end(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    words = ("run", folder, "--out", tmp_path / "out", *TINY, "--log-format", "json")
    told = events(camcli(*words))
    assert [e["event"] for e in told] == ["note", "warning", "failed", "failed", "summary"]
    failed = [e["id"] for e in told if e["event"] == "failed"]
    assert failed == sorted(["bad.jpg", "\x1b<&\udcff\n.jpg"])
    assert told[-1]["done"] == 3
    assert told[-1]["failures"] == {"UnidentifiedImageError": 2}
    assert events(camcli(*words))[-1]["message"] == "nothing to do"


def test_json_lines_tell_of_progress(
    camcli: Camcli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camcli.cli.progress.LINE_SECONDS", 0)
    told = events(camcli("run", folder, "--out", tmp_path / "out", *TINY, "--log-format", "json"))
    recorded = [e["images"] for e in told if e["event"] == "progress" and not e["passes"]]
    assert recorded == [1, 2, 3, 4, 5]
    lines = camcli("run", folder, "--out", tmp_path / "text", *TINY).err.splitlines()
    assert sum("/5 images, " in line and "forward passes" not in line for line in lines) == 5


def test_each_json_line_has_its_time(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    before = datetime.now(UTC)
    told = events(camcli("run", folder, "--out", tmp_path / "out", *TINY, "--log-format", "json"))
    times = [datetime.fromisoformat(str(event["time"])) for event in told]
    assert times == sorted(times)
    assert before - timedelta(milliseconds=1) <= times[0]
    assert times[-1] <= datetime.now(UTC)
    assert {time.utcoffset() for time in times} == {timedelta(0)}


def test_what_libraries_log_is_a_json_line_or_nothing(tmp_path: Path, folder: Path) -> None:
    home = tmp_path / "a file"
    home.touch()
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL"))}
    words = ("run", folder, "--out", tmp_path / "out", *TINY, "--dry-run", "--log-format", "json")
    command = [sys.executable, "-m", "camcli", *map(str, words), "-s", "overlay.colormap=jet"]
    for more, logged in (([], True), (["--quiet"], False)):
        ended = subprocess.run([*command, *more], cwd=REPO, env={**hidden, "HOME": str(home)}, capture_output=True)
        told = [json.loads(line) for line in ended.stderr.splitlines()]
        assert any(e["event"] == "log" and "matplotlib" in e["logger"] for e in told) == logged


@pytest.mark.parametrize("command", ["dff", "two"])
def test_decoders_say_nothing_by_themselves(tmp_path: Path, command: str) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.tiff", "b.tiff"):
        Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "in" / name, compression="tiff_deflate")
        data = bytearray((tmp_path / "in" / name).read_bytes())
        data[60:90] = b"x" * 30
        (tmp_path / "in" / name).write_bytes(data)
    Image.new("1", (9500, 9500)).save(tmp_path / "in" / "large.png")
    words = ["dff" if command == "dff" else "run", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    words += {"dff": ["--json"], "two": ["-q", *TINY, *TWO]}[command]
    words = [sys.executable, "-m", "camcli", *words, "-s", "overlay.size=model"]
    ended = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert not re.search("Warning|ZIPDecode", ended.stderr), ended.stderr


def test_an_error_is_a_json_line_too_and_the_next_command_talks_as_ever(
    camcli: Camcli, folder: Path, tmp_path: Path
) -> None:
    words = ("run", folder, "--out", tmp_path / "out", "-s", "modle=x", "--log-format")
    [told] = events(camcli(*words, "json"))
    assert (told["event"], told["exit_code"]) == ("error", 2)
    assert camcli(*words, "text").err.startswith("camcli: --set modle")


def test_the_manifest_goes_to_standard_output_also_when_nothing_is_to_do(
    camcli: Camcli, folder: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        ended = camcli("run", folder, "--out", tmp_path / "out", *TINY, "--json", "--quiet")
        assert ended.code == 1
        assert json.loads(ended.out) == manifest(tmp_path / "out")


def test_junit_has_a_test_case_for_each_image(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "reports" / "junit.xml"
    words = ("run", folder, "--out", tmp_path / "out", *TINY, "--junit", file)
    for _ in range(2):
        assert camcli(*words).code == 1
        suite = ElementTree.parse(file).getroot()
        assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "2", "0")
        cases = {case.get("name"): case for case in suite.iter("testcase")}
        assert set(cases) == {"00.jpg", "01.png", "02.png", "bad.jpg", "\\x1b<&\\udcff\n.jpg"}
        failure = cases["bad.jpg"].find("failure")
        assert failure is not None
        assert failure.get("type") == "decode.UnidentifiedImageError"
        assert "not an image that camcli reads" in str(failure.get("message"))
    assert camcli(*words[:-1], tmp_path / "in" / "bad.jpg" / "junit.xml").code == 3


def test_images_that_were_not_reached_are_skipped_in_junit(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 1)
    for i in range(30):
        (folder / f"b{i:02}.jpg").write_text("no image")
    one = ("-s", "runtime.batch_size=1", "-s", "runtime.threads=1", "--fail-fast")
    camcli("run", folder, "--out", tmp_path / "out", *TINY, *one, "--junit", tmp_path / "junit.xml")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.get("tests") == "31"
    assert int(suite.get("skipped", "0")) > 20


def test_the_config_for_ci_runs_as_it_is(camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = camcli("run", SHAPES, "-c", REPO / "configs" / "ci.yaml", "--out", tmp_path / "out", "--limit", "3")
    assert ended.code == 0, ended.err
    monkeypatch.setenv("CAMCLI_SOURCE", "timm")
    monkeypatch.setenv("CAMCLI_MODEL", "resnet18")
    assert load_config(REPO / "configs" / "ci.yaml").config.model.name == "resnet18"


def shell_blocks(language: str) -> list[str]:
    """Code of one language in the README."""
    parts = (REPO / "README.md").read_text().split("```")
    return [part.removeprefix(language) for part in parts[1::2] if part.startswith(f"{language}\n")]


def test_the_workflow_in_the_readme_is_one_whose_commands_exist(tmp_path: Path) -> None:
    flows = [found for block in shell_blocks("yaml") if "jobs" in (found := yaml.safe_load(block) or {})]
    commands = [
        step["run"] for flow in flows for job in flow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    for line in "\n".join(commands).splitlines():
        if line.strip().startswith("camcli run"):
            words = [sys.executable, "-m", *line.split(), "--dry-run", "--out", str(tmp_path / "out")]
            subprocess.run(words, cwd=REPO, check=True, capture_output=True, timeout=60)


def test_junit_of_a_part_has_the_images_of_that_part(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    told = []
    for part in ("1/2", "2/2"):
        camcli("run", folder, "--out", tmp_path / "out", *TINY, "--shard", part, "--junit", file)
        suite = ElementTree.parse(file).getroot()
        assert suite.get("skipped") == "0"
        told += [case.get("name") for case in suite.iter("testcase")]
    assert len(told) == len(set(told)) == 5
