"""The embedded default: a small network that we trained ourselves, so that a first run needs no download.

It names the shapes in a picture, any number of them at once: every label has its own sigmoid.
`scenes` draws the pictures, `train` made the weights, `evaluate` prints how good they are.
"""

from __future__ import annotations

from pathlib import Path

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
ARCH = "test_resnet"
KWARGS = {"output_stride": 8}
SIZE = 128
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
WEIGHTS = Path(__file__).with_name("model.safetensors")
