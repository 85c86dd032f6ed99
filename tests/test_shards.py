"""Parts of a run: every image in exactly one, the sum equal to one run, and missing parts named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from camcli.errors import ConfigError
from camcli.results.shard import Shard, shard_of
from tests.conftest import Ended
from tests.test_resume import SMALL, contents, images, times
from tests.test_run import manifest

Camcli = Callable[..., Ended]

PARTS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images and one that fails."""
    found = images(tmp_path / "in", 10)
    (found / "bad.jpg").write_text("no image")
    return found


def of_one_run(out: Path) -> dict[str, bytes]:
    """What is left when the parts' own files are set aside."""
    return {name: data for name, data in contents(out).items() if "-of-" not in name}


def test_the_parts_together_equal_one_run(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for index in range(1, PARTS + 1):
        ended = camcli("run", folder, "--out", out, *SMALL, "--shard", f"{index}/{PARTS}")
        assert ended.code in (0, 1)
        assert f"part {index}/3 of 11 images" in ended.err
    merged = camcli("merge", out)
    assert (merged.code, merged.out) == (1, "")
    assert "10 images explained, 1 failed" in merged.err
    assert camcli("run", folder, "--out", tmp_path / "once", *SMALL).code == 1
    assert of_one_run(out) == contents(tmp_path / "once")
    assert "nothing to do" in camcli("run", folder, "--out", out, *SMALL).err
    assert camcli("merge", out, "--json").code == 1


def test_parts_whose_records_are_of_other_images_are_not_joined(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for part in ("1/2", "2/2"):
        camcli("run", folder, "--out", out, *SMALL, "--shard", part)
    file = out / "results-2-of-2.jsonl"
    text = file.read_text()
    name = json.loads(text.splitlines()[0])["id"]
    file.write_text(text.replace(f'"id": "{name}"', '"id": "another.jpg"'))
    ended = camcli("merge", out)
    assert (ended.code, "do not cover each image once" in ended.err) == (1, True)
    assert not (out / "results.jsonl").exists()


def test_missing_and_unfinished_parts_are_named(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert camcli("run", folder, "--out", out, *SMALL, "--shard", "2/3").code in (0, 1)
    told = json.loads((out / "run-2-of-3.json").read_text())
    (out / "run-3-of-3.json").write_text(json.dumps({**told, "status": "interrupted"}))
    ended = camcli("merge", out)
    assert ended.code == 1
    assert "parts are missing: 1/3 (not begun), 3/3 (interrupted)" in ended.err
    assert not (out / "results.jsonl").exists()
    assert "parts not finished: 3-of-3" in camcli("status", out).out


def test_parts_of_different_runs_are_not_mixed(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    camcli("run", folder, "--out", out, *SMALL, "--shard", "1/2")
    before = times(out)
    other = ("run", folder, "--out", out, *SMALL, "-s", "overlay.alpha=0.9", "--shard")
    ended = camcli(*other, "2/2")
    assert ended.code == 2
    assert "overlay.alpha: 0.9 -> null" in ended.err
    assert camcli("run", folder, "--out", out, *SMALL, "--shard", "1/4").code == 2
    assert unlocked(times(out)) == unlocked(before)
    assert camcli(*other, "2/2", "--fresh").code in (0, 1)
    ended = camcli("merge", out)
    assert ended.code == 2
    assert "part 2/2 was made with another config:\n  overlay.alpha: null -> 0.9" in ended.err
    camcli("run", folder, "--out", out, *SMALL, "--shard", "2/2", "--limit", "5", "--fresh")
    assert "found other images than the first" in camcli("merge", out).err


def unlocked(found: dict[str, int]) -> set[tuple[str, int]]:
    """Without the locks, which are signed by whoever asks."""
    return {(name, when) for name, when in found.items() if not name.startswith(".lock")}


def test_no_parts_and_no_folder(camcli: Camcli, tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "typo"):
        ended = camcli("merge", out)
        assert ended.code == 2
        assert "holds no parts" in ended.err or "no such folder" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_resumed_like_a_run(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    words = ("run", folder, "--out", tmp_path / "out", *SMALL, "--shard", "1/2")
    camcli(*words)
    assert "nothing to do" in camcli(*words).err


def test_each_image_is_in_one_part_and_stays_there() -> None:
    names = [f"{i}.jpg" for i in range(1000)] + ["\udcff.jpg", "new\nline.jpg"]
    parts = [Shard(index, 8) for index in range(1, 9)]
    homes = [[part.index for part in parts if part.has(name)] for name in names]
    assert all(len(home) == 1 for home in homes)
    assert min(homes.count([index]) for index in range(1, 9)) > 90
    assert [part.index for part in parts if part.has("photo.jpg")] == [7]


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/8", {}, "3/8"),
        ("/8", {"JOB_COMPLETION_INDEX": "0"}, "1/8"),
        ("/8", {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10"}, "3/8"),
        ("/4", {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "2"}, "4/4"),
        (None, {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_MIN": "1"}, "2/5"),
        (None, {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "1"}, "None"),
        (None, {"JOB_COMPLETION_INDEX": "3"}, "None"),
        (None, {}, "None"),
    ],
)
def test_the_part_comes_from_the_option_or_the_job_array(
    text: str | None, environment: Mapping[str, str], expected: str
) -> None:
    assert str(shard_of(text, environment)) == expected


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "a/b", "3/0", "/8", "-1/8", "/", ""])
def test_a_part_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard"):
        shard_of(text, {})


def test_a_slurm_array_is_split_and_says_so(
    camcli: Camcli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ID", "2"), ("COUNT", "2"), ("MIN", "1")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    ended = camcli("run", folder, "--out", tmp_path / "out", *SMALL)
    assert "as SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT say" in ended.err
    assert (tmp_path / "out" / "run-2-of-2.json").exists()


def test_a_part_without_images_is_finished(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 1), tmp_path / "out"
    for index in (1, 2):
        assert camcli("run", folder, "--out", out, *SMALL, "--shard", f"{index}/2").code == 0
    assert camcli("merge", out).code == 0
    assert manifest(out)["counts"]["done"] == 1
