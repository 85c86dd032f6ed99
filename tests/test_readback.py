"""What camcli reads back of its own folder may have been changed by anybody: it is tidied, refused or passed over."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from camcli.cli import console
from camcli.config.schema import RunConfig
from camcli.errors import CamcliError, ConfigError
from camcli.images.find import Item
from camcli.pipeline import prepare
from camcli.pipeline import run as pipeline
from camcli.pipeline.job import Job, settled
from camcli.results import versions
from camcli.results.fingerprint import differences
from camcli.results.ledger import read_ledger
from camcli.results.manifest import NOTHING, libraries, running
from camcli.results.merge import merge
from camcli.results.resume import plan
from camcli.results.run import open_run, refuse_strange, run_in
from camcli.results.rundir import RunDir
from camcli.results.shard import Shard
from camcli.results.status import inspect
from tests.conftest import Ended, save_image
from tests.test_resume import SMALL, contents, images
from tests.test_run import lines, manifest

Camcli = Callable[..., Ended]


@pytest.fixture
def done(camcli: Camcli, tmp_path: Path) -> tuple[Path, Path]:
    """(inputs, run folder) of a finished run over four images."""
    folder, out = images(tmp_path / "in", 4), tmp_path / "out"
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    return folder, out


def twice(data: bytes) -> bytes:
    """An superseded line before the one that counts."""
    first = data.splitlines(keepends=True)[0]
    return first + data


def escaped(data: bytes) -> bytes:
    """As an editor writes it that knows no ASCII: other spaces, another order, characters as they are."""
    records = [dict(reversed(json.loads(line).items())) for line in data.splitlines()]
    for record in records:
        record["model"]["name"] = "\N{SNOWMAN}"
    return "".join(json.dumps(record, ensure_ascii=False, indent=None) + "\n" for record in records).encode()


def schema_1(data: bytes) -> bytes:
    """As camcli wrote records before schema 2."""
    records = [json.loads(line) for line in data.splitlines()]
    for record in records:
        record["top"] = [{"rank": i, **one} for i, one in enumerate(record.pop("predictions"), start=1)]
        record["schema_version"] = 1
        del record["truth"], record["without_evidence"]
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()


DIRT: dict[str, Callable[[bytes], bytes]] = {
    "twice": twice,
    "all twice": lambda data: data + data,
    "garbage": lambda data: b"garbage\n" + data,
    "blank lines": lambda data: data.replace(b"\n", b"\n\n"),
    "Windows lines": lambda data: data.replace(b"\n", b"\r\n"),
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "schema true": lambda data: data.replace(b'"schema_version": 2', b'"schema_version": true', 1),
    "no schema": lambda data: data.replace(b', "schema_version": 2', b"", 1),
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


def test_a_ledger_counts_whole_lines_whatever_stands_before_and_after_them(tmp_path: Path) -> None:
    line, torn = json.dumps(RECORD).encode() + b"\n", b'{"id": "04'
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + line + torn)
    found = read_ledger(tmp_path / "r.jsonl")
    assert (list(found.entries), found.size, found.clean, found.strange) == ([RECORD["id"]], 3 + len(line), False, "")
    (tmp_path / "r.jsonl").write_bytes(line)
    assert read_ledger(tmp_path / "r.jsonl").clean


def test_settings_that_are_nested_too_deeply_are_only_known_to_differ() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5 * sys.getrecursionlimit()):
        deep = {"a": deep}
    assert differences({"deep": deep}, {"deep": 2}) == []


def test_records_of_another_hand_are_written_as_camcli_writes_them(camcli: Camcli, done: tuple[Path, Path]) -> None:
    folder, out = done
    (out / "results.jsonl").write_bytes(escaped((out / "results.jsonl").read_bytes()))
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    text = (out / "results.jsonl").read_text("ascii")
    assert text == "".join(json.dumps(json.loads(line)) + "\n" for line in text.splitlines())
    assert {record["model"]["name"] for record in lines(out)} == {"\N{SNOWMAN}"}


STRANGE: dict[str, Callable[[bytes], bytes]] = {
    "records of schema 99": lambda data: data.replace(b'"schema_version": 2', b'"schema_version": 99', 1),
    "records of schema 1": schema_1,
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


@pytest.mark.parametrize("what", ["records", "a manifest"])
def test_a_folder_of_schema_1_is_left_alone_until_told_to_start_over(
    camcli: Camcli, done: tuple[Path, Path], what: str
) -> None:
    folder, out = done
    (out / "run.json").write_text(json.dumps({**manifest(out), "schema_version": 1}))
    records = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(schema_1(records) if what == "records" else b"")
    before = contents(out)
    for command in (("run", folder, "--out", out, *SMALL), ("status", out)):
        ended = camcli(*command)
        assert ended.code == 2
        assert f"its results hold {what} of schema 1, which an older camcli wrote; --fresh starts over" in ended.err
    with pytest.raises(ConfigError, match=f"{what} of schema 1"):
        open_run(out)
    assert contents(out) == before
    ended = camcli("run", folder, "--out", out, *SMALL, "--fresh", "-s", "overlay.format=png")
    assert ended.code == 0, ended.err
    assert (len(lines(out)), manifest(out)["schema_version"]) == (4, 2)
    assert bool(list(out.rglob("*.jpg"))) is (what == "a manifest"), "files that records name go with them"


@pytest.mark.parametrize("what", list(STRANGE))
def test_parts_with_records_that_would_be_lost_are_not_joined(camcli: Camcli, tmp_path: Path, what: str) -> None:
    folder, out = images(tmp_path / "in", 4), tmp_path / "out"
    for part in ("1/2", "2/2"):
        assert camcli("run", folder, "--out", out, *SMALL, "--shard", part).code == 0
    file = out / "results-2-of-2.jsonl"
    file.write_bytes(STRANGE[what](file.read_bytes()))
    ended = camcli("merge", out)
    assert (ended.code, f"its results hold {what}" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("{", "no JSON"),
        ("[1]", "it: input should be a valid dictionary"),
        ('{"status": "finished"}', "schema_version: field required"),
        ('{"schema_version": 2, "status": "finished", "counts": {"done": -1}}', "counts.done: input should be greater"),
        ('{"schema_version": 2, "status": "finished", "seconds": NaN}', "no JSON"),
    ],
)
def test_a_run_json_of_another_hand_is_no_run(tmp_path: Path, told: str, why: str) -> None:
    (tmp_path / "run.json").write_text(told)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/run.json: is no manifest that camcli wrote: {why}")):
        open_run(tmp_path)
    assert run_in(tmp_path).manifest == NOTHING


def test_a_manifest_says_what_later_and_earlier_versions_say_of_it(tmp_path: Path) -> None:
    """Fields of a later camcli are kept; those that an earlier one did not know have defaults."""
    (tmp_path / "run.json").write_text('{"status": "stopped", "colour": {"a": 1}, "schema_version": 2}')
    told = open_run(tmp_path).manifest
    assert (told.counts.done, told.precision, told.above, told.inputs.roots) == (0, None, None, [])
    assert told.as_json() == {"schema_version": 2, "status": "stopped", "colour": {"a": 1}}


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Another version of torch from now on, as far as camcli is told."""
    real = versions._version

    def to(torch: str) -> None:
        versions.key.cache_clear()
        monkeypatch.setattr(versions, "_version", lambda name: torch if name == "torch" else real(name))

    yield to
    versions.key.cache_clear()


def test_each_record_keeps_the_versions_that_made_it(
    camcli: Camcli, upgrade: Callable[[str], None], tmp_path: Path
) -> None:
    folder, out = images(tmp_path / "in", 5), tmp_path / "out"
    for torch, limit in (("2.14.1", 3), ("2.15.0", 5), ("2.16.0", 5)):
        upgrade(torch)
        assert camcli("run", folder, "--out", out, *SMALL, "--limit", limit).code == 0
    told, records = manifest(out), lines(out)
    assert told["versions"]["torch"] == "2.16.0"
    made = [told["libraries"][record["versions"]]["torch"] for record in records]
    assert made == ["2.14.1"] * 3 + ["2.15.0"] * 2
    assert len(told["libraries"]) == 2
    status = camcli("status", out)
    assert "3 images were explained with torch 2.14.1; 2 with torch 2.15.0" in status.out
    found = json.loads(camcli("status", out, "--json").out)["versions"]
    assert [(count, known["torch"]) for count, known in found] == [(3, "2.14.1"), (2, "2.15.0")]


def test_parts_of_other_versions_are_told_apart_once_joined(
    camcli: Camcli, upgrade: Callable[[str], None], tmp_path: Path
) -> None:
    folder, out = images(tmp_path / "in", 10), tmp_path / "out"
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
    save_image(folder / "new.jpg", 40, 40)
    (folder / "bad.jpg").write_text("no image")
    assert camcli("run", folder, "--out", out, *SMALL, "-s", "overlay.alpha=0.7", "--keep-going").code == 1
    assert [count for count, _ in json.loads(camcli("status", out, "--json").out)["versions"]] == [5]
    assert "4 of the records were made with another config" in camcli("status", out).out


JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just("\udc80"), st.just("\0")
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
TOLD: dict[str, Any] = {
    "schema_version": 2,
    "status": "finished",
    "started": "2024-01-01T00:00:00+00:00",
    "fingerprint": "f" * 64,
    "identity": {"model": {"labels_sha256": "0"}},
    "config": {},
    "inputs": {"names": ["/nowhere"], "ext": None, "limit": None, "images": 1, "sha256": "0"},
    "model": {"weights": "none", "weights_sha256": None},
    "precision": {"used": "fp32", "why": "as asked"},
    "batch_size": 1,
    "versions": {"torch": "1"},
    "libraries": {"a": {"torch": "1"}},
    "seconds": 1.0,
    "exit_code": 0,
    **{name: {} for name in ("counts", "failures", "fingerprints", "resumed", "profile")},
    "shard": {"index": 1, "count": 1, "positions": [0]},
}
RECORD: dict[str, Any] = {
    "schema_version": 2,
    "status": "failed",
    "id": "a.jpg",
    "source": "/nowhere/a.jpg",
    "input": {"bytes": 1, "mtime_ns": 1, "sha256": None},
    "fingerprint": "f" * 16,
    "versions": "a",
    "files": {"reports/a.jpg.json": 1},
    "stage": "read",
    "kind": "Gone",
    "message": "gone",
}


def paths_of(value: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where something in a JSON value could be replaced."""
    inner = value.items() if isinstance(value, dict) else ()
    return [above, *(path for key, one in inner for path in paths_of(one, (*above, key)))]


def mutated(value: Any, path: tuple[str, ...], junk: Any) -> Any:
    """`value` with `junk` at a path."""
    if not path:
        return junk
    return {**value, path[0]: mutated(value[path[0]], path[1:], junk)}


def variants(value: Any) -> st.SearchStrategy[bytes]:
    """The JSON text of `value` with something else somewhere in it, or no JSON at all."""
    changed = st.builds(mutated, st.just(value), st.sampled_from(paths_of(value)), JUNK)
    text = st.builds(lambda one: json.dumps(one).encode(), st.one_of(changed, st.just(value)))
    cut = st.builds(lambda data, end: data[: end % (len(data) + 1)], text, st.integers(0, 2000))
    deep = st.sampled_from([b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b'{"identity":' * 5000])
    return st.one_of(text, cut, deep, st.binary(max_size=60))


def survives(call: Callable[[], object]) -> None:
    """An answer or an error of ours."""
    try:
        call()
    except CamcliError as error:
        assert str(error)  # noqa: PT017 - whether it is raised is open


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(variants(TOLD), st.lists(variants(RECORD), max_size=3), st.sampled_from(["", "-1-of-1", "-2-of-3"]))
def test_any_bytes_are_read_or_refused(told: bytes, records: list[bytes], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        (out / f"run{suffix}.json").write_bytes(told)
        (out / f"results{suffix}.jsonl").write_bytes(b"\n".join(records) + b"\n")
        shard = {"": None, "-1-of-1": Shard(1, 1), "-2-of-3": Shard(2, 3)}[suffix]
        job = Job(RunConfig(), [Item("a.jpg", out / "a.jpg")], out, shard=shard)
        for check in ("stat", "hash"):
            survives(lambda check=check: console.print_status(inspect(out, check)))  # type: ignore[misc]
        survives(lambda: settled(job, job.earlier()))
        survives(lambda: list(open_run(out).failures()))
        survives(lambda: merge(out))
        survives(lambda: taken_up(job))


def taken_up(job: Job) -> None:
    """What a run does with what is there, but for the model."""
    with RunDir(job.out, job.suffix) as folder:
        earlier = pipeline._earlier(job, folder)
        prepare._batch_size(job.config, None, 1, 1, earlier)  # type: ignore[arg-type]
        settings = NOTHING.model_copy(update={"fingerprint": "e" * 64, "identity": {"a": 1}})
        survives(lambda: refuse_strange(folder.earlier))
        survives(lambda: pipeline._refuse_to_mix(job, folder, settings))
        survives(lambda: pipeline._planned(job, folder, settings))
        work = plan(job.mine, folder.ledger, job.out, job.policy)
        folder.begin(running(settings))
        libraries(folder.ledger.entries.values(), folder.earlier.manifest, {})
        folder.settle(["a.jpg"], work.vanished)
        folder.start_over()
