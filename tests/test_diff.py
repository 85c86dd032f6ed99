"""Two runs held against each other: the figures against naive ones, and what is too much against real runs."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import camcli as api
from camcli.analysis import verdict
from camcli.analysis.baseline import Answer, Baseline, Place, baseline
from camcli.analysis.diff import Limits, agreement, correlation, diff, overlap, ranks, ssim
from camcli.config.file import load_config
from camcli.errors import ConfigError
from tests.conftest import SHAPES, Ended

Camcli = Callable[..., Ended]
NAMES = sorted(path.name for path in SHAPES.iterdir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs over six scenes: a, the same again, and mirrored."""
    place = tmp_path_factory.mktemp("diff")
    for name in NAMES[:6]:
        for folder in ("in", "mirrored/in"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        with Image.open(SHAPES / name) as image:
            image.convert("RGB").save(place / "in" / f"{name}.png")
            image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place / "mirrored/in" / f"{name}.png")
    config = load_config(None, ["maps=npz", "targets={top: 1}", "overlay.size=model"]).config
    for out, folder in (("a", "in"), ("b", "in"), ("m", "mirrored/in")):
        api.run(config, place / folder, place / out)
    return place


def test_two_runs_of_the_same_do_not_differ(camcli: Camcli, runs: Path) -> None:
    ended = camcli("diff", runs / "a", runs / "b", "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["images"], found["tripped"], found["worst"]) == (0, 6, [], [])
    assert set(found["shares"].values()) == {0.0}


def test_heat_that_moved_trips_and_is_told_wherever_it_is_asked(camcli: Camcli, runs: Path) -> None:
    files = "--markdown", runs / "m.md", "--junit", runs / "m.xml"
    ended = camcli("diff", runs / "a", runs / "m", *files)
    assert (ended.code, "TOO MUCH" in ended.out) == (1, True)
    assert "moved: " in (runs / "m.md").read_text()
    assert '<testcase classname="camcli.diff" name="moved">' in (runs / "m.xml").read_text()
    assert camcli("diff", runs / "a", runs / "m", "--min-similarity", "0", "--max-top1-changed", "100%").code == 0
    assert camcli("diff", runs / "a", runs / "m", "--max-moved", "5").code == 2


def test_a_baseline_is_a_small_file_that_says_the_same(camcli: Camcli, runs: Path) -> None:
    ended = camcli("baseline", runs / "a", runs / "base.json.gz")
    assert (ended.code, "6 images" in ended.err) == (0, True)
    assert (runs / "base.json.gz").stat().st_size < 6 * 400
    of_file, of_run = (json.loads(camcli("diff", runs / a, runs / "m", "--json").out) for a in ("base.json.gz", "a"))
    assert {**of_file, "baseline": ""} == {**of_run, "baseline": ""}
    for data in (b"x", gzip.compress(b"[]"), gzip.compress(b'{"camcli_baseline": 1}')):
        (runs / "bad.gz").write_bytes(data)
        assert camcli("diff", runs / "bad.gz", runs / "a").code == 2


def test_without_maps_boxes_are_compared_and_it_is_said(runs: Path) -> None:
    whole = baseline(runs / "a")
    plain = {
        name: replace(one, places={key: replace(place, grid=None) for key, place in one.places.items()})
        for name, one in whole.answers.items()
    }
    found = diff(whole, replace(whole, answers=plain), Limits())
    assert (found.tripped, found.without_maps) == ([], True)
    assert any("no raw maps on one side" in line for line in verdict.lines(found))
    apart = agreement(Place((0.1, 0.1), (0, 0, 0.5, 1), None), Place((0.9, 0.1), (0.25, 0, 0.75, 1), None))
    assert [apart.similarity, apart.shift] == pytest.approx([1 / 3, 0.8 / 2**0.5])


def test_images_that_are_missing_and_sides_that_do_not_compare_are_named(runs: Path) -> None:
    whole = baseline(runs / "a")
    first, *others = whole.answers
    fewer = replace(whole, answers={name: whole.answers[name] for name in others})
    assert diff(whole, fewer, Limits()).tripped == ["removed: 16.7% of the images, more than 0.0%"]
    assert (diff(fewer, whole, Limits()).added, diff(fewer, whole, Limits()).tripped) == ([first], [])
    with pytest.raises(ConfigError, match="other labels"):
        diff(whole, replace(whole, labels_sha256="0"), Limits())
    with pytest.raises(ConfigError, match=r"input\.size: "):
        diff(whole, replace(whole, input={**whole.input, "size": [1, 1]}), Limits())


def test_heat_is_compared_where_it_lies_on_the_image(runs: Path) -> None:
    """The grids of the mirrored images are the mirrored grids, near enough for a net that is not symmetric."""
    one, other = baseline(runs / "a"), baseline(runs / "m")
    alike = []
    for name, answer in one.answers.items():
        for key, place in answer.places.items():
            assert place.grid is not None
            if place.peak:
                x, y = (min(int(part * 16), 15) for part in place.peak)
                assert place.grid[y, x] > 200
            if key in other.answers[name].places:
                mirrored = other.answers[name].places[key].grid
                assert mirrored is not None
                alike.append(agreement(place, replace(place, grid=mirrored[:, ::-1])).similarity)
    assert len(alike) >= 4
    assert np.median(alike) > 0.8


def test_figures_are_those_of_naive_definitions() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 6, (16, 16)).astype(np.uint8) * 40 for _ in range(2))
    a, b = one.ravel().astype(float), other.ravel().astype(float)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    by_hand = [sum(x < v for x in a) + (sum(x == v for x in a) + 1) / 2 for v in a]
    assert ranks(a).tolist() == pytest.approx(by_hand)
    both = sum(x >= 100 and y >= 100 for x, y in zip(a, b, strict=True))
    assert overlap(one, other) == pytest.approx(both / sum(x >= 100 or y >= 100 for x, y in zip(a, b, strict=True)))
    values = []
    for top in range(10):
        for left in range(10):
            x, y = (m[top : top + 7, left : left + 7].ravel() / 255 for m in (one, other))
            cov = np.cov(x, y)
            low = (x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (cov[0, 0] + cov[1, 1] + 9e-4)
            values.append((2 * x.mean() * y.mean() + 1e-4) * (2 * cov[0, 1] + 9e-4) / low)
    assert ssim(one, other) == pytest.approx(np.mean(values))
    nothing = Place(None, None, np.zeros((16, 16), np.uint8))
    assert (agreement(nothing, nothing).similarity, agreement(nothing, Place((0, 0), None, one)).similarity) == (1, 0)


def test_names_cannot_command_a_comment() -> None:
    hostile = "<script>|`x`\n# a"
    one, other = (Baseline(side, "", {}, {hostile: Answer(side, 0.5, {})}) for side in ("a", "b"))
    text = verdict.markdown(diff(one, other, Limits()))
    assert "<script>" not in text
    assert "\n# a" not in text
    assert r"&lt;script>\|\`x\` \# a" in text


def test_the_gate_does_not_load_torch(runs: Path) -> None:
    code = (
        "import sys; from camcli.cli.app import main; sys.argv[0] = 'camcli'\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    words = [sys.executable, "-c", code, "diff", str(runs / "a"), str(runs / "b")]
    assert subprocess.run(words, timeout=60, capture_output=True).returncode == 0


@pytest.mark.parametrize("damage", [b"", b"no baseline", b"PK\x03\x04torn", b"[" * 100_000])
def test_what_is_damaged_is_named(camcli: Camcli, runs: Path, tmp_path: Path, damage: bytes) -> None:
    copy = shutil.copytree(runs / "a", tmp_path / "a")
    file = next((copy / "maps").glob("*.npz"))
    file.write_bytes(damage)
    ended = camcli("diff", copy, runs / "b")
    assert (ended.code, f"{file}: the map cannot be read" in ended.err) == (2, True), ended.err
    for told in (damage, gzip.compress(damage), gzip.compress(b"0" * 99)[:-12] + damage):
        (tmp_path / "base.json.gz").write_bytes(told)
        ended = camcli("diff", tmp_path / "base.json.gz", runs / "b")
        assert (ended.code, "is no baseline that camcli wrote" in ended.err) == (2, True), ended.err
