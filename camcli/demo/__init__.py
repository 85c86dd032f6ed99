"""The embedded default: a small network that we trained ourselves, so that a first run needs no download.

It names the shapes in a picture, any number of them at once: every label has its own sigmoid.
`scenes` draws the pictures, `train` made the weights, `evaluate` prints how good they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

LABELS = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "heart",
    "crescent",
    "hexagon",
    "arrow",
    "semicircle",
    "bolt",
)
ARCHS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("test_resnet", {"output_stride": 8}),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 128, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 2},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 128, "window_size": 8, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [1, 2, 4]},
    ),
}
ARCH, KWARGS = ARCHS["resnet"]
SIZE = 128
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
WEIGHTS = Path(__file__).with_name("model.safetensors")
