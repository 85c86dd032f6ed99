"""The page of a run folder: what it holds, what a build costs, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from camcli.analysis.page.build import build
from camcli.analysis.page.chunks import SIZE, arranged, stamp
from camcli.analysis.page.heat import packed
from camcli.analysis.page.rows import flags_of, key_of
from camcli.analysis.page.store import Store
from camcli.results.report import line_of_record
from camcli.results.run import open_run
from tests.conftest import SHAPES, Ended

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Camcli = Callable[..., Ended]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
HOSTILE = [
    "<script>hacked=1<.png",
    "\" onerror=hacked=1 '><img src=x>.png",
    "\u202egnp.exe.png",
    "a&amp;%3Cb%3E#?.png",
    os.fsdecode(b"\xff.png"),
]
BROKEN = "broken</script>.png"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over twelve shapes, five files with hostile names, and one that is no image; two methods by two targets."""
    from camcli import load_config, run

    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(SHAPES, folder / "in")
    for name in HOSTILE:
        shutil.copy(SHAPES / "01-circle-star.jpg", folder / "in" / name)
    (folder / "in" / "broken<").mkdir()
    (folder / "in" / BROKEN).write_text("no image")
    config = load_config(None, ["maps=npz", "methods=[gradcam,layercam]", "targets={top: 2}"]).config
    run(config, [folder / "in"], folder / "out")
    build(folder / "out")
    return folder / "out"


def data(out: Path, kind: str, number: int = 0) -> Any:
    """A chunk of the page's data, read as a browser would: what its one call gets."""
    text = (out / "report" / "data" / f"{kind}-{number}.js").read_text()
    return json.loads(text[text.index("{") if kind == "overview" else text.index("[") : text.rindex(")")])


def test_the_page_says_what_the_records_say(out: Path) -> None:
    run = open_run(out)
    details = {detail["record"]["id"]: detail for detail in data(out, "detail")}
    rows = {row["id"]: row for chunk in data(out, "rows") for row in chunk}
    assert details.keys() == rows.keys() == run.ledger.entries.keys()
    for record in run.records():
        row, detail = rows[record.id], details[record.id]
        assert detail["record"] == json.loads(line_of_record(record))
        assert row["l"] == record.predictions[0].label
        assert row["p"] == pytest.approx(record.predictions[0].probability, abs=1e-6)
        heat = np.frombuffer(base64.b64decode(detail["heat"][1]["data"]), dtype=np.uint8)
        assert np.abs(heat.reshape(detail["heat"][1]["size"]) / 255 - run.heat(record, 1)).max() <= 0.5 / 255 + 1e-6
    [failure] = run.failures()
    assert rows[failure.id]["e"] == failure.kind
    said = data(out, "overview")
    assert (said["done"], said["failed"], sum(said["histogram"])) == (17, 1, 17)


def test_a_thumbnail_holds_the_image_and_its_overlays_side_by_side(out: Path) -> None:
    run = open_run(out)
    record = next(record for record in run.records() if record.id == "12-star.png")
    row = next(row for chunk in data(out, "rows") for row in chunk if row["id"] == record.id)
    with Image.open(out / row["u"]) as sheet:
        tiles = np.asarray(sheet.convert("RGB"), dtype=float)
    assert row["t"] == 1 + len(record.heatmaps) == 5
    sources = [Path(record.source), *(out / heatmap.overlay for heatmap in record.heatmaps)]
    for source, tile in zip(sources, np.split(tiles, row["t"], axis=1), strict=True):
        with Image.open(source) as image:
            small = image.convert("RGB").resize((tile.shape[1], tile.shape[0]), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(small, dtype=float) - tile).mean() < 8


def test_a_page_names_nothing_outside_its_folder(out: Path) -> None:
    texts = [(out / "index.html").read_text(), *(path.read_text() for path in (out / "report").glob("*.*"))]
    for text in texts:
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    for detail in data(out, "detail"):
        if "image" in detail:
            assert all((out / name).exists() for name in [detail["image"]])
    assert len(texts[0]) < 200_000


def test_building_again_writes_only_what_changed(camcli: Camcli, tmp_path: Path) -> None:
    shutil.copytree(SHAPES, tmp_path / "in")
    (tmp_path / "in" / "12-star.png").unlink()
    assert camcli("run", tmp_path / "in", "--out", tmp_path / "out").code == 0
    assert build(tmp_path / "out").fresh == 11
    thumbs = {path: path.stat().st_ino for path in (tmp_path / "out" / "report" / "thumbs").rglob("*.webp")}
    assert build(tmp_path / "out").fresh == 0
    shutil.copy(SHAPES / "12-star.png", tmp_path / "in")
    (tmp_path / "in" / "01-circle-star.jpg").unlink()
    assert camcli("run", tmp_path / "in", "--out", tmp_path / "out").code == 0
    built = build(tmp_path / "out")
    now = {path: path.stat().st_ino for path in (tmp_path / "out" / "report" / "thumbs").rglob("*.webp")}
    assert built.fresh == 1
    assert len(now) == built.images == len(open_run(tmp_path / "out"))
    assert len(now.items() & thumbs.items()) == len(now) - 1
    assert {row["id"] for chunk in data(tmp_path / "out", "rows") for row in chunk} == set(
        open_run(tmp_path / "out").ledger.entries
    )


@pytest.mark.parametrize("damage", ["state.json", "data/rows-0.js"])
def test_a_damaged_page_is_built_anew(out: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    before = (copy / "report" / "data" / "rows-0.js").read_bytes()
    (copy / "report" / damage).write_text("{")
    build(copy)
    assert (copy / "report" / "data" / "rows-0.js").read_bytes() == before


def test_details_that_are_gone_are_built_anew(out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    before = (copy / "report" / "data" / "detail-0.js").read_bytes()
    (copy / "report" / "data" / "detail-0.js").unlink()
    assert build(copy).fresh == 0
    assert (copy / "report" / "data" / "detail-0.js").read_bytes() == before


def test_another_look_and_another_place_of_an_image_are_changes(out: Path) -> None:
    entry = next(iter(open_run(out).ledger.entries.values()))
    assert stamp(entry, "1") == stamp(replace(entry, offset=7), "1")
    for other in (replace(entry, look="other"), replace(entry, source="/elsewhere/a.png")):
        assert stamp(other, "1") != stamp(entry, "1")


@pytest.mark.parametrize("size", ["original", "60", "model"])
def test_a_thumbnail_shows_no_caption(camcli: Camcli, tmp_path: Path, size: str) -> None:
    (tmp_path / "in").mkdir()
    for name, sides in (("narrow.png", (90, 200)), ("wide.png", (500, 300))):
        Image.new("RGB", sides, "purple").save(tmp_path / "in" / name)
    look = f"overlay={{style: blend, caption: true, size: {size}, alpha: 0, format: png}}"
    assert camcli("run", tmp_path / "in", "--out", tmp_path / "out", "-s", look, "--report").code == 0
    for row in (row for chunk in data(tmp_path / "out", "rows") for row in chunk):
        with Image.open(tmp_path / "out" / row["u"]) as sheet:
            tiles = np.split(np.asarray(sheet.convert("RGB"), dtype=int), row["t"], axis=1)
        wrong = [(np.abs(tile - (128, 0, 128)).max(axis=2) > 40).mean() for tile in tiles]
        bars = 1 - min(row["w"], row["h"]) / max(row["w"], row["h"]) if size == "model" else 0
        assert row["t"] == 2
        assert wrong == pytest.approx([0, bars], abs=0.03)


def test_images_stay_in_their_chunk_and_new_ones_come_behind() -> None:
    first, _ = arranged([], {f"{i:04}": i for i in range(2 * SIZE + 5)})
    assert [len(chunk) for chunk in first] == [SIZE, SIZE, 5]
    stamps = {name: number for chunk in first for name, number in chunk.items()}
    second, stale = arranged(first, {**stamps, "0000a": 1, "0150": -1})
    assert stale == [1, 2]
    assert list(second[2]) == [*first[2], "0000a"]
    del stamps["0007"]
    assert arranged(first, stamps)[1] == [0]


def test_large_maps_are_means_of_areas() -> None:
    heat = np.random.default_rng(0).random((112, 224), dtype=np.float32)
    found = packed(heat, signed=False)
    assert found["size"] == (56, 56)
    small = np.frombuffer(base64.b64decode(found["data"]), dtype=np.uint8).reshape(56, 56) / 255
    assert np.abs(small - heat.reshape(56, 2, 56, 4).mean(axis=(1, 3))).max() < 0.01


def test_what_is_no_run_has_no_page(camcli: Camcli, tmp_path: Path) -> None:
    ended = camcli("report", tmp_path)
    assert ended.code == 2
    assert "no run folder" in ended.err
    assert list(tmp_path.iterdir()) == []
    assert "name a FILE with --single-file" in camcli("report", tmp_path, "--only", "failed").err


def test_a_page_is_not_built_through_a_link(out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("report"))
    (tmp_path / "elsewhere").mkdir()
    (copy / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="leads out of"):
        build(copy)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_building_needs_no_torch(out: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from camcli.analysis.page.build import build; "
        "build(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, out], check=True)


def test_a_single_file_holds_what_was_chosen(camcli: Camcli, out: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("12-star.png\n03-ring-triangle.jpg\n")
    ended = camcli("report", out, "--single-file", tmp_path / "one.html", "--only", tmp_path / "ids.txt")
    assert ended.code == 0
    assert "one.html: 2 images" in ended.err
    text = (tmp_path / "one.html").read_text()
    assert "12-star.png" in text
    assert "01-circle-star.jpg" not in text
    assert "report/" not in text.split("<main")[0]
    ended = camcli("report", out, "--single-file", tmp_path / "none.html", "--only", "confident")
    assert ended.code == 2
    assert "neither one of failed, unsure, flagged nor a file of ids" in ended.err


def test_a_list_of_ids_may_be_any_that_lists_are(camcli: Camcli, out: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf12-star.png\n# 01-circle-star.jpg\n\n\xff.png\n")
    file = tmp_path / "new" / "some.html"
    ended = camcli("report", out, "--single-file", file, "--only", tmp_path / "ids.txt")
    assert (ended.code, "some.html: 2 images" in ended.err) == (0, True), ended.err
    assert "01-circle-star.jpg" not in file.read_text()


def test_a_run_builds_its_page_when_asked(camcli: Camcli, tmp_path: Path) -> None:
    assert camcli("run", SHAPES, "--out", tmp_path / "out", "--limit", 2, "--report").code == 0
    assert len(data(tmp_path / "out", "detail")) == 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="the page is tried in a browser through playwright")
    if CHROMIUM is None:
        pytest.skip("the page is tried in Chromium, which is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, out: Path) -> Iterator[Page]:
    """The page in a tab that notes every complaint, and every request that leaves the folder."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append(dialog.message))
    inside = f"file://{out}/"
    tab.on("request", lambda request: None if request.url.startswith((inside, "data:")) else wrong.append(request.url))
    tab.goto(f"{inside}index.html")
    tab.wait_for_selector(".figures")
    yield tab
    assert wrong == []
    assert tab.evaluate("window.hacked") is None
    context.close()


def names(page: Page) -> list[str]:
    """The paths of the tiles in sight, in their order."""
    page.wait_for_selector(".tiles.virtual .tile, .wait")
    shown = page.locator(".tiles.virtual .tile")
    found = {int(tile.get_attribute("data-index") or 0): tile.locator(".path").inner_text() for tile in shown.all()}
    return [found[index] for index in sorted(found)]


def go(page: Page, address: str) -> None:
    """Follow an address within the page, until it is shown."""
    page.evaluate(
        "address => new Promise(done => { const drawn = () => requestAnimationFrame(() => requestAnimationFrame(done));"
        "if (location.hash === address) drawn();"
        "else { addEventListener('hashchange', drawn, { once: true }); location.hash = address } })",
        address,
    )


def test_the_first_view_counts(page: Page) -> None:
    figures = [text.replace("\n", " ") for text in page.locator(".figure").all_inner_texts()]
    assert figures[:2] == ["17 images explained", "1 failed"]
    assert page.locator(".histogram rect").count() == 20


def test_every_filter_and_sort_does_what_it_says(page: Page, out: Path) -> None:
    records = {record.id: record for record in open_run(out).records()}
    go(page, "#/images")
    assert len(names(page)) == 18
    go(page, "#/images?status=failed")
    assert len(names(page)) == 1
    go(page, "#/images?q=star 12")
    assert names(page) == ["12-star.png"]
    by_probability = sorted(records, key=lambda name: records[name].predictions[0].probability)
    go(page, "#/images?sort=least&status=done")
    probabilities = page.locator(".tile .number").all_inner_texts()
    assert [float(text[:-1]) for text in probabilities] == pytest.approx(
        [100 * records[name].predictions[0].probability for name in by_probability], abs=0.06
    )
    bound = records[by_probability[8]].predictions[0].probability
    go(page, f"#/images?to={bound - 1e-4}")
    assert len(names(page)) == sum(r.predictions[0].probability <= bound - 1e-4 for r in records.values())
    index = records["12-star.png"].predictions[0].index
    go(page, f"#/images?class={index}")
    assert len(names(page)) == sum(r.predictions[0].index == index for r in records.values())
    go(page, "#/images?margin=0")
    assert page.locator(".wait").inner_text() == "No image matches."
    page.locator("#find").fill("circle")
    page.wait_for_function("() => location.hash.includes('q=circle')")


def test_hostile_names_are_text(page: Page) -> None:
    go(page, "#/images")
    shown = names(page)
    assert "<script>hacked=1<.png" in shown
    assert "\\u202egnp.exe.png" in shown
    for name in HOSTILE:
        go(page, f"#/image/{key_of(name)}")
        page.wait_for_selector("canvas.heat")
        page.wait_for_function("() => document.querySelector('.canvas img').naturalWidth > 0")
    go(page, f"#/image/{key_of(BROKEN)}")
    page.wait_for_selector(".message")


def test_an_image_is_seen_with_its_heat_at_any_opacity(page: Page) -> None:
    go(page, f"#/image/{key_of('12-star.png')}")
    page.wait_for_selector("canvas.heat")
    strongest = (
        "() => { const c = document.querySelector('canvas.heat'); "
        "const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
        "return Math.max(...pixels.filter((value, i) => i % 4 == 3)) }"
    )
    page.locator("[name=opacity]").fill("1")
    full = page.evaluate(strongest)
    page.locator("[name=opacity]").fill("0.2")
    assert full == 255
    assert page.evaluate(strongest) == pytest.approx(51, abs=2)
    page.locator("h1").click()
    page.keyboard.press("m")
    page.wait_for_selector(".marks .peak")
    page.keyboard.press("o")
    page.wait_for_function("() => !document.querySelector('canvas.heat')")
    assert page.locator(".choices button").count() == 4
    page.locator(".choices button").nth(3).click()
    page.wait_for_function("() => location.hash.includes('index=')")


def test_the_heat_lies_where_the_overlay_has_it(page: Page, out: Path) -> None:
    """The page's own painting peaks where the record says."""
    record = next(record for record in open_run(out).records() if record.id == "12-star.png")
    go(page, f"#/image/{key_of(record.id)}")
    page.wait_for_selector("canvas.heat")
    place = page.evaluate(
        "() => { const c = document.querySelector('canvas.heat'), f = document.querySelector('.canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let best = 0, at = 0;"
        "for (let i = 3; i < d.length; i += 4) if (d[i] > best) { best = d[i]; at = (i - 3) / 4 }"
        "const r = c.getBoundingClientRect(), s = f.getBoundingClientRect();"
        "return [(r.left - s.left + (at % c.width + .5) / c.width * r.width) / s.width,"
        "(r.top - s.top + (Math.floor(at / c.width) + .5) / c.height * r.height) / s.height] }"
    )
    peak = record.heatmaps[0].peak
    assert peak is not None
    assert place[0] * record.width == pytest.approx(peak[0], abs=0.08 * record.width)
    assert place[1] * record.height == pytest.approx(peak[1], abs=0.08 * record.height)


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.keyboard.press("i")
    page.wait_for_selector(".tiles.virtual .tile")
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    focused = "document.activeElement.dataset.index"
    assert page.evaluate(focused) == "1"
    page.keyboard.press("Enter")
    page.wait_for_selector(".stage")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.steps .number').textContent.startsWith('3 of')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".tiles.virtual .tile")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1


def test_a_link_shows_what_its_sender_saw(browser: Browser, page: Page, out: Path) -> None:
    go(page, "#/images?sort=least&q=png&show=image")
    before = names(page)
    other = browser.new_page()
    other.goto(page.url)
    other.wait_for_selector(".tiles.virtual .tile")
    assert names(other) == before
    assert other.locator("[name=show]").input_value() == "image"
    other.close()


def test_a_class_shows_its_images_and_mean_heat(page: Page) -> None:
    go(page, "#/classes")
    page.locator(".class-bar").first.click()
    page.wait_for_selector(".mean canvas")
    assert "Mean heat of" in page.locator(".mean").inner_text()


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three concepts of five shapes, the third of which is nowhere in some."""
    from camcli import load_config, run

    folder = tmp_path_factory.mktemp("concepts")
    config = load_config(None, ["maps=npz", "methods=dff", "options.dff.concepts=3"]).config
    run(config, sorted(SHAPES.iterdir())[:5], folder / "out")
    build(folder / "out")
    return folder / "out"


def test_a_page_of_concepts_tells_them_apart(concepts: Path) -> None:
    run, said = open_run(concepts), data(concepts, "overview")
    assert said["concepts"] == [concept.label for concept in run.concepts]
    records = {record.id: record for record in run.records()}
    for row in (row for chunk in data(concepts, "rows") for row in chunk):
        heatmaps = records[row["id"]].heatmaps
        assert row["x"] == [["dff", None, 0], ["dff", None, 1], ["dff", None, 2]]
        assert ("empty" in row["f"]) == all(heatmap.empty for heatmap in heatmaps)
        some = replace(records[row["id"]], heatmaps=(replace(heatmaps[0], empty=True), *heatmaps[1:]))
        none = replace(some, heatmaps=tuple(replace(heatmap, empty=True) for heatmap in heatmaps))
        assert ("empty" in flags_of(some), "empty" in flags_of(none)) == (False, True)


def test_each_concept_is_reached_and_none_is_taken_for_a_class(browser: Browser, concepts: Path) -> None:
    tab, run = browser.new_page(), open_run(concepts)
    record = next(run.records())
    tab.goto(f"file://{concepts}/index.html#/image/{key_of(record.id)}")
    tab.wait_for_selector("canvas.heat")
    assert tab.locator(".choices button").count() == 3
    for index, concept in enumerate(run.concepts):
        tab.locator(".choices button").nth(index).click()
        tab.wait_for_function(
            f"document.querySelector('.choices [aria-pressed=true]') && location.hash.endsWith({index})"
        )
        tab.wait_for_function(
            "text => document.querySelector('.facts h2').textContent === text",
            arg=f"dff · concept {index}: {concept.label}",
        )
    go(tab, f"#/class/{record.predictions[0].index}")
    tab.wait_for_selector(".tile")
    assert tab.locator(".mean").count() == 0
    tab.close()


def test_two_that_want_one_chunk_both_get_it(page: Page) -> None:
    asked = "() => Promise.all([0, 1].map(() => camcli.detail(camcli.rows[0]))).then((found) => found.length)"
    assert page.evaluate(asked) == 2


def test_what_comes_late_does_not_replace_what_was_gone_to_since(page: Page) -> None:
    first, second = key_of("12-star.png"), key_of("03-ring-triangle.jpg")
    page.evaluate(
        "() => { const real = camcli.detail; let calls = 0; camcli.detail = async (row) => "
        "(await new Promise((then) => setTimeout(then, calls++ ? 0 : 300)), real(row)) }"
    )
    go(page, f"#/image/{first}")
    go(page, f"#/image/{second}")
    page.wait_for_timeout(500)
    assert page.locator("h1").inner_text() == "03-ring-triangle.jpg"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Browser, out: Path, scheme: Any) -> None:
    """WCAG 2.2 AA: a contrast of at least 4.5 for all text."""
    tab = browser.new_page(color_scheme=scheme)
    for address in ("#/", "#/images", f"#/image/{key_of('12-star.png')}", "#/classes"):
        tab.goto(f"file://{out}/index.html{address}")
        tab.wait_for_selector(".figures, .tile, .stage, .bars")
        tab.wait_for_timeout(100)
        worst = tab.evaluate(CONTRAST)
        assert worst["ratio"] >= 4.5, worst
    tab.close()


CONTRAST = """() => {
  const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  let worst = {ratio: 99};
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const own = walk.currentNode.parentElement;
    const apart = own.closest('.unseen, .skip, [disabled], .off, script, noscript');
    if (!walk.currentNode.data.trim() || !own.checkVisibility() || apart) continue;
    let behind = own;
    while (behind && (rgb(getComputedStyle(behind).backgroundColor)[3] === 0)) behind = behind.parentElement;
    const ground = getComputedStyle(behind ?? document.body).backgroundColor;
    const [a, b] = [light(rgb(getComputedStyle(own).color)), light(rgb(ground))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst.ratio) worst = {ratio, text: walk.currentNode.data, of: own.className};
  }
  return worst;
}"""


def test_ten_thousand_images_stay_few_elements(browser: Browser, out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    store = Store(copy)
    [row, *_] = [row for chunk in store.read_chunk("rows", 0) for row in chunk if "u" in row]
    chunks = [
        [{**row, "k": f"{i:08x}", "id": f"{i:05}.png"} for i in range(at, at + 100)] for at in range(0, 10_000, 100)
    ]
    for number in range(5):
        store.write_chunk("rows", number, chunks[20 * number : 20 * number + 20])
    store.write_chunk("overview", 0, {**data(copy, "overview"), "bundles": 5})
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.goto(f"file://{copy}/index.html#/images?size=small")
    tab.wait_for_function("() => document.querySelector('.tally')?.textContent === '10,000 images'")
    for share in (0, 0.3, 0.7, 1):
        tab.evaluate("share => scrollTo(0, share * document.body.scrollHeight)", share)
        tab.wait_for_timeout(80)
        assert tab.evaluate("document.querySelectorAll('*').length") <= 2000
    assert "09999.png" in names(tab)
    tab.close()


def test_it_fits_a_phone(browser: Browser, out: Path) -> None:
    tab = browser.new_page(viewport={"width": 360, "height": 740})
    for address in ("#/", "#/images", f"#/image/{key_of('12-star.png')}", "#/classes"):
        tab.goto(f"file://{out}/index.html{address}")
        tab.wait_for_selector(".figures, .tile, .stage, .bars")
        tab.wait_for_timeout(100)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.close()


def test_a_single_file_needs_no_other(browser: Browser, camcli: Camcli, out: Path, tmp_path: Path) -> None:
    assert camcli("report", out, "--single-file", tmp_path / "one.html").code == 0
    tab = browser.new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: asked.append(message.text))
    tab.goto(f"file://{tmp_path}/one.html#/image/{key_of('12-star.png')}")
    tab.wait_for_selector("canvas.heat")
    tab.wait_for_function("() => document.querySelector('.canvas img').naturalWidth > 0")
    assert [address for address in asked if not address.startswith("data:")] == [f"file://{tmp_path}/one.html"]
    tab.close()


def test_firefox_shows_it_too(out: Path, tmp_path: Path) -> None:
    if FIREFOX is None:
        pytest.skip("the page is tried in Firefox, which is not installed")
    picture = tmp_path / "firefox.png"
    command = [
        FIREFOX,
        "--headless",
        "--profile",
        str(tmp_path),
        "--window-size",
        "1200,900",
        "--screenshot",
        str(picture),
    ]
    subprocess.run([*command, f"file://{out}/index.html"], check=True, capture_output=True, timeout=120)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    bars = (np.abs(pixels - (59, 130, 196)).max(axis=2) <= 3).sum()
    assert bars > 500
