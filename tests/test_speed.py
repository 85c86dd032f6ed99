"""What makes runs fast changes nothing else: reduced decoding, strips, allowances; and the profile tells the truth."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camcli.config.file import load_config
from camcli.config.schema import InputConfig, OverlayConfig
from camcli.images import geometry
from camcli.images.decode import WHOLE, load_image, pixels
from camcli.images.find import discover
from camcli.images.memory import Budget
from camcli.images.preprocess import Preprocess
from camcli.images.read import Source
from camcli.pipeline.job import Job
from camcli.pipeline.prepare import prepare
from camcli.pipeline.progress import Silent
from camcli.pipeline.run import perform
from camcli.pipeline.stopwatch import Step, Stopwatch, bottleneck
from camcli.records import Box
from camcli.render import styles
from camcli.render.overlay import encode, paint
from tests.conftest import SHAPES, Ended, save_image
from tests.test_run import TINY, lines

Camcli = Callable[..., Ended]

PREPROCESS = Preprocess((64, 64), (72, 72), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "center")


def photograph(path: Path, width: int, height: int, turned: int = 1) -> Path:
    """A JPEG with structure at all scales, and an EXIF orientation."""
    rng = np.random.default_rng(0)
    layers = [rng.integers(0, 256, (n, n, 3), dtype=np.uint8) for n in (4, 16, 64)]
    grown = [Image.fromarray(a).resize((width, height), Image.Resampling.BICUBIC) for a in layers]
    mixed = np.mean([np.asarray(image, dtype=np.float32) for image in grown], axis=0).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(mixed).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("turned", [1, 3, 6])
def test_the_input_does_not_depend_on_the_pixels_that_are_kept(tmp_path: Path, crop: str, turned: int) -> None:
    preprocess = PREPROCESS.override(InputConfig.model_validate({"crop": crop}))
    path = photograph(tmp_path / "x.jpg", 1600, 1200, turned)
    whole, none, some = (load_image(path, preprocess, keep) for keep in (WHOLE, 0, 640))
    assert whole.size == ((1200, 1600) if turned == 6 else (1600, 1200))
    sizes = [image.image and image.image.size for image in (whole, none, some)]
    assert sizes == [whole.size, None, (480, 640) if turned == 6 else (640, 480)]
    assert (whole.bytes, some.bytes, none.bytes) == (4 * 1600 * 1200, 4 * 640 * 480, 0)
    for other in (none, some):
        assert np.array_equal(other.input, whole.input)
        assert (other.size, other.seen) == (whole.size, whole.seen)


@pytest.mark.parametrize("size", [(1600, 1200), (1601, 1200), (640, 480), (200, 130)], ids=str)
@pytest.mark.parametrize("turned", [1, 6])
def test_pixels_to_paint_on_come_from_a_fraction_of_the_image(
    tmp_path: Path, size: tuple[int, int], turned: int
) -> None:
    path = photograph(tmp_path / "x.jpg", *size, turned)
    kept = load_image(path, PREPROCESS, 640)
    with pixels(Source(path), 640, Budget(1 << 30)) as (image, found):
        assert (found, kept.image and kept.image.size) == (kept.size, image.size)
        difference = np.abs(np.asarray(kept.image).astype(int) - np.asarray(image).astype(int))
    assert (difference.max() > 0) == (size == (1600, 1200))
    assert difference.mean() < 2


def test_overlays_of_the_model_s_size_need_no_whole_image(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    photograph(tmp_path / "in" / "x.jpg", 1600, 1200)
    words = ("run", tmp_path / "in", *TINY, "-s", "overlay.size=model", "--out")
    assert camcli(*words, tmp_path / "out").code == 0
    monkeypatch.setattr("camcli.images.memory.Budget.keep", lambda self, size: size == 0)
    monkeypatch.setattr("camcli.pipeline.files.Files._again", lambda *_: pytest.fail("read again"))
    assert camcli(*words, tmp_path / "short").code == 0
    [record] = lines(tmp_path / "out")
    assert (record["width"], record["height"]) == (1600, 1200)
    [overlay] = (tmp_path / "out" / "overlays").iterdir()
    with Image.open(overlay) as painted:
        assert painted.size == (64, 64)
    assert overlay.read_bytes() == (tmp_path / "short" / "overlays" / overlay.name).read_bytes()


@pytest.mark.parametrize("heat_size", [(7, 7), (90, 110), (600, 20)], ids=str)
def test_strips_give_the_whole(heat_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    heat, seen = rng.random(heat_size).astype(np.float32), Box(-20.5, 13.2, 310.7, 420.9)
    image = Image.fromarray(rng.integers(0, 256, (400, 300, 3), dtype=np.uint8))
    painted = []
    for most in (1, 5_000, 10**9):
        monkeypatch.setattr(styles, "STRIP_PIXELS", most)
        copy = image.copy()
        for style in styles.STYLES:
            copy = styles.STYLES[style](copy, styles.Layer(heat, False, seen, "turbo", 0.4))
            copy = styles.STYLES[style](copy, styles.Layer(heat - 0.5, True, seen, "RdBu_r", 0.4))
        painted.append(np.asarray(copy))
    assert np.array_equal(painted[0], painted[1])
    assert np.array_equal(painted[0], painted[2])


def test_heat_between_cells_is_what_pillow_computes() -> None:
    rng = np.random.default_rng(1)
    heat = rng.random((7, 9)).astype(np.float32)
    _, grey = geometry.place(heat, Box(0, 0, 270, 210), 270, 210)
    cells = Image.fromarray(np.rint(np.pad(heat, 1, mode="edge") * 255).astype(np.uint8))
    expected = cells.resize((270, 210), Image.Resampling.BILINEAR, box=(1, 1, 10, 8))
    assert np.abs(np.asarray(grey).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_only_the_last_overlay_is_painted_on_the_image_itself(tmp_path: Path) -> None:
    image = load_image(save_image(tmp_path / "x.png", 90, 70), PREPROCESS)
    assert image.image is not None
    heat, before = np.ones((3, 3), dtype=np.float32), image.image.tobytes()
    copied = paint(image, heat, OverlayConfig())
    assert image.image.tobytes() == before
    assert paint(image, heat, OverlayConfig(), last=True).tobytes() == copied.tobytes()
    assert image.image.tobytes() == copied.tobytes()


@pytest.mark.parametrize("format_", ["jpg", "png", "webp"])
def test_a_file_in_memory_is_the_file_on_disk(tmp_path: Path, format_: str) -> None:
    config = OverlayConfig.model_validate({"format": format_})
    with Image.open(save_image(tmp_path / "x.png", 60, 50)) as stored:
        image = stored.convert("RGB")
    path, buffer = tmp_path / f"y.{format_}", io.BytesIO()
    options: dict[str, Any] = {"compress_level": 1} if format_ == "png" else {"quality": 90}
    image.save(path, **options)
    image.save(buffer, {"jpg": "JPEG"}.get(format_, format_), **options)
    assert encode(image, config) == path.read_bytes() == buffer.getvalue()


def seconds(**given: float) -> dict[Step, float]:
    """By step, 0 where not given; `_` stands for a space."""
    found = Stopwatch().seconds
    named = {name.replace("_", " "): value for name, value in given.items()}
    return {step: named.get(step, value) for step, value in found.items()}


@pytest.mark.parametrize(
    ("found", "bound"),
    [
        (seconds(wait_for_images=8, decode=9, forward=30), "decode"),
        (seconds(wait_for_the_model=8, decode=50, forward=7, backward=1), "forward"),
        (seconds(wait_for_the_model=8, forward=1, backward=7), "backward"),
        (seconds(wait_for_files=8, forward=30, encode=3, write=5), "write"),
        (seconds(wait_for_files=1, write=5), "start"),
    ],
)
def test_what_bounds_a_run(found: dict[Step, float], bound: str) -> None:
    assert bottleneck(found, whole=9) == bound


def test_the_profile_adds_up_to_the_run(camcli: Camcli, tmp_path: Path) -> None:
    words = ("run", SHAPES, "--out", tmp_path / "out", "--profile", "--threads", "1", "--device", "cpu")
    ended = camcli(*words, "--json", "--log-format", "json")
    assert ended.code == 0
    told = json.loads(ended.out)
    [profile] = [e for e in map(json.loads, ended.err.splitlines()) if e["event"] == "profile"]
    assert profile["seconds"] == told["profile"]
    assert told["config"]["runtime"]["threads"] == 1
    assert told["profile"]["forward"] < told["seconds"]
    waits = sum(value for step, value in told["profile"].items() if step.startswith("wait"))
    assert 0 < waits <= told["seconds"]
    assert all(told["profile"][step] > 0 for step in ("decode", "forward", "backward", "render", "encode", "write"))
    settled = camcli(*words)
    assert (settled.code, "bounds" in settled.err) == (0, False)
    shown = camcli(*words, "--fresh").err
    assert all(step in shown for step in ("start", "decode", "wait for the model", "bounds the run"))


def test_a_stopwatch_adds_up_threads() -> None:
    watch = Stopwatch()
    watch.add(replace_one(watch.seconds, 2.0))
    watch.add(replace_one(watch.seconds, 1.0))
    assert watch.rounded()["decode"] == 3.0


def replace_one(found: dict[Step, float], value: float) -> dict[Step, float]:
    """Only `decode`."""
    return {**dict.fromkeys(found, 0.0), "decode": value}


def test_what_was_tried_before_the_run_is_no_part_of_its_profile(
    tmp_path: Path,
) -> None:
    config, items = load_config(None, TINY[1::2]).config, discover([str(SHAPES)], limit=2)
    ready = prepare(config, items)
    ready.stopwatch.add(replace_one(ready.stopwatch.seconds, 1000.0))
    done = perform(Job(config, items, tmp_path / "out"), Silent(), None, ready)
    assert 0 < done.manifest.profile["forward"] < 1000
    assert 0 < done.manifest.profile["decode"] < 1000
