"""Pixels of overlays, grids, raw maps and concepts, against arithmetic on whole arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from camcli.config.schema import OverlayConfig, RunConfig
from camcli.engine.engine import Engine, Explanation
from camcli.engine.methods import METHODS
from camcli.engine.targets import Target
from camcli.images.decode import WHOLE, LoadedImage, load_image
from camcli.images.find import state_of
from camcli.images.geometry import hot_box, peak
from camcli.images.memory import Budget
from camcli.images.preprocess import Preprocess
from camcli.pipeline.files import Files
from camcli.pipeline.flow import Explained
from camcli.pipeline.paint import in_one_range
from camcli.pipeline.paint import paint as paint_all
from camcli.pipeline.painter import Painter
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Box, Failure, Heatmap, ImageResult, Prediction
from camcli.render import styles
from camcli.render.concepts import concept_overlay
from camcli.render.overlay import encode, paint
from camcli.results.rundir import RunDir
from tests.conftest import SHAPES, Ended, RedDetector, loaded
from tests.test_placement import LAYER

Camcli = Callable[..., Ended]
Pixels = NDArray[np.float64]
TARGET = Prediction(3, "star", 0.25, 1.0)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """RGB."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def image_of(image: Image.Image, seen: Box, side: int = 24) -> LoadedImage:
    """As if the model had seen `seen` of `image`, with noise for an input."""
    return LoadedImage(image, image.size, np.asarray(noise(side, side, 1)), seen)


def spread(heat: NDArray[np.float32], seen: Box, width: int, height: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """`heat` [h,w] at every pixel centre of width x height px, bilinear between cell centres; and which are seen."""
    h, w = heat.shape
    xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
    us = ((xs - seen.x0) / (seen.x1 - seen.x0) * w - 0.5).clip(0, w - 1)
    vs = ((ys - seen.y0) / (seen.y1 - seen.y0) * h - 0.5).clip(0, h - 1)
    rows = np.stack([np.interp(us, np.arange(w), row) for row in heat])
    whole = np.stack([np.interp(vs, np.arange(h), column) for column in rows.T], axis=1)
    inside = ((ys >= seen.y0) & (ys <= seen.y1))[:, None] & ((xs >= seen.x0) & (xs <= seen.x1))[None]
    return whole, inside


def coloured(name: str, values: Pixels) -> Pixels:
    """RGB 0..255 of a colour map at values in 0..1."""
    return 255 * np.asarray(colormaps[name](values), dtype=np.float64)[..., :3]


PLACES = {
    "inside": (Box(13.3, 4.2, 83.3, 35.8), (90, 40)),
    "padded": (Box(-10, -35, 60, 75), (50, 40)),
    "portrait": (Box(0, 20, 30, 50), (30, 90)),
    "smaller than its map": (Box(1, 1, 6, 5), (9, 7)),
}


@pytest.mark.parametrize("strip", [1 << 18, 100], ids=["whole", "strips"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("place", PLACES)
def test_colours_are_blended_over_what_the_model_saw(
    monkeypatch: pytest.MonkeyPatch, place: str, signed: bool, strip: int
) -> None:
    monkeypatch.setattr(styles, "STRIP_PIXELS", strip)
    seen, (width, height) = PLACES[place]
    shape = (3, 4) if place == "smaller than its map" else (5, 7)
    heat = np.random.default_rng(0).random(shape, dtype=np.float32) * (2 if signed else 1) - (1 if signed else 0)
    image = image_of(noise(width, height), seen)
    config = OverlayConfig(style="blend", colormap="viridis", alpha=0.4)
    before = np.asarray(image.image, dtype=np.float64)
    painted = np.asarray(paint(image, heat, config, signed), dtype=np.float64)
    if signed:
        root = np.sign(heat) * np.sqrt(np.abs(heat))
        values, inside = spread((((1.6 * root).clip(-1, 1) + 1) / 2).astype(np.float32), seen, width, height)
        grey = before @ [0.299, 0.587, 0.114]
        expected = 0.4 * grey[..., None] + 0.6 * coloured("RdBu_r", values)
    else:
        values, inside = spread(heat, seen, width, height)
        expected = 0.6 * before + 0.4 * coloured("viridis", values)
    assert np.abs(painted - expected)[inside].max() < 6
    assert np.abs(painted - expected)[inside].mean() < 1
    assert (painted == before)[~inside].all()
    assert (np.asarray(image.image) == before).all()


def edge_of(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost pixels of a rectangle."""
    ys, xs = np.nonzero(inside)
    edge = inside.copy()
    edge[ys.min() + 1 : ys.max(), xs.min() + 1 : xs.max()] = False
    return edge


@pytest.mark.parametrize("strip", [1 << 18, 100], ids=["whole", "strips"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("place", PLACES)
def test_opacity_follows_the_heat_and_a_line_is_around_what_the_model_saw(
    monkeypatch: pytest.MonkeyPatch, place: str, signed: bool, strip: int
) -> None:
    monkeypatch.setattr(styles, "STRIP_PIXELS", strip)
    seen, (width, height) = PLACES[place]
    shape = (3, 4) if place == "smaller than its map" else (5, 7)
    heat = np.random.default_rng(0).random(shape, dtype=np.float32) * (2 if signed else 1) - (1 if signed else 0)
    image = image_of(noise(width, height), seen)
    config = OverlayConfig(colormap="viridis", alpha=0.6)
    before = np.asarray(image.image, dtype=np.float64)
    painted = np.asarray(paint(image, heat, config, signed), dtype=np.float64)
    if signed:
        root = (1.6 * np.sign(heat) * np.sqrt(np.abs(heat))).clip(-1, 1)
        values, inside = spread(((root + 1) / 2).astype(np.float32), seen, width, height)
        below = (255 * 0.4 + 0.6 * (before @ [0.299, 0.587, 0.114]))[..., None]
        opacity = 0.9 * ((np.abs(2 * values - 1) - 0.1) / 0.9).clip(0, 1)[..., None]
        expected = (1 - opacity) * below + opacity * coloured("RdBu_r", values)
    else:
        values, inside = spread(heat, seen, width, height)
        opacity = 0.6 * ((values - 0.1) / 0.9).clip(0, 1)[..., None]
        expected = (1 - opacity) * before + opacity * coloured("viridis", values)
    edge = edge_of(inside) & (not inside.all())
    expected[edge] = 0.4 * expected[edge] + 0.6 * 255
    assert np.abs(painted - expected)[inside].max() < 6
    assert np.abs(painted - expected)[inside].mean() < 1
    assert (painted == before)[~inside].all()


def test_what_is_cold_stays_as_it_is() -> None:
    image = image_of(noise(80, 80), Box(0, 0, 80, 80))
    heat = np.zeros((8, 8), dtype=np.float32)
    heat[0, 0], heat[5:, 5:] = 1, 0.09
    changed = (np.asarray(paint(image, heat, OverlayConfig())) != np.asarray(image.image)).any(axis=-1)
    assert changed[:10, :10].all()
    assert not changed[20:].any()


def test_a_spotlight_leaves_what_is_hot_and_greys_and_dims_the_rest() -> None:
    image = image_of(noise(90, 60), Box(0, 0, 60, 60))
    heat = np.zeros((2, 2), dtype=np.float32)
    heat[:, 0] = 1
    before = np.asarray(image.image, dtype=np.float64)
    shown = np.asarray(paint(image, heat, OverlayConfig(style="spotlight", alpha=0.8)), dtype=np.float64)
    dim = 0.2 * np.asarray(image.image.convert("L"), dtype=np.float64)[..., None]  # type: ignore[union-attr]
    assert (shown[:, :15] == before[:, :15]).all()
    assert np.abs(shown[:, 46:] - dim[:, 46:]).max() <= 1
    values, _ = spread(heat, Box(0, 0, 60, 60), 60, 60)
    light = (2 * values).clip(0, 1)[..., None]
    assert np.abs(shown[:, :60] - light * before[:, :60] - (1 - light) * dim[:, :60]).max() < 5


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_contours_run_at_half_and_at_four_fifths_and_leave_the_rest(signed: bool) -> None:
    """A cone: its contours are circles, of known radii."""
    seen, cells = Box(50, 10, 450, 410), 80
    ys, xs = (np.mgrid[:cells, :cells] + 0.5 - cells / 2) / (cells / 2)
    heat = np.asarray((1 - np.hypot(xs, ys)).clip(0, 1), dtype=np.float32) * (-1 if signed else 1)
    image = image_of(noise(500, 420), seen)
    painted = np.asarray(paint(image, heat, OverlayConfig(style="contours"), signed))
    changed = (painted != np.asarray(image.image)).any(axis=-1)
    y, x = np.nonzero(changed)
    radius = np.hypot(x + 0.5 - 250, y + 0.5 - 210) / 200
    inner, outer = radius[radius < 0.35], radius[radius >= 0.35]
    assert inner.mean() == pytest.approx(0.2, abs=0.01)
    assert outer.mean() == pytest.approx(0.5, abs=0.01)
    assert max(np.abs(inner - 0.2).max(), np.abs(outer - 0.5).max()) < 0.04
    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx((250, 210), abs=0.4)
    core = painted[210, 348:352].astype(float)
    wanted = coloured("RdBu_r", np.zeros(1)) if signed else coloured("inferno", np.full(1, 0.5))
    assert np.abs(core - wanted).max(axis=1).min() < 20


def test_contours_of_a_map_without_slopes_are_none() -> None:
    image = image_of(noise(40, 30), Box(5, 0, 35, 30))
    for heat in (np.ones((4, 4), dtype=np.float32), np.full((1, 1), 0.3, dtype=np.float32)):
        assert paint(image, heat, OverlayConfig(style="contours")).tobytes() == image.image.tobytes()  # type: ignore[union-attr]
    thin = image_of(noise(40, 1), Box(0, 0, 40, 1))
    paint(thin, np.eye(4, dtype=np.float32), OverlayConfig(style="contours"))


@pytest.mark.parametrize(
    ("asked", "size"), [(60, (60, 40)), (120, (120, 80)), (5000, (300, 200)), ("original", (300, 200)), (1, (1, 1))]
)
def test_overlays_are_no_larger_than_asked_and_the_heat_lies_where_it_did(
    asked: Literal["original"] | int, size: tuple[int, int]
) -> None:
    image = image_of(noise(300, 200), Box(60, 30, 240, 180))
    heat = np.zeros((6, 6), dtype=np.float32)
    heat[1, 4] = 1
    painted = paint(image, heat, OverlayConfig(style="blend", colormap="gray", alpha=1, size=asked))
    assert painted.size == size
    if asked in (60, 120):
        scale, seen = 300 / size[0], np.asarray(painted)[..., 0].astype(float)
        seen[: size[1] // 6] = seen[:, : size[0] // 5 + 1] = 0  # above and beside what the model saw is noise
        seen[:, size[0] * 4 // 5 :] = 0
        y, x = np.argwhere(seen[: size[1] * 9 // 10] > 0.7 * 255).mean(axis=0) + 0.5
        assert abs(x * scale - (60 + 4.5 * 30)) <= scale
        assert abs(y * scale - (30 + 1.5 * 25)) <= scale


@pytest.mark.parametrize("size", ["original", "model"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_an_image_without_evidence_is_left_as_it_is(signed: bool, size: Literal["original", "model"]) -> None:
    image = image_of(noise(40, 30), Box(5, 0, 35, 30))
    config = OverlayConfig(size=size)
    painted = paint(image, np.zeros((4, 4), dtype=np.float32), config, signed)
    assert painted.tobytes() == (image.image if size == "original" else Image.fromarray(image.input)).tobytes()  # type: ignore[union-attr]


def test_evidence_that_only_speaks_against_the_class_is_shown() -> None:
    image = image_of(noise(40, 30), Box(5, 0, 35, 30))
    heat = np.full((4, 4), -1, dtype=np.float32)
    painted = np.asarray(paint(image, heat, OverlayConfig(style="blend", alpha=1), signed=True))
    assert (painted[:, 5:35] == np.rint(coloured("RdBu_r", np.zeros(1)))).all()


def records(out: Path) -> list[dict[str, Any]]:
    """Of a run."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("scale", ["image", "run"])
def test_one_range_for_the_run_or_for_each_map(camcli: Camcli, tmp_path: Path, scale: str) -> None:
    colours = "colormap: gray, signed_colormap: gray, alpha: 1"
    look = f"overlay={{style: blend, format: png, {colours}, size: model, scale: {scale}}}"
    settings = ["methods=[gradcam, guided-backprop]", "targets={top: 2}", "maps=npz", look]
    ended = camcli("run", SHAPES, "--limit", 3, "--out", tmp_path, *[w for s in settings for w in ("-s", s)])
    assert ended.code == 0, ended.err
    found = []
    for record in records(tmp_path):
        with np.load(tmp_path / record["maps"][0]) as arrays:
            for heatmap in record["heatmaps"]:
                heat = arrays[f"{heatmap['method']}.{heatmap['target']['index']}"].astype(np.float64)
                low, high = heatmap["raw_min"], heatmap["raw_max"]
                least = 0.0 if heatmap["signed"] else max(low, 0.0)
                raw = heat * (max(high, -low) if heatmap["signed"] else high - least) + least
                assert raw.max() == pytest.approx(high, rel=1e-5)
                found.append((heatmap, heat, raw))
    assert {heatmap["signed"] for heatmap, _, _ in found} == {True, False}
    for heatmap, heat, raw in found:
        alike = [np.abs(other).max() for one, _, other in found if one["method"] == heatmap["method"]]
        shown = raw / max(alike) if scale == "run" else heat
        if heatmap["signed"]:
            shown = ((1.6 * np.sign(shown) * np.sqrt(np.abs(shown))).clip(-1, 1) + 1) / 2
        expected, _ = spread(shown.astype(np.float32), Box(0, 0, 128, 128), 128, 128)
        painted = np.asarray(Image.open(tmp_path / heatmap["overlay"]), dtype=np.float64)[..., 0]
        assert np.abs(painted / 255 - expected).max() < 0.012


def test_raw_maps_keep_their_sign(camcli: Camcli, tmp_path: Path) -> None:
    kept = {}
    for kind in ("npz", "png16"):
        settings = ["methods=[guided-backprop, gradcam]", f"maps={kind}", "targets={top: 1}"]
        words = [word for setting in settings for word in ("-s", setting)]
        assert camcli("run", SHAPES, "--limit", 1, "--out", tmp_path / kind, *words).code == 0
        [kept[kind]] = records(tmp_path / kind)
    with np.load(tmp_path / "npz" / kept["npz"]["maps"][0]) as arrays:
        for heatmap, png in zip(kept["png16"]["heatmaps"], kept["png16"]["maps"], strict=True):
            heat = arrays[f"{heatmap['method']}.{heatmap['target']['index']}"]
            assert (heat.min() < -0.1) == heatmap["signed"]
            with Image.open(tmp_path / "png16" / png) as image:
                unit = np.asarray(image, dtype=np.float64) / 65535
            assert np.abs((2 * unit - 1 if heatmap["signed"] else unit) - heat).max() < 2e-5


def heatmap_of(method: str, **kwargs: Any) -> Heatmap:
    """Of no layer in particular."""
    heat = np.ones((2, 2), dtype=np.float32)
    return replace(Heatmap(method, "layer", TARGET, heat, 0.5, 1.5, False), **kwargs)


def test_concepts_take_the_colour_of_the_strongest_and_none_where_there_is_none() -> None:
    image = image_of(noise(320, 160), Box(0, 0, 320, 160))
    heat = np.zeros((2, 1, 4), dtype=np.float32)
    heat[0, 0], heat[1, 0] = [1, 0.4, 0, 0], [0.6, 1, 0, 0]
    legend = [("#ff0000", "first"), ("#0000ff", "second")]
    painted = np.asarray(concept_overlay(image, heat, legend, OverlayConfig(alpha=1)))
    assert painted[:160, :40].tolist() == np.broadcast_to((255, 0, 0), (160, 40, 3)).tolist()
    assert painted[80, 120].tolist() == pytest.approx([0, 0, 255], abs=8)
    grey = np.asarray(image.image.convert("L"))  # type: ignore[union-attr]
    assert (painted[:160, 280:320] == grey[:, 280:, None]).all()
    swatches = [tuple(painted[160 + 6 + 28 * i + 12, 12 + 8].tolist()) for i in range(2)]
    assert swatches == [(255, 0, 0), (0, 0, 255)]
    without = concept_overlay(image, np.zeros_like(heat), legend, OverlayConfig())
    assert without.crop((0, 0, 320, 160)).tobytes() == image.image.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("size", ["original", "model"])
def test_a_turned_portrait_is_painted_upright(
    tmp_path: Path, size: Literal["original", "model"], orientation: int
) -> None:
    upright = Image.new("RGB", (480, 720), (0, 60, 60))
    upright.paste((255, 0, 0), (60, 180, 120, 240))
    undo = {3: 3, 5: 5, 6: 2, 7: 6, 8: 4}
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    turned.save(tmp_path / "x.jpg", exif=exif, quality=95)
    preprocess = Preprocess((64, 64), (64, 64), (0, 0, 0), (1, 1, 1), "bilinear", "center")
    image = load_image(tmp_path / "x.jpg", preprocess, WHOLE if size == "original" else 0)
    assert (image.size, image.seen) == ((480, 720), Box(0, 120, 480, 600))
    engine = Engine(loaded(RedDetector(), preprocess), [LAYER], [METHODS.get("gradcam")])
    [answer] = engine.explain(torch.from_numpy(image.input)[None], lambda _: [Target(0)])
    assert isinstance(answer, Explanation)
    [heatmap] = answer.heatmaps
    config = OverlayConfig(style="blend", format="png", colormap="gray", alpha=1, size=size)
    (tmp_path / "o.png").write_bytes(encode(paint(image, heatmap.heat, config), config))
    painted = np.asarray(Image.open(tmp_path / "o.png"))[..., 0]
    assert painted.shape == ((720, 480) if size == "original" else (64, 64))
    hot = np.argwhere(painted[120:600] > 200) if size == "original" else np.argwhere(painted > 200) * 7.5
    middle = hot.mean(axis=0) + np.array((120, 0))
    assert np.abs(middle - [210, 90]).max() < 8
    assert np.abs(np.subtract(peak(heatmap.heat, image.seen, *image.size) or (0, 0), (90, 210))).max() <= 30
    box = hot_box(heatmap.heat, image.seen, *image.size)
    assert box is not None
    assert np.abs(np.subtract((box.x0, box.y0, box.x1, box.y1), (60, 180, 120, 240))).max() <= 16


def result_of(path: Path, *heatmaps: Heatmap) -> ImageResult:
    """As if these had been found for an image of 64 px."""
    return ImageResult(path.stem, str(path), (64, 64), Box(0, 0, 64, 64), (TARGET,), heatmaps, state_of(path))


def paint_files(out: Path, look: OverlayConfig, *results: ImageResult) -> None:
    """As the last stages of a run do."""
    engine = Engine(loaded(RedDetector()), [LAYER], [METHODS.get("gradcam")])
    with RunDir(out) as folder:
        painter = Painter(RunConfig(overlay=look), engine, folder, "f" * 64, Stopwatch())
        explained = (Explained(result) for result in results)
        shown = in_one_range(explained) if painter.one_range else explained
        files = Files(painter, Budget(1 << 30), Stopwatch())
        assert not any(isinstance(found, Failure) for found in paint_all(shown, files.write, 1, Stopwatch()))
        assert len(list((out / "reports").iterdir())) == len(results)


def test_a_map_that_shows_nothing_does_not_set_the_range_of_the_run(tmp_path: Path) -> None:
    heats = {"shown": np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4), "empty": np.zeros((4, 4), np.float32)}
    results = []
    for name, heat in heats.items():
        noise(64, 64).save(tmp_path / f"{name}.png")
        heatmap = heatmap_of("gradcam", heat=heat, raw_min=0.0, raw_max=1.0)
        if name == "empty":
            heatmap = replace(heatmap, raw_min=100.0, raw_max=100.0, empty=True)
        results.append(result_of(tmp_path / f"{name}.png", heatmap))

    paint_files(
        tmp_path / "out", OverlayConfig(style="blend", format="png", colormap="gray", alpha=1, scale="run"), *results
    )
    painted = np.asarray(Image.open(tmp_path / "out" / "overlays" / "shown.gradcam.3-star.png"))
    assert painted.max() == 255
    untouched = Image.open(tmp_path / "out" / "overlays" / "empty.gradcam.3-star.png")
    assert untouched.tobytes() == noise(64, 64).tobytes()


def painted(tmp_path: Path, look: OverlayConfig, *heatmaps: Heatmap) -> list[Pixels]:
    """The overlays of one 64 px image with these heatmaps, as a run paints them."""
    noise(64, 64).save(tmp_path / "x.png")
    paint_files(tmp_path / "out", look, result_of(tmp_path / "x.png", *heatmaps))
    names = [f"x.{heatmap.method}.3-star.png" for heatmap in heatmaps]
    return [np.asarray(Image.open(tmp_path / "out" / "overlays" / name)) for name in names]


def test_a_map_that_is_nowhere_zero_keeps_its_lowest_value_in_the_range_of_the_run(tmp_path: Path) -> None:
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    look = OverlayConfig(style="blend", format="png", colormap="gray", alpha=1, scale="run")
    [shown] = painted(tmp_path, look, heatmap_of("gradcam", heat=heat, raw_min=1.0, raw_max=2.0))
    assert 126 <= shown.min() <= 130
    assert shown.max() == 255


def test_each_overlay_of_an_image_is_painted_on_the_image_itself(tmp_path: Path) -> None:
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    look = OverlayConfig(format="png", alpha=0.5)
    first, second = heatmap_of("gradcam", heat=heat), heatmap_of("layercam", heat=heat[::-1].copy())
    _, shown = painted(tmp_path, look, first, second)
    alone = paint(image_of(noise(64, 64), Box(0, 0, 64, 64), 64), second.heat, look)
    assert np.array_equal(shown, np.asarray(alone))
