"""What the page of a run costs: building it, building it again, its size, and how quickly a browser shows it.

    python -m tests.benchmarks.page                   1,000 and 10,000 images
    python -m tests.benchmarks.page --images 100000

Every image has a thumbnail of its own, made from a demo scene of 500x375 pixels and its overlay.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from camcli import load_config, run
from camcli.analysis.page.build import build
from camcli.demo.scenes import scene

SCENES = 40
FRAMES = """async () => {
  const times = [], all = document.body.scrollHeight;
  for (let i = 0, last = performance.now(); i < 60; i++) {
    scrollTo(0, all * i / 60);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  return times.sort((a, b) => a - b)[57];
}"""


def folder_of(images: int, place: Path) -> Path:
    """A run folder with `images` records: those of some scenes over and over under other ids."""
    source, out = place / "in", place / "out"
    source.mkdir()
    for i in range(SCENES):
        Image.fromarray(scene(0, i, 500, 375).image).save(source / f"{i:02}.jpg", quality=90)
    run(load_config(None, ["maps=npz"]).config, [source], out)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    with (out / "results.jsonl").open("w") as file:
        for i in range(images):
            file.write(json.dumps({**lines[i % len(lines)], "id": f"{i:06}.jpg"}) + "\n")
    return out


def seconds(work: Any) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_browser(out: Path, images: int) -> tuple[float, float]:
    """Seconds to the first view, and the 95th percentile of the milliseconds of a frame while scrolling."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto("about:blank")
        start = time.perf_counter()
        tab.goto(f"file://{out}/index.html", wait_until="commit")
        tab.wait_for_selector(".figures")
        first = time.perf_counter() - start
        tab.goto(f"file://{out}/index.html#/images")
        tab.wait_for_function(f"() => document.querySelector('.tally')?.textContent === '{images:,} images'")
        frames = float(tab.evaluate(FRAMES))
        browser.close()
    return first, frames


def row(images: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as place:
        out = folder_of(images, Path(place))
        first = seconds(lambda: build(out))
        again = seconds(lambda: build(out))
        lines = (out / "results.jsonl").read_text().splitlines()
        more = [json.dumps({**json.loads(lines[0]), "id": f"new-{i}.jpg"}) for i in range(10)]
        (out / "results.jsonl").write_text("\n".join([*lines, *more]) + "\n")
        ten = seconds(lambda: build(out))
        size = sum(path.stat().st_size for path in (out / "report").rglob("*") if path.is_file()) / 2**20
        page = (out / "index.html").stat().st_size / 1000
        view, frame = in_browser(out, images + 10)
    built = f"{first:.1f} s, {images / first:.0f}/s | {again:.2f} s | {ten:.2f} s | {size:.0f} MiB | {page:.1f} kB"
    return f"| {images:,} | {built} | {view:.2f} s | {frame:.0f} ms |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    print("| images | build | again | ten more | report/ | index.html | first view | frame, p95 |")
    print("|---|---|---|---|---|---|---|---|")
    for images in parser.parse_args().images:
        print(row(images), flush=True)


if __name__ == "__main__":
    main()
