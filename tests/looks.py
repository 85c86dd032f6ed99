"""Twenty photographs beside each other: the image, overlays at one opacity (`style: blend`), and those of today.

    python -m tests.looks [FOLDER]     writes before-after.jpg, styles.jpg and grid.jpg there (default: out-looks)

Needs the ImageNet weights that `tests/test_real_weights.py` needs, and shows crops of `sample_images/photos`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import camcli
from camcli.config.file import config_of
from camcli.config.schema import OverlayConfig
from camcli.pipeline.explainer import Explanation
from camcli.render.grid import grid, tile
from tests.conftest import PHOTOS, REAL_WEIGHTS

WIDTH, GAP = 300, 6
# Parts of the image: left, top, right, bottom.
CROPS = ((0, 0, 1, 1), (0, 0, 0.7, 0.8), (0.3, 0.2, 1, 1), (0.15, 0.1, 0.75, 0.9), (0.2, 0, 0.9, 0.6))
BEFORE = {"style": "blend", "colormap": "turbo"}
MODELS = (
    {"source": "timm", "name": "mobilenetv2_100", "kwargs": {"pad_type": "same"}},
    {"source": "torchvision", "name": "squeezenet1_0"},
)


def crops() -> list[Image.Image]:
    """Five of each photograph."""
    found = []
    for path in sorted(path for path in PHOTOS.iterdir() if path.suffix in (".jpg", ".png")):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for left, top, right, bottom in CROPS:
            size = image.width, image.height
            found.append(image.crop((*_at(left, top, size), *_at(right, bottom, size))))
    return found


def _at(x: float, y: float, size: tuple[int, int]) -> tuple[int, int]:
    return int(x * size[0]), int(y * size[1])


def explained(images: Sequence[Image.Image], methods: Sequence[str] = ("gradcam",)) -> list[Explanation]:
    """By both models in turn."""
    found: list[list[Explanation]] = []
    for model in MODELS:
        weights = str(REAL_WEIGHTS / f"{model['name']}.safetensors")
        half = {"mean": [0.5] * 3, "std": [0.5] * 3} if model["source"] == "timm" else {}
        config = config_of({"model": {**model, "weights": weights}, "methods": list(methods), "input": half})
        found.append(camcli.Explainer(config)(images))
    return [found[i % 2][i] for i in range(len(images))]


def sheet(rows: Sequence[Sequence[Image.Image]], columns: int) -> Image.Image:
    """Each row's images beside each other, `columns` rows in a line."""
    blocks = [[image.resize((WIDTH, round(WIDTH * image.height / image.width))) for image in row] for row in rows]
    lines = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    heights = [max(image.height for block in line for image in block) + GAP for line in lines]
    across = columns * (len(rows[0]) * WIDTH + 3 * GAP)
    whole = Image.new("RGB", (across, sum(heights)), "white")
    y = 0
    for line, height in zip(lines, heights, strict=True):
        for i, block in enumerate(line):
            for j, image in enumerate(block):
                whole.paste(image, (i * across // columns + j * WIDTH, y))
        y += height
    return whole


def main(folder: Path) -> None:
    """Write the sheets."""
    folder.mkdir(parents=True, exist_ok=True)
    found = explained(crops())
    pairs = [[one.image, one.overlay(0, **BEFORE), one.overlay()] for one in found]
    sheet(pairs, 2).save(folder / "before-after.jpg", quality=88)
    styles = [
        [one.overlay(style=style, caption=True) for style in ("heat", "blend", "spotlight", "contours")]
        for one in found[::3]
    ]
    sheet(styles, 1).save(folder / "styles.jpg", quality=88)
    [first] = explained(crops()[5:6], ("gradcam", "layercam", "gradcam++", "eigencam", "hirescam"))
    tiles = [tile(first.overlay(i), first.heatmaps) for i in range(len(first.heatmaps))]
    look = OverlayConfig()
    grid(tile(first.image, first.heatmaps), first.heatmaps, tiles, look, {}).save(folder / "grid.jpg", quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out-looks"))
