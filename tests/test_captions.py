"""What stands below overlays, and sheets that show all maps of an image."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder  # type: ignore[import-untyped]
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camcli.config.schema import OverlayConfig
from camcli.records import Box, Heatmap, Prediction
from camcli.render import text
from camcli.render.caption import GROUND, bar_of, captioned
from camcli.render.grid import blocks, columns_of, grid, tile
from camcli.render.styles import PALE, STYLES, layer_of
from tests.conftest import SHAPES, Ended
from tests.test_overlays import heatmap_of, noise, records

Camcli = Callable[..., Ended]
LOOK = OverlayConfig()


def strip(heatmap: Heatmap, width: int = 600, config: OverlayConfig = LOOK, top: float = 0.0) -> NDArray[np.uint8]:
    """What stands below an image of that width."""
    image = noise(width, 50)
    sheet = captioned(image, heatmap, config, top)
    left = (sheet.width - width) // 2
    assert sheet.crop((left, 0, left + width, 50)).tobytes() == image.tobytes()
    return np.asarray(sheet)[50:]


def of(label: str, probability: float = 0.25) -> Heatmap:
    """A heatmap of a class."""
    return heatmap_of("gradcam", target=Prediction(3, label, probability, 1.0))


def test_a_caption_says_class_probability_method_layer_and_range() -> None:
    plain = strip(of("star"))
    others = [
        of("starling"),
        of("star", 0.26),
        heatmap_of("layercam"),
        heatmap_of("gradcam", layer="other"),
        heatmap_of("gradcam", raw_max=9.0),
        heatmap_of("gradcam", raw_min=0.9),
        heatmap_of("gradcam", target=None),
        heatmap_of("gradcam", against=Prediction(1, "ring", 0.1, 0.0)),
        heatmap_of("gradcam", empty=True),
        heatmap_of("gradcam", signed=True),
    ]
    assert len({strip(heatmap).tobytes() for heatmap in (of("star"), *others)}) == 1 + len(others)
    assert np.array_equal(plain, strip(heatmap_of("gradcam", target=Prediction(9, "star, or so", 0.25, 2.0))))
    ranges = {"raw_min": -1.0, "raw_max": 3.0}
    assert np.array_equal(
        strip(heatmap_of("gradcam", **ranges)), strip(heatmap_of("gradcam", raw_min=0.0, raw_max=3.0))
    )
    assert np.array_equal(strip(heatmap_of("gradcam", **ranges), top=7), strip(heatmap_of("gradcam"), top=7))
    empty = {strip(heatmap_of("gradcam", empty=True, raw_max=high)).tobytes() for high in (0.0, 9.0)}
    assert len(empty) == 1


@pytest.mark.parametrize("width", [8, 64, 224, 500, 1280, 3000])
def test_the_text_of_a_caption_is_neither_tiny_nor_huge_and_stays_on_it(width: int) -> None:
    shown = strip(of("x" * 300), width)
    ink: NDArray[np.bool_] = np.asarray((shown < 128).any(axis=(1, 2)))
    assert 12 * 2 <= len(shown) <= 30 * 4
    assert ink.any()
    assert not ink[-2:].any()
    assert not (shown[:, -3:] < 128).any()
    assert (shown[:, : shown.shape[1] // 2] < 128).any()


def test_a_colour_bar_has_the_colours_of_the_map() -> None:
    def saturated(config: OverlayConfig, signed: bool = False) -> NDArray[np.int_]:
        shown = strip(heatmap_of("gradcam", signed=signed), config=config).astype(int)
        return np.asarray(shown[np.ptp(shown, axis=2) > 60])

    assert len(saturated(OverlayConfig(style="spotlight"))) == 0
    blue_and_red = saturated(LOOK, signed=True)
    assert (blue_and_red[:, 0] > blue_and_red[:, 2]).any()
    assert (blue_and_red[:, 0] < blue_and_red[:, 2]).any()
    assert len(saturated(OverlayConfig(style="contours"))) < len(saturated(LOOK)) / 5


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("style", ["heat", "blend", "spotlight"])
def test_a_colour_of_the_bar_is_the_one_that_is_painted_for_its_value(style: Any, signed: bool) -> None:
    config = OverlayConfig(style=style, alpha=None if style == "spotlight" else 1.0)
    bar = bar_of(heatmap_of("gradcam", signed=signed), config).colours
    assert bar is not None

    def painted(value: float, ground: str) -> NDArray[np.float64]:
        layer = layer_of(np.full((4, 4), value, dtype=np.float32), signed, Box(0, 0, 64, 64), config)
        shown = STYLES[style](Image.new("RGB", (64, 64), ground), layer)
        return np.asarray(shown.getpixel((32, 32)), dtype=np.float64)

    for value in np.linspace(-1 if signed else 0, 1, 52):
        shown, through = painted(value, GROUND), 0.0
        if style == "heat":  # cold heat is as good as glass: its colour is what the ground has no part in
            shown = painted(value, "black")
            grounds = (PALE * 255, 255.0) if signed else (0.0, 255.0)
            through = float(np.mean(painted(value, "white") - shown)) / (grounds[1] - grounds[0])
            shown = (shown - through * grounds[0]) / max(1 - through, 1e-6)
        shade = np.asarray(bar)[0, round(255 * ((value + 1) / 2 if signed else value))]
        assert through > 0.7 or np.abs(shade - shown).max() <= 10, value


@pytest.mark.parametrize(
    "label", ["кошка", "γάτα", "قطة", "猫", "แมว", "🐱", "a\nb\x00\u202e\ud800", "", ",", " ", "x" * 100_000]
)
def test_any_label_can_stand_in_a_caption(label: str) -> None:
    assert (strip(of(label)) < 128).any()


def test_what_is_too_long_is_cut_and_ends_in_dots() -> None:
    assert text.cut("short", 16, 500) == "short"
    cut = text.cut("w" * 100_000, 16, 100)
    assert cut.endswith("…")
    assert text.length(cut, 16) <= 100 < text.length(f"w{cut}", 16)


def test_a_script_that_the_own_font_lacks_is_written_in_an_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (900, 700), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupOS2()
    builder.setupNameTable({"familyName": "Cat", "styleName": "Regular"})
    builder.setupPost()
    file = io.BytesIO()
    builder.save(file)
    (tmp_path / "cat.ttf").write_bytes(file.getvalue())
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(text, "_FOLDERS", (str(tmp_path),))
    for cached in (text._installed, text._font_file):
        cached.cache_clear()
    sheet = Image.new("L", (60, 40), "white")
    text.write_line(ImageDraw.Draw(sheet), (0, 0), "猫", 20, "black", 60)
    for cached in (text._installed, text._font_file):
        cached.cache_clear()
    black = np.argwhere(np.asarray(sheet) < 64)
    assert np.ptp(black, axis=0).tolist() == pytest.approx([13, 17], abs=1)
    assert len(black) == pytest.approx(14 * 18, rel=0.15)


def places(sheet: NDArray[np.uint8], shown: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Where `shown` is in `sheet`: (y, x)."""
    h, w = shown.shape[:2]
    fit = sheet[: len(sheet) - h + 1, : sheet.shape[1] - w + 1]
    ys, xs = np.nonzero((fit == shown[0, 0]).all(axis=-1))
    for y, x in np.random.default_rng(0).integers(0, (h, w), (20, 2)).tolist():
        same = (sheet[ys + y, xs + x] == shown[y, x]).all(axis=-1)
        ys, xs = ys[same], xs[same]
    maybe = zip(ys.tolist(), xs.tolist(), strict=True)
    return [(y, x) for y, x in maybe if (sheet[y : y + h, x : x + w] == shown).all()]


@pytest.mark.parametrize("told", [None, False], ids=["told", "plain"])
@pytest.mark.parametrize("size", [(320, 200), (640, 640), (1000, 20)], ids=str)
@pytest.mark.parametrize(("count", "rows"), [(1, [2]), (4, [5]), (5, [3, 3]), (11, [4, 4, 4])])
def test_a_grid_shows_the_image_and_each_map_whole_and_apart(
    size: tuple[int, int], count: int, rows: list[int], told: bool | None
) -> None:
    heatmaps = [heatmap_of(f"m{i}") for i in range(count)]
    shown = [tile(noise(*size, seed=i), heatmaps) for i in range(count + 1)]
    sheet = np.asarray(grid(shown[0], heatmaps, shown[1:], OverlayConfig(caption=told), {}))
    assert sheet.shape[1] <= 1920
    found = [places(sheet, np.asarray(image)) for image in shown]
    assert [len(one) for one in found] == [1] * len(shown)
    order = [one[0] for one in found]
    assert order == sorted(order)
    assert [sum(y == top for y, _ in order) for top in sorted({y for y, _ in order})] == rows
    free, (h, w) = np.ones(sheet.shape[:2], dtype=bool), np.asarray(shown[0]).shape[:2]
    for y, x in order:
        assert free[y : y + h, x : x + w].all()
        free[y : y + h, x : x + w] = False
    inked = free & (sheet != 255).any(axis=-1)
    assert inked.any() == (told is None)
    for y, x in order if told is None else ():
        assert inked[y + h : y + h + 28, x : x + max(w, 100)].any()


def test_a_grid_has_a_block_for_each_target_and_maps_of_no_class_in_all() -> None:
    other = Prediction(1, "ring", 0.1, 0.0)
    first, second = heatmap_of("gradcam"), heatmap_of("gradcam", target=other)
    none, last = heatmap_of("eigencam", target=None), heatmap_of("layercam")
    assert blocks([first, second, none, last]) == [[0, 2, 3], [1, 2]]
    assert blocks([none]) == [[0]]
    assert columns_of([first, second, none, last]) == 4
    shown = [tile(noise(320, 200, i), [first, second, none, last]) for i in range(5)]
    sheet = np.asarray(grid(shown[0], [first, second, none, last], shown[1:], LOOK, {}))
    assert [len(places(sheet, np.asarray(image))) for image in shown] == [2, 1, 1, 2, 1]


def test_a_run_leaves_one_sheet_for_an_image_with_all_its_overlays(camcli: Camcli, tmp_path: Path) -> None:
    look = "overlay={format: png, grid: true, size: model, caption: false}"
    settings = ["methods=[gradcam, layercam]", "targets={top: 2}", look]
    words = [word for setting in settings for word in ("-s", setting)]
    assert camcli("run", SHAPES, "--limit", 1, "--out", tmp_path, *words).code == 0
    [record] = records(tmp_path)
    assert record["grids"] == ["overlays/01-circle-star.jpg.grid.png"]
    with Image.open(tmp_path / record["grids"][0]) as image:
        sheet = np.asarray(image.convert("RGB"))
    maps = [heatmap_of(heatmap["method"], target=Prediction(**heatmap["target"])) for heatmap in record["heatmaps"]]
    found = []
    for heatmap in record["heatmaps"]:
        with Image.open(tmp_path / heatmap["overlay"]) as image:
            found += places(sheet, np.asarray(tile(image.convert("RGB"), maps)))
    assert len(found) == len(record["heatmaps"]) == 4
    assert len({y for y, _ in found}) == 2


def height_of(path: Path) -> int:
    """In pixels."""
    with Image.open(path) as image:
        return image.height


def test_captions_lie_below_overlays_when_asked_and_always_in_grids(camcli: Camcli, tmp_path: Path) -> None:
    heights = {}
    for name, caption in (("default", "null"), ("told", "true"), ("untold", "false")):
        look = f"overlay={{grid: true, caption: {caption}}}"
        assert camcli("run", SHAPES, "--limit", 1, "--out", tmp_path / name, "-s", look).code == 0
        [record] = map(json.loads, (tmp_path / name / "results.jsonl").read_text().splitlines())
        files = record["heatmaps"][0]["overlay"], record["grids"][0]
        heights[name] = [height_of(tmp_path / name / file) for file in files]
    assert heights["told"][0] > heights["default"][0] == heights["untold"][0]
    assert heights["told"][1] == heights["default"][1] > heights["untold"][1]
