"""Deep feature factorisation: the factorisation against scikit-learn's, and the run."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import camcli as camcli_api
from camcli.demo.scenes import scene
from camcli.engine import concepts
from camcli.engine.engine import Engine
from camcli.engine.layers import Layout, Tap, TargetLayer
from camcli.engine.methods.factors import concepts_of, weights_of
from camcli.errors import ConfigError
from camcli.images.find import Item
from camcli.models.demo import LABELS
from camcli.pipeline.concepts import spread
from camcli.pipeline.files import Reader
from camcli.pipeline.progress import Silent
from camcli.records import Failure
from camcli.results.run import open_run
from tests.conftest import REPO, SHAPES, Ended, RedDetector, loaded, save_image
from tests.test_resume import SMALL, contents, images, times
from tests.test_run import lines, manifest
from tests.test_workers import TWO

if TYPE_CHECKING:
    from tests.driver import Driver

Camcli = Callable[..., Ended]


def mixture(count: int = 120, channels: int = 30, rank: int = 4) -> torch.Tensor:
    """Non-negative [count,channels]: `rank` sparse parts and a little noise."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(count, rank, generator=generator) * (torch.rand(count, rank, generator=generator) > 0.5)
    parts = torch.rand(rank, channels, generator=generator) * (torch.rand(rank, channels, generator=generator) > 0.6)
    return weights @ parts + 0.01 * torch.rand(count, channels, generator=generator)


def test_factors_are_non_negative_and_as_near_as_those_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    data = mixture()
    concepts = concepts_of(data, 4)
    weights = weights_of(data, concepts)
    assert concepts.shape == (4, 30)
    assert concepts.min() >= 0
    assert weights.min() >= 0
    ours = float((data - weights @ concepts).norm())
    theirs = decomposition.NMF(4, init="nndsvda", max_iter=1000).fit(data.numpy()).reconstruction_err_
    assert ours < 1.02 * theirs


def test_the_planted_parts_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.zeros(3, 12)
    for i in range(3):
        parts[i, 4 * i : 4 * i + 4] = 1 + torch.rand(4, generator=generator)
    data = torch.rand(60, 3, generator=generator) @ parts
    found = concepts_of(data, 3)
    cosines = found @ (parts / parts.norm(dim=1, keepdim=True)).T
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2]
    assert cosines.amax(1).min() > 0.99


def test_the_command_finds_concepts_that_raise_the_shapes(camcli: Camcli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for file in sorted(SHAPES.glob("*"))[:6]:
        Image.open(file).convert("RGB").save(tmp_path / "in" / f"{file.stem}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    ended = camcli("dff", tmp_path / "in", "--out", out, "-k", 3, "--json", "-s", "maps=npz")
    assert ended.code == 1
    found = json.loads(ended.out)["concepts"]
    assert found == json.loads((out / "concepts.json").read_text())["concepts"]
    assert len({concept["colour"] for concept in found}) == 3
    assert any(concept["classes"] for concept in found)
    assert all(c["raised"] > 0 for concept in found for c in concept["classes"])
    run = open_run(out)
    assert [(failure.id, failure.stage) for failure in run.failures()] == [("broken.png", "decode")]
    assert [record.id for record in run.records()] == sorted(p.name for p in (tmp_path / "in").iterdir())[:6]
    for record in run.records():
        assert [one.concept.index for one in record.heatmaps if one.concept] == [0, 1, 2]
        heats = np.stack([run.heat(record, index) for index in range(3)])
        means = [one.concept.mean for one in record.heatmaps if one.concept]
        assert means == pytest.approx(heats.mean(axis=(1, 2)), abs=1e-4)
        strongest = [concept.strongest for concept in run.concepts]
        assert [one.raw_max / s for one, s in zip(record.heatmaps, strongest, strict=True)] == pytest.approx(
            heats.max(axis=(1, 2)), abs=0.01
        )
        assert len({run.overlay(record, index) for index in range(3)}) == 1
        with Image.open(run.overlay(record)) as overlay, Image.open(record.source) as source:
            assert overlay.width >= source.width
            assert overlay.height > source.height
            below = np.asarray(overlay.convert("RGB"), dtype=int)[: source.height, : source.width]
            grey = np.asarray(source.convert("L"), dtype=int)[..., None]
            tinted = np.abs(below - grey).max(axis=-1) > 30
        assert tinted.any() == (max(means) > 0.01)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-s", "layer=[layer3, layer4]"), "layer gives layer3, layer4: set layer to one of them"),
        (("--method", "gradcam"), '--method methods=["gradcam"]: dff has one method'),
        (("--target", "cat"), '--target targets=["cat"]: dff has one method, no targets'),
        (("-s", "targets.above=0.5"), "--set targets.above=0.5: dff has one method, no targets"),
        (("-s", "methods=dff", "-s", "smoothing=aug"), "set smoothing to none"),
        (("-s", "methods=dff", "-s", "smoothing=eigen"), "'dff' has not"),
    ],
)
def test_what_dff_would_pass_over_is_refused(camcli: Camcli, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    command = "run" if "methods=dff" in words else "dff"
    ended = camcli(command, SHAPES, "--out", tmp_path / "out", *words)
    assert ended.code == 2
    assert told in ended.err


def test_locations_keep_the_order_of_rows_and_lose_what_is_negative() -> None:
    pixels = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = loaded(RedDetector())
    engine = Engine(model, [TargetLayer((Tap("colour", Layout("nchw", (16, 16))),))], [])
    first, second = concepts.activations(engine, pixels, lambda probabilities: [], None)
    activations = model.module.colour(pixels.permute(0, 3, 1, 2).float() / 255)  # type: ignore[operator]
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert first.shape == (256, 2)
    assert torch.allclose(second[2 * 16 + 3], activations[1, :, 2, 3].clamp_min(0), atol=1e-6)
    assert bool((activations < 0).any())
    assert float(first.min()) == 0


def test_a_sample_is_spread_over_all_images() -> None:
    items = [Item(str(number), Path(str(number))) for number in range(10)]
    assert [item.id for item in spread(items, 5)] == ["0", "2", "4", "6", "8"]
    assert spread(items, 20) == items


def test_a_concept_is_hot_where_its_shape_is(camcli: Camcli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    masks: list[NDArray[np.bool_]] = []
    for index in range(6):
        drawn = scene(5, index, labels=[LABELS.index("star" if index % 2 else "ring")])
        Image.fromarray(drawn.image).save(tmp_path / "in" / f"{index}.png")
        masks += dict(drawn.shapes).values()
    assert camcli("dff", tmp_path / "in", "--out", tmp_path / "out", "-k", 4, "-s", "maps=npz").code == 0
    run = open_run(tmp_path / "out")
    [star] = [concept.index for concept in run.concepts if concept.label.startswith("star")]
    for record, mask in list(zip(run.records(), masks, strict=True))[1::2]:
        heat = run.heat(record, star)
        assert np.asarray(Image.fromarray(heat).resize(mask.shape))[mask].mean() > 2 * heat.mean()


def test_nothing_readable_is_an_error(camcli: Camcli, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    ended = camcli("dff", tmp_path, "--out", tmp_path / "out")
    assert (ended.code, "nothing to factorise" in ended.err) == (5, True)


def killed_when(driver: Driver, there: Callable[[], bool], *words: object) -> int:
    """Start a command and kill it as soon as `there` says so; how it ended."""
    pid, end = driver.start(*words), time.monotonic() + 60
    while not there() and time.monotonic() < end:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return driver.end()


def test_killed_in_any_pass_it_goes_on_to_the_same_bytes(driver: Driver, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 20), tmp_path / "out"
    (folder / "bad.jpg").write_text("no image")
    words = ("dff", folder, *SMALL, "-k", 3, "-s", "maps=npz", "--out")
    for name in ("once", "twice"):
        assert driver.run(*words, tmp_path / name) == 1
    once = contents(tmp_path / "once")
    assert contents(tmp_path / "twice") == once
    records = out / "results.jsonl"
    moments = (out / ".lock").exists, (out / "concepts.npz").exists, lambda: records.exists() and records.stat().st_size
    killed = [killed_when(driver, lambda m=moment: bool(m()), *words, out) for moment in moments]  # type: ignore[misc]
    assert killed == [-signal.SIGKILL] * 3
    assert driver.run(*words, out) == 1
    assert contents(out) == once


def test_a_signal_finishes_what_is_under_way_and_the_concepts_are_learnt_once(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = images(tmp_path / "in", 24), tmp_path / "out"
    real = concepts._with_concepts

    def interrupting(*words: Any) -> Any:
        if next(calls) == 0:  # two engines may come at the same moment, and a second signal would end at once
            os.kill(os.getpid(), signal.SIGINT)
        return real(*words)

    calls = itertools.count()
    monkeypatch.setattr(concepts, "_with_concepts", interrupting)
    stopped = camcli("dff", folder, "--out", out, *SMALL)
    assert stopped.code == 130
    assert "finishing the batches under way" in stopped.err
    assert 4 <= len(lines(out)) < 24
    assert camcli("status", out).code == 1
    before = times(out)
    assert camcli("dff", folder, "--out", out, *SMALL).code == 0
    after = times(out)
    again = {name for name in before if before[name] != after[name]}
    assert again == {".lock", "run.json", "results.jsonl"}
    assert camcli("dff", folder, "--out", tmp_path / "once", *SMALL).code == 0
    assert contents(out) == contents(tmp_path / "once")
    status = camcli("status", out)
    assert (status.code, "finished" in status.out) == (0, True)
    assert "nothing to do: all 24 images are recorded" in camcli("dff", folder, "--out", out, *SMALL).err


def test_each_image_is_decoded_once_to_learn_and_once_to_be_painted(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, decoded = images(tmp_path / "in", 9), []
    real = Image.open

    def noted(*words: Any, **named: Any) -> Image.Image:
        decoded.append(words)
        return real(*words, **named)

    monkeypatch.setattr(Image, "open", noted)
    monkeypatch.setattr("camcli.pipeline.concepts.SAMPLE", 4)
    assert camcli("dff", folder, "--out", tmp_path / "out", *SMALL).code == 0
    assert len(decoded) == 4 + 9


def test_other_images_have_other_concepts_and_leave_nothing_of_the_earlier_ones(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 6), tmp_path / "out"
    assert camcli("dff", folder, "--out", out, *SMALL).code == 0
    (folder / "03.jpg").unlink()
    for change in ("fewer", "more", "another"):
        if change == "more":
            save_image(folder / "x.png", 70, 70, 9)
        elif change == "another":
            save_image(folder / "04.png", 50, 50, 7)
        assert camcli("dff", folder, "--out", out, *SMALL).code == 0
        assert camcli("dff", folder, "--out", tmp_path / change, *SMALL).code == 0
        assert contents(out) == contents(tmp_path / change), change


def test_an_image_beyond_the_sample_is_done_again_alone(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camcli.pipeline.concepts.SAMPLE", 3)
    folder, out = images(tmp_path / "in", 6), tmp_path / "out"
    assert camcli("dff", folder, "--out", out, *SMALL).code == 0
    before = times(out)
    save_image(folder / "01.png", 66, 55, 3)
    ended = camcli("dff", folder, "--out", out, *SMALL)
    assert (ended.code, manifest(out)["resumed"]["kept"]) == (0, 5), ended.err
    after = times(out)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {".lock", "run.json", "results.jsonl", "overlays/01.png.dff.jpg", "reports/01.png.json"}


def test_an_image_beyond_the_sample_that_goes_takes_the_concepts_along(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camcli.pipeline.concepts.SAMPLE", 3)
    folder, out = images(tmp_path / "in", 4), tmp_path / "out"
    assert camcli("dff", folder, "--out", out, *SMALL).code == 0
    (folder / "03.jpg").unlink()
    assert camcli("dff", folder, "--out", out, *SMALL).code == 0
    assert not (out / "overlays" / "03.jpg.dff.jpg").exists()
    assert len(lines(out)) == 3


def test_another_config_is_refused_and_fresh_starts_over(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 4), tmp_path / "out"
    words = ("dff", folder, *SMALL, "--out")
    assert camcli(*words, out, "-k", 2).code == 0
    before = contents(out)
    refused = camcli(*words, out, "-k", 3)
    assert refused.code == 2
    assert "options.dff.concepts: 2 -> 3" in refused.err
    assert contents(out) == before
    assert camcli(*words, out, "-k", 3, "--fresh").code == 0
    assert camcli(*words, tmp_path / "once", "-k", 3).code == 0
    assert contents(out) == contents(tmp_path / "once")
    (out / "concepts.npz").write_bytes(b"torn")
    assert camcli(*words, out, "-k", 3).code == 0
    assert contents(out) == contents(tmp_path / "once")


def test_results_of_other_concepts_are_not_kept(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 3), tmp_path / "out"
    words = ("run", folder, "--out", out, *SMALL, "-s", "methods=dff")
    assert camcli(*words).code == 0
    before = contents(out)
    kept = camcli(*words, "-s", "options.dff.concepts=3", "--keep-going")
    assert (kept.code, "--keep-going cannot keep other results" in kept.err) == (2, True), kept.err
    refused = camcli("dff", folder, "--out", out, *SMALL, "-k", 3)
    assert (refused.code, "--fresh starts over, and another --out" in refused.err) == (2, True), refused.err
    assert "--keep-going" not in refused.err
    assert contents(out) == before


def test_a_folder_that_goes_while_concepts_are_learnt_costs_nothing(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = images(tmp_path / "in", 4), tmp_path / "out"
    words = ("dff", folder, "--out", out, *SMALL, "-s", "runtime.threads=1")
    assert camcli(*words).code == 0
    save_image(folder / "new.png", 60, 60, 9)
    before, real = contents(out), Reader.read

    def read(self: Reader, item: Item, *words: Any) -> Any:
        if item.id == "01.png":
            folder.rename(tmp_path / "elsewhere")
        return real(self, item, *words)

    monkeypatch.setattr(Reader, "read", read)
    ended = camcli(*words)
    assert (ended.code, "was removed, renamed or unmounted" in ended.err) == (3, True), ended.err
    assert contents(out) == before


def test_engines_share_the_cores_but_for_the_factorisation(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[int]] = {"activations": set(), "learn": set(), "raised": set()}

    def noted(name: str, real: Callable[..., Any], *words: Any) -> Any:
        threads[name].add(torch.get_num_threads())
        return real(*words)

    for name in threads:
        monkeypatch.setattr(concepts, name, partial(noted, name, getattr(concepts, name)))
    assert camcli("dff", images(tmp_path / "in", 6), "--out", tmp_path / "out", *SMALL).code == 0
    assert threads == {"activations": {1}, "learn": {2}, "raised": {1}}


@pytest.mark.parametrize("words", [("paint", "out"), ("dff", "in", "--out", "out")])
def test_without_its_concepts_a_folder_is_not_painted(camcli: Camcli, tmp_path: Path, words: tuple[str, ...]) -> None:
    folder, out = images(tmp_path / "in", 3), tmp_path / "out"
    assert camcli("dff", folder, "--out", out, *SMALL, "-s", "maps=npz").code == 0
    (out / "concepts.npz").write_bytes(b"torn")
    named = [tmp_path / word if word in ("in", "out") else word for word in words]
    settings = (*SMALL, "-s", "maps=npz") if words[0] == "dff" else ()
    ended = camcli(*named, *settings, "-s", "overlay.alpha=0.9")
    if words[0] == "paint":
        assert (ended.code, "concepts.npz is missing or damaged" in ended.err) == (2, True), ended.err
    else:
        assert ended.code == 0, ended.err
        assert camcli("dff", folder, "--out", tmp_path / "once", *settings, "-s", "overlay.alpha=0.9").code == 0
        assert contents(out) == contents(tmp_path / "once")


def test_concepts_of_runs_are_not_compared(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 3), tmp_path / "out"
    assert camcli("dff", folder, "--out", out, *SMALL).code == 0
    for words in (("diff", out, out), ("baseline", out, tmp_path / "base.json.gz")):
        ended = camcli(*words)
        assert (ended.code, "holds the concepts of `camcli dff`" in ended.err) == (2, True), ended.err
    assert not (tmp_path / "base.json.gz").exists()


def test_another_look_is_painted_from_the_maps(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 4)
    words = ("dff", folder, *SMALL, "-s", "maps=npz")
    for name, before in (("run", ""), ("paint", ""), ("once", "overlay.alpha=0.9")):
        assert camcli(*words, "--out", tmp_path / name, *(("-s", before) if before else ())).code == 0
    assert camcli(*words, "--out", tmp_path / "run", "-s", "overlay.alpha=0.9").code == 0
    assert camcli("paint", tmp_path / "paint", "-s", "overlay.alpha=0.9").code == 0
    once = contents(tmp_path / "once")
    for name in ("run", "paint"):
        found = contents(tmp_path / name)
        assert {k: v for k, v in found.items() if k != "run.json"} == {k: v for k, v in once.items() if k != "run.json"}


def test_failures_count_as_in_any_run(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 5), tmp_path / "out"
    for name in ("b0.jpg", "b1.jpg", "b2.jpg"):
        (folder / name).write_text("no image")
    words = ("dff", folder, "--out", out, *SMALL)
    stopped = camcli(*words, "--max-errors", 1, "--junit", tmp_path / "junit.xml")
    assert stopped.code == 1
    assert manifest(out)["status"] == "stopped"
    assert [r["status"] for r in lines(out)].count("failed") == 2
    assert "failed: b0.jpg: not an image" in stopped.err
    assert 'failures="2"' in (tmp_path / "junit.xml").read_text()
    assert camcli(*words).code == 1
    assert manifest(out)["failures"] == {"UnidentifiedImageError": 3}
    assert len(lines(out)) == 8
    merged = camcli("merge", out)
    assert (merged.code, str(out) in merged.err) == (2, True)


def test_two_devices_equal_one(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 6)
    for name, words in (("one", ()), ("two", TWO)):
        assert camcli("dff", folder, "--out", tmp_path / name, *SMALL, *words).code == 0
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert {k: v for k, v in one.items() if k != "run.json"} == {k: v for k, v in two.items() if k != "run.json"}


def test_precision_is_as_asked_and_auto_is_exact(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 4)
    for asked, used in (("bf16", "bf16"), ("auto", "fp32")):
        out = tmp_path / asked
        assert camcli("dff", folder, "--out", out, *SMALL, "-s", f"runtime.precision={asked}").code == 0
        assert manifest(out)["precision"]["used"] == used
        assert {record["precision"] for record in lines(out)} == {used}


def test_it_stands_alone(camcli: Camcli, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("methods: [gradcam, dff]\n")
    ended = camcli("config", "check", tmp_path / "c.yaml")
    assert ended.code == 2
    assert "c.yaml:1:1: methods: dff stands alone" in ended.err
    shard = camcli("run", SHAPES, "--out", tmp_path / "out", "-s", "methods=dff", "--shard", "1/2")
    assert (shard.code, "cannot be split with --shard" in shard.err) == (2, True)
    with pytest.raises(ConfigError, match="use `camcli dff`"):
        camcli_api.explain(SHAPES / "12-star.png", methods=["dff"])


class Told(Silent):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.passes: list[tuple[str, int]] = []
        self.steps = Counter[str]()

    def begin(self, total: int, kept: int, what: str = "") -> None:
        """A pass."""
        self.passes.append((what, total))

    def advance(self, failure: Failure | None) -> None:
        """An image of it."""
        self.steps[self.passes[-1][0]] += 1


def test_from_python_all_three_passes_tell_how_far_they_are(tmp_path: Path) -> None:
    folder, told = images(tmp_path / "in", 5), Told()
    (folder / "bad.jpg").write_text("no image")
    config = camcli_api.load_config(REPO / "configs" / "demo.yaml").config.model_copy(update={"methods": ("dff",)})
    run = camcli_api.run(config, folder, tmp_path / "out", progress=told)
    assert told.passes == [("learning concepts", 6), ("naming concepts", 5), ("", 6)]
    assert told.steps == {"learning concepts": 6, "naming concepts": 5, "": 6}
    assert (len(run), len(run.concepts)) == (6, 5)
    assert [row.concept for row in run.rows() if row.status == "done"] == [*range(5)] * 5
