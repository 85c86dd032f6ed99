"""How an activation tensor is read as a grid over the image, and where in the model it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

LayoutKind = Literal["nchw", "nhwc", "tokens"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Reads [B,C,h,w], [B,h,w,C] or [B,prefix+h*w+rest,C] as [B,C,h,w]; grid is (h, w)."""

    kind: LayoutKind
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def channel_axis(self) -> int:
        """The axis of the tensor that holds channels."""
        return {"nchw": 1, "nhwc": 3, "tokens": 2}[self.kind]

    def to_maps(self, activation: Tensor) -> Tensor:
        """[B,C,h,w] view of `activation`."""
        if self.kind == "nchw":
            return activation
        if self.kind == "nhwc":
            return activation.permute(0, 3, 1, 2)
        h, w = self.grid
        locations = activation[:, self.prefix : self.prefix + h * w]
        return locations.reshape(locations.shape[0], h, w, locations.shape[2]).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Tap:
    """One tensor of a forward pass: the `call`-th output of the module at `path`.

    item: keys that lead to the tensor inside a tuple, list or dict output; empty for a plain tensor.
    """

    path: str
    layout: Layout
    call: int = 0
    item: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """Where maps are read: one tap, or several parallel ones whose maps are merged after resizing.

    note: what a user should know of it, empty where there is nothing.
    """

    taps: tuple[Tap, ...]
    note: str = ""

    @property
    def name(self) -> str:
        """The module paths, as reports show them."""
        return " + ".join(tap.path for tap in self.taps)
