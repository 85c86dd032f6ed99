"""The run command: files, records, exit codes and sentences, with real images and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from camcli.results.report import json_schema
from camcli.results.rundir import RunDir
from tests.conftest import PHOTOS, SHAPES, Ended, save_image

Camcli = Callable[..., Ended]

TINY = ("-s", "model={source: timm, name: test_resnet, weights: none, num_classes: 4}", "-s", "input.size=64")


def lines(out: Path) -> list[dict[str, Any]]:
    """The records of a run, each checked against the published schema."""
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for record in records:
        jsonschema.validate(record, json_schema())
    return records


def manifest(out: Path) -> dict[str, Any]:
    """run.json."""
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, one in a folder below."""
    for seed, name in enumerate(("a.jpg", "b.png", "below/c.jpg")):
        save_image(tmp_path / "in" / name, 90 + 30 * seed, 80, seed)
    return tmp_path / "in"


def test_the_main_job_on_the_sample_scenes(camcli: Camcli, tmp_path: Path) -> None:
    ended = camcli("run", SHAPES, "--out", tmp_path / "out")
    assert (ended.code, ended.out) == (0, "")
    records = lines(tmp_path / "out")
    assert len(records) == 12
    for record in records:
        with Image.open(SHAPES / record["id"]) as image:
            assert (record["width"], record["height"]) == image.size
        named = set(Path(record["id"]).stem.split("-")[1:])
        assert {h["target"]["label"] for h in record["heatmaps"] if h["target"]["probability"] >= 0.5} == named
        for heatmap in record["heatmaps"]:
            with Image.open(tmp_path / "out" / heatmap["overlay"]) as overlay:
                assert overlay.size == (record["width"], record["height"])
        assert json.loads((tmp_path / "out" / "reports" / f"{record['id']}.json").read_text()) == record


def test_records_and_manifest_are_in_reading_order_with_no_more_digits_than_float32(
    camcli: Camcli, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").touch()
    assert camcli("run", SHAPES / "12-star.png", tmp_path / "broken.jpg", "--out", tmp_path / "out").code == 1
    failed, record = sorted(lines(tmp_path / "out"), key=lambda one: len(one))
    assert list(record)[:6] == ["id", "source", "status", "predictions", "heatmaps", "truth"]
    assert list(failed)[:6] == ["id", "source", "status", "stage", "kind", "message"]
    assert list(manifest(tmp_path / "out"))[:3] == ["schema_version", "status", "started"]
    numbers = [one[key] for one in record["predictions"] for key in ("probability", "logit")]
    numbers += [one[key] for one in record["heatmaps"] for key in ("raw_min", "raw_max")]
    assert len(numbers) >= 12
    for number in numbers:
        assert len(repr(number).split("e")[0].replace(".", "").lstrip("-0")) <= 9, number
    report = (tmp_path / "out" / "reports" / f"{record['id']}.json").read_text()
    assert [line.strip()[:9] for line in report.splitlines()].count('{"index":') == len(record["predictions"])


def test_two_targets_on_one_scene_give_two_maps(camcli: Camcli, tmp_path: Path) -> None:
    scene = next(path for path in sorted(SHAPES.iterdir()) if path.stem.count("-") == 2)
    assert camcli("run", scene, "--out", tmp_path / "out", "-s", "maps=npz").code == 0
    [record] = lines(tmp_path / "out")
    with np.load(tmp_path / "out" / record["maps"][0]) as arrays:
        a, b = (arrays[f"gradcam.{h['target']['index']}"] for h in record["heatmaps"])
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.5


def test_maps_are_at_layer_resolution(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    for kind in ("npz", "png16"):
        ended = camcli("run", images, "--out", tmp_path / kind, *TINY, "-s", "targets={top: 2}", "-s", f"maps={kind}")
        assert ended.code == 0, ended.err
    for npz_record, png_record in zip(lines(tmp_path / "npz"), lines(tmp_path / "png16"), strict=True):
        with np.load(tmp_path / "npz" / npz_record["maps"][0]) as arrays:
            assert sorted(arrays) == sorted(f"gradcam.{h['target']['index']}" for h in npz_record["heatmaps"])
            for name, heat in arrays.items():
                assert (heat.dtype, heat.shape) == (np.float32, (2, 2))
                [png] = [path for path in png_record["maps"] if path.endswith(f".{name}.png")]
                deep = np.asarray(Image.open(tmp_path / "png16" / png), dtype=np.float64) / 65535
                assert np.abs(deep - heat).max() < 1e-4


def test_a_bad_file_is_a_record_and_exit_code_1(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    (images / "aa.jpg").write_bytes(b"")
    (images / "z.jpg").write_text("no image")
    (images / "cut.jpg").write_bytes((images / "a.jpg").read_bytes()[:300])
    ended = camcli("run", images, "--out", tmp_path / "out", *TINY)
    assert ended.code == 1
    records = lines(tmp_path / "out")
    assert [r["id"] for r in records] == ["a.jpg", "aa.jpg", "b.png", "below/c.jpg", "cut.jpg", "z.jpg"]
    failed = {r["id"]: (r["stage"], r["kind"]) for r in records if r["status"] == "failed"}
    assert failed == {
        "aa.jpg": ("read", "EmptyFile"),
        "cut.jpg": ("decode", "OSError"),
        "z.jpg": ("decode", "UnidentifiedImageError"),
    }
    assert manifest(tmp_path / "out")["counts"] == {"done": 3, "failed": 3, "skipped": 0}
    assert manifest(tmp_path / "out")["failures"] == {"EmptyFile": 1, "OSError": 1, "UnidentifiedImageError": 1}


def test_a_lone_bad_file_is_exit_code_1(camcli: Camcli, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    assert camcli("run", tmp_path / "x.jpg", "--out", tmp_path / "out", *TINY).code == 1
    assert [r["status"] for r in lines(tmp_path / "out")] == ["failed"]


def test_exit_codes_of_what_the_user_gets_wrong(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    out = ("--out", tmp_path / "out")
    expected = {
        (tmp_path / "empty", *out): (5, "no image in"),
        (tmp_path / "missing", *out): (2, "no such file or folder"),
        (images, *out, "-s", "modle=demo"): (2, "unknown key, did you mean 'model'?"),
        (images, *out, "-m", "timm/resnet5"): (2, "did you mean 'resnet50'"),
        (images, *out, "-m", "torchvision/resnet5"): (2, "did you mean 'resnet50'"),
        (images, *out, "-s", "methods=grdcam"): (2, "unknown method 'grdcam', did you mean 'gradcam'"),
        (images, *out, *TINY, "-s", "targets=[dog]"): (2, "the model has no class 'dog'"),
        (images, *out, *TINY, "-s", "targets=[9]"): (2, "class 9 is not one of the model's 0..3"),
        (images, *out, *TINY, "-s", "layer=layer5"): (2, "layer5"),
        (images, *out, *TINY, "-s", "runtime.device=cuda:99"): (2, "runtime.device"),
        (images, "--out", tmp_path / "file", *TINY): (2, "file is no folder; name another"),
        (images,): (2, "--out"),
    }
    for words, (code, sentence) in expected.items():
        ended = camcli("run", *words)
        assert (ended.code, ended.out) == (code, ""), words
        assert sentence in ended.err, words
        assert "Traceback" not in ended.err


def test_weights_from_a_file_and_what_is_said_of_bad_ones(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    import timm
    import torch

    state = timm.create_model("test_resnet", num_classes=4).state_dict()
    save_file(state, tmp_path / "good.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "good.pth")
    torch.save({"model": print}, tmp_path / "pickle.pth")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:1000])
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\n")

    def ended(weights: str, *more: str) -> Ended:
        model = f"model={{source: timm, name: test_resnet, num_classes: 4, weights: {tmp_path / weights}}}"
        return camcli("run", images, "--out", tmp_path / weights / ".." / "out", "-s", model, *more)

    labels = ("-s", f"model.labels={tmp_path / 'labels.txt'}", "-s", "targets=[Dog]")
    for name in ("good.safetensors", "good.pth"):
        out = tmp_path / name.replace(".", "-")
        model = f"model={{source: timm, name: test_resnet, num_classes: 4, weights: {tmp_path / name}}}"
        assert camcli("run", images, "--out", out, "-s", model, "-s", "input.size=64", *labels).code == 0
        assert {h["target"]["label"] for r in lines(out) for h in r["heatmaps"]} == {"dog"}
    scores = [
        [p["logit"] for p in r["predictions"]]
        for name in ("good-safetensors", "good-pth")
        for r in lines(tmp_path / name)
    ]
    assert scores[:3] == scores[3:]
    for name, sentence in (
        ("pickle.pth", "could run code"),
        ("torn.safetensors", "not a readable weights file"),
        ("missing.pth", "no such weights file"),
    ):
        model = f"model={{source: timm, name: test_resnet, num_classes: 4, weights: {tmp_path / name}}}"
        failed = camcli("run", images, "--out", tmp_path / "out", "-s", model)
        assert failed.code == 3
        assert sentence in failed.err
        assert name in failed.err
    wrong_head = f"model={{source: timm, name: test_resnet, num_classes: 5, weights: {tmp_path / 'good.pth'}}}"
    failed = camcli("run", images, "--out", tmp_path / "out", "-s", wrong_head)
    assert failed.code == 3
    assert "model.num_classes is 5, but its head has 4 rows: set it to 4, or leave it out" in failed.err


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18.a1_in1k"])
def test_a_pretrained_model_that_is_not_there_says_what_to_do(
    camcli: Camcli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    ended = camcli("run", images, "--out", tmp_path / "out", "-m", name, "--offline")
    assert ended.code == 3
    for part in ("resnet18", "not in ", "--offline forbids a download", "--set model.weights=FILE.safetensors"):
        assert part in ended.err


def test_json_prints_the_manifest_alone_and_quiet_prints_nothing(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    ended = camcli("run", images, "--out", tmp_path / "out", "--json", "--quiet", *TINY)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == manifest(tmp_path / "out")


def test_random_weights_are_warned_about(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    assert "weights are random" in camcli("run", images, "--out", tmp_path / "out", *TINY).err


def test_dry_run_lists_and_writes_nothing(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    ended = camcli("run", images, "--out", tmp_path / "out", "--dry-run", "--limit", "2")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.splitlines()[:2] == ["a.jpg", "b.png"]
    assert not (tmp_path / "out").exists()
    planned = camcli("run", images, "--out", tmp_path / "out", "--dry-run", "--json")
    assert json.loads(planned.out)["images"] == ["a.jpg", "b.png", "below/c.jpg"]


def test_control_characters_in_names_do_not_reach_the_terminal(camcli: Camcli, tmp_path: Path, images: Path) -> None:
    (images / "\x1b[31mred[bold].jpg").write_bytes((images / "a.jpg").read_bytes())
    ended = camcli("run", images, "--out", tmp_path / "out", "--dry-run")
    assert "\x1b" not in ended.err
    assert r"\x1b[31mred[bold].jpg" in ended.err
    assert camcli("run", images, "--out", tmp_path / "out", *TINY).code == 0
    assert "\x1b[31mred[bold].jpg" in {r["id"] for r in lines(tmp_path / "out")}


def test_run_wide_scale_shows_which_image_has_more_evidence(camcli: Camcli, tmp_path: Path) -> None:
    shapes = sorted(SHAPES.iterdir())[:3]
    common = ("-s", "targets={top: 1}", "-s", "overlay={format: png, colormap: gray, alpha: 1, size: model}")
    for scale in ("image", "run"):
        ended = camcli("run", *shapes, "--out", tmp_path / scale, *common, "-s", f"overlay.scale={scale}")
        assert ended.code == 0, ended.err
    brightest = {}
    for scale in ("image", "run"):
        records = sorted(lines(tmp_path / scale), key=lambda r: r["id"])
        brightest[scale] = [
            int(np.asarray(Image.open(tmp_path / scale / r["heatmaps"][0]["overlay"])).max()) for r in records
        ]
    raw = [r["heatmaps"][0]["raw_max"] for r in records]
    assert min(brightest["image"]) > 240
    expected = [255 * value / max(raw) for value in raw]
    assert np.abs(np.array(brightest["run"]) - expected).max() < 16


def test_batch_size_and_threads_change_nothing(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    for name, batch, threads in (("one", 1, 1), ("many", 3, 4)):
        options = ("-s", f"runtime.batch_size={batch}", "-s", f"runtime.threads={threads}")
        assert camcli("run", SHAPES, "--out", tmp_path / name, *options).code == 0
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "many"), strict=True):
        assert [h["overlay"] for h in a["heatmaps"]] == [h["overlay"] for h in b["heatmaps"]]
        for one, many in zip(a["heatmaps"], b["heatmaps"], strict=True):
            assert one["raw_max"] == pytest.approx(many["raw_max"], rel=1e-4)
            assert one["peak"] == many["peak"]


def test_a_second_run_in_the_same_folder_waits_for_nobody(camcli: Camcli, images: Path, tmp_path: Path) -> None:
    with RunDir(tmp_path / "out"):
        ended = camcli("run", images, "--out", tmp_path / "out", *TINY)
    assert ended.code == 75
    assert "another run writes there" in ended.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_what_is_in_flight(tmp_path: Path, number: signal.Signals, code: int) -> None:
    for i in range(400):
        (tmp_path / "in").mkdir(exist_ok=True)
        os.link(SHAPES / sorted(os.listdir(SHAPES))[0], tmp_path / "in" / f"{i:03}.jpg")
    words = ["run", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "-s", "runtime.batch_size=1"]
    process = subprocess.Popen([sys.executable, "-m", "camcli", *words], stderr=subprocess.PIPE)
    results = tmp_path / "out" / "results.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (results.exists() and results.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    counts = manifest(tmp_path / "out")["counts"]
    assert counts["failed"] == 0
    assert 0 < counts["done"] < 400
    assert counts["done"] == len(lines(tmp_path / "out"))
    assert counts["done"] + counts["skipped"] == 400


def test_photographs_of_any_kind_are_explained(camcli: Camcli, tmp_path: Path) -> None:
    assert camcli("run", PHOTOS, "--out", tmp_path / "out", *TINY, "-s", "overlay.format=webp").code == 0
    assert len(lines(tmp_path / "out")) == 4
