"""Kept maps, in bytes that a browser can colour."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST = 56


def packed(heat: NDArray[np.float32], signed: bool) -> dict[str, Any]:
    """`heat` [h,w] in at most 56x56 bytes: 0..1 as 0..255, or -1..1 as 1..255 about 128 where it is `signed`."""
    small = _at_most(heat)
    levels = np.rint(128 + 127 * small) if signed else np.rint(255 * small)
    return {"size": small.shape, "data": base64.b64encode(levels.astype(np.uint8).tobytes()).decode()}


def _at_most(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over areas where the map has more than `LARGEST` rows or columns."""
    h, w = (min(side, LARGEST) for side in heat.shape)
    if (h, w) == heat.shape:
        return heat
    return np.asarray(Image.fromarray(heat).resize((w, h), Image.Resampling.BOX))
