"""A run as a table: every image and heatmap a row, the same in each format, and nothing a spreadsheet would run."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import camcli as api
from camcli.analysis.export import FORMULA
from camcli.config.file import load_config
from camcli.results.rows import columns
from tests.conftest import REPO, Ended, save_image
from tests.test_run import lines

Camcli = Callable[..., Ended]
LABEL = '=HYPERLINK("http://x", "a")'


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with names and a label that look like formulas, one file that is no image and one with bytes for a name."""
    place = tmp_path_factory.mktemp("export")
    names = ("=1+1.jpg", "-a.jpg", "+b.jpg", "@c.jpg", 'plain, "quoted"\nand long.jpg', os.fsdecode(b"\xff.jpg"))
    for seed, name in enumerate(names):
        save_image(place / "in" / "x.jpg", 60, 40, seed).rename(place / "in" / name)
    (place / "in" / "broken.jpg").write_text("no image")
    (place / "labels.txt").write_text(f"{LABEL}\nb\nc\nd\n")
    model = "model={source: timm, name: test_resnet, num_classes: 4, weights: none}"
    words = [model, f"model.labels={place / 'labels.txt'}", "input.size=64", "maps=png16"]
    config = load_config(None, [*words, "targets=[0, 1]", "methods=[gradcam, eigencam]"]).config
    api.run(config, place / "in", place / "out")
    return place / "out"


def flat(out: Path) -> list[dict[str, Any]]:
    """The rows as they follow from results.jsonl, by hand."""
    rows = []
    for record in lines(out):
        for heatmap in record.get("heatmaps", [{}]):
            target = heatmap.get("target") or {}
            rows.append(
                {
                    "id": record["id"].encode("utf-8", "backslashreplace").decode(),
                    "status": record["status"],
                    "kind": record.get("kind"),
                    "top1": record["predictions"][0]["label"] if "predictions" in record else None,
                    "method": heatmap.get("method"),
                    "target": target.get("label"),
                    "target_logit": target.get("logit"),
                    "peak_x": heatmap["peak"][0] if heatmap.get("peak") else None,
                    "raw_max": heatmap.get("raw_max"),
                    "empty": heatmap.get("empty"),
                }
            )
    return rows


def written(camcli: Camcli, out: Path, kind: str) -> Path:
    """The table in a format."""
    file = out.parent / "tables" / f"results.{kind}"
    ended = camcli("export", out, file)
    assert (ended.code, ended.err) == (0, f"{file}: {len(flat(out))} rows\n")
    return file


def test_json_lines_have_a_row_for_each_image_and_heatmap(camcli: Camcli, out: Path) -> None:
    rows = [json.loads(line) for line in written(camcli, out, "jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 6 * 3 + 1
    expected = flat(out)
    assert [{name: row[name] for name in one} for row, one in zip(rows, expected, strict=True)] == expected
    assert {tuple(row) for row in rows} == {tuple(columns())}
    maps = [name for record in lines(out) for name in record.get("maps", [None])]
    assert [row["map"] for row in rows] == [name and name.replace("\udcff", "\\udcff") for name in maps]


def test_a_csv_says_the_same_and_no_cell_begins_a_formula(camcli: Camcli, out: Path) -> None:
    with written(camcli, out, "csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = flat(out)
    for row, one in zip(rows, expected, strict=True):
        for name, value in one.items():
            cell = row[name]
            if isinstance(value, str):
                assert cell == f"'{value}" if value.startswith(FORMULA) else cell == value
            elif isinstance(value, bool):
                assert cell == str(value).lower()
            else:
                assert (float(cell) if cell else None) == value
        texts = [row[name] for name, kind in columns().items() if kind is str]
        assert not [text for text in texts if re.match(r"[=+\-@\t\r]", text)]
    assert sum(row["id"].startswith("'") for row in rows) == 4 * 3
    assert sum(row["target"] == f"'{LABEL}" for row in rows) == 6


def test_parquet_keeps_types_and_text_as_they_are(camcli: Camcli, out: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written(camcli, out, "parquet"))
    expected = flat(out)
    rows = table.select(list(expected[0])).to_pylist()
    assert rows == expected
    kinds = {"string": str, "int64": int, "double": float, "bool": bool}
    assert {name: kinds[str(table.schema.field(name).type)] for name in table.column_names} == columns()


def test_the_questions_of_the_readme_are_answered(camcli: Camcli, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    file = written(camcli, out, "csv")
    text = (REPO / "camcli" / "results" / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(file.parent)
    found: dict[str, Any] = {}
    exec(code, found)
    done = [record for record in lines(out) if record["status"] == "done"]
    assert len(found["unsure"]) == 6
    gap = min(r["predictions"][0]["probability"] - r["predictions"][1]["probability"] for r in done)
    first = found["unsure"].iloc[0]
    assert first.top1_probability - first.top2_probability == pytest.approx(gap, abs=1e-7)
    assert found["classes"]["count"].sum() == 6
    edge = [h for r in done for h in r["heatmaps"] if h["peak"] and not 3 <= h["peak"][0] <= 57]
    assert sorted(found["border"].overlay) == sorted(h["overlay"].removeprefix("'") for h in edge)
    assert list(api.open_run(out).to_pandas().columns) == list(found["table"].columns) == list(columns())
    assert isinstance(found["table"], pandas.DataFrame)


def test_what_cannot_be_written_is_said(camcli: Camcli, out: Path, tmp_path: Path) -> None:
    for words, said in {
        (out, "results.xlsx"): "name it .csv, .jsonl or .parquet",
        (tmp_path / "in", "x.csv"): "no run folder of camcli",
    }.items():
        ended = camcli("export", *words)
        assert (ended.code, said in ended.err) == (2, True), ended.err
    (tmp_path / "folder.csv").mkdir()
    ended = camcli("export", out, tmp_path / "folder.csv")
    assert (ended.code, "cannot be written" in ended.err) == (3, True)
