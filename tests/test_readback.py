"""What camcli reads back of its own folder may have been changed by anybody: it is tidied, refused or passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camcli import versions
from tests.conftest import Ended, save_picture
from tests.test_resume import SMALL, contents, pictures
from tests.test_run import lines, manifest

Camcli = Callable[..., Ended]


@pytest.fixture
def done(camcli: Camcli, tmp_path: Path) -> tuple[Path, Path]:
    """(inputs, run folder) of a finished run over four pictures."""
    folder, out = pictures(tmp_path / "in", 4), tmp_path / "out"
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    return folder, out


def twice(data: bytes) -> bytes:
    """An overtaken line before the one that counts."""
    first = data.splitlines(keepends=True)[0]
    return first + data


def escaped(data: bytes) -> bytes:
    """As an editor writes it that knows no ASCII: other spaces, another order, characters as they are."""
    records = [dict(reversed(json.loads(line).items())) for line in data.splitlines()]
    for record in records:
        record["model"]["name"] = "\N{SNOWMAN}"
    return "".join(json.dumps(record, ensure_ascii=False, indent=None) + "\n" for record in records).encode()


DIRT: dict[str, Callable[[bytes], bytes]] = {
    "twice": twice,
    "all twice": lambda data: data + data,
    "garbage": lambda data: b"garbage\n" + data,
    "blank lines": lambda data: data.replace(b"\n", b"\n\n"),
    "Windows lines": lambda data: data.replace(b"\n", b"\r\n"),
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "schema 0": lambda data: data.replace(b'"schema_version": 1', b'"schema_version": 0', 1),
    "schema true": lambda data: data.replace(b'"schema_version": 1', b'"schema_version": true', 1),
    "no schema": lambda data: data.replace(b'"schema_version": 1, ', b"", 1),
    "Latin-1": lambda data: data.replace(b'"source"', b'"\xe9": 1, "source"', 1),
    "torn": lambda data: data + b'{"id": "04',
    "no end": lambda data: data[:-1],
    "files of another type": lambda data: data.replace(b'"files": {', b'"files": [{', 1).replace(
        b'}, "fing', b'}], "fing', 1
    ),
    "status of nobody": lambda data: data.replace(b'"status": "done"', b'"status": "dome"', 1),
}


@pytest.mark.parametrize("dirt", list(DIRT))
def test_dirty_records_are_tidied_even_if_nothing_is_to_do(camcli: Camcli, done: tuple[Path, Path], dirt: str) -> None:
    folder, out = done
    whole, clean = contents(out), (out / "results.jsonl").read_bytes()
    dirty = DIRT[dirt](clean)
    assert dirty != clean
    (out / "results.jsonl").write_bytes(dirty)
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    assert contents(out) == whole


def test_records_of_another_hand_are_written_as_camcli_writes_them(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    (out / "results.jsonl").write_bytes(escaped((out / "results.jsonl").read_bytes()))
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    text = (out / "results.jsonl").read_text("ascii")
    assert text == "".join(json.dumps(json.loads(line), sort_keys=True) + "\n" for line in text.splitlines())
    assert {record["model"]["name"] for record in lines(out)} == {"\N{SNOWMAN}"}


STRANGE: dict[str, Callable[[bytes], bytes]] = {
    "records of schema 99": lambda data: data.replace(b'"schema_version": 1', b'"schema_version": 99', 1),
    "text in UTF-16": lambda data: data.decode().encode("utf-16"),
}


@pytest.mark.parametrize("what", list(STRANGE))
@pytest.mark.parametrize("words", [(), ("--keep-going",)])
def test_records_that_a_run_would_lose_are_refused(
    camcli: Camcli, done: tuple[Path, Path], what: str, words: tuple[str, ...]
) -> None:
    folder, out = done
    strange = STRANGE[what]((out / "results.jsonl").read_bytes())
    (out / "results.jsonl").write_bytes(strange)
    for command in (("run", folder, "--out", out, *SMALL, *words), ("status", out)):
        ended = camcli(*command)
        assert ended.code == 2
        assert f"its results hold {what}" in ended.err
        assert "--fresh starts over" in ended.err
    assert (out / "results.jsonl").read_bytes() == strange
    assert camcli("run", folder, "--out", out, *SMALL, "--fresh").code == 0
    assert len(lines(out)) == 4


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Another version of torch from now on, as far as camcli is told."""
    real = versions._version

    def to(torch: str) -> None:
        versions.key.cache_clear()
        monkeypatch.setattr(versions, "_version", lambda name: torch if name == "torch" else real(name))

    return to


def test_each_record_keeps_the_versions_that_made_it(
    camcli: Camcli, upgrade: Callable[[str], None], tmp_path: Path
) -> None:
    folder, out = pictures(tmp_path / "in", 5), tmp_path / "out"
    for torch, limit in (("2.14.1", 3), ("2.15.0", 5), ("2.16.0", 5)):
        upgrade(torch)
        assert camcli("run", folder, "--out", out, *SMALL, "--limit", limit).code == 0
    told, records = manifest(out), lines(out)
    made = [told["libraries"][record["versions"]]["torch"] for record in records]
    assert made == ["2.14.1"] * 3 + ["2.15.0"] * 2
    assert len(told["libraries"]) == 2
    status = camcli("status", out)
    assert "3 images were explained with torch 2.14.1; 2 with torch 2.15.0" in status.out
    found = json.loads(camcli("status", out, "--json").out)["versions"]
    assert [(count, known["torch"]) for count, known in found] == [(3, "2.14.1"), (2, "2.15.0")]


def test_records_without_versions_are_of_the_run_before(
    camcli: Camcli, upgrade: Callable[[str], None], tmp_path: Path
) -> None:
    """As an earlier camcli left them."""
    folder, out = pictures(tmp_path / "in", 3), tmp_path / "out"
    upgrade("2.14.1")
    camcli("run", folder, "--out", out, *SMALL, "--limit", 2)
    old: list[dict[str, Any]] = [{k: v for k, v in r.items() if k != "versions"} for r in lines(out)]
    (out / "results.jsonl").write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in old))
    told = manifest(out)
    del told["libraries"]
    (out / "run.json").write_text(json.dumps(told))
    upgrade("2.15.0")
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    assert "2 images were explained with torch 2.14.1; 1 with torch 2.15.0" in camcli("status", out).out


def test_parts_of_other_versions_are_told_apart_once_joined(
    camcli: Camcli, upgrade: Callable[[str], None], tmp_path: Path
) -> None:
    folder, out = pictures(tmp_path / "in", 10), tmp_path / "out"
    for torch, part in (("2.14.1", "1/2"), ("2.15.0", "2/2")):
        upgrade(torch)
        assert camcli("run", folder, "--out", out, *SMALL, "--shard", part).code == 0
    before = camcli("status", out).out
    assert camcli("merge", out).code == 0
    for told in (before, camcli("status", out).out):
        assert "with torch 2.14.1" in told
        assert "with torch 2.15.0" in told


def test_status_counts_records_of_another_config(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    assert json.loads(camcli("status", out, "--json").out)["foreign"] == 0
    save_picture(folder / "new.jpg", 40, 40)
    assert camcli("run", folder, "--out", out, *SMALL, "-s", "overlay.alpha=0.7", "--keep-going").code == 0
    assert "4 of the records were made with another config" in camcli("status", out).out
