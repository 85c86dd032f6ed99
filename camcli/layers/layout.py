"""How an activation tensor is read as a grid over the picture, and where in the model it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

LayoutKind = Literal["nchw", "nhwc", "tokens"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Reads [B,C,h,w], [B,h,w,C] or [B,prefix+h*w+rest,C] as [B,C,h,w].

    grid: rows and columns of the result.
    transposed: the tensor holds columns before rows.
    """

    kind: LayoutKind
    grid: tuple[int, int]
    prefix: int = 0
    transposed: bool = False

    @property
    def channel_axis(self) -> int:
        """The axis of the tensor that holds channels."""
        return {"nchw": 1, "nhwc": 3, "tokens": 2}[self.kind]

    def to_maps(self, activation: Tensor) -> Tensor:
        """[B,C,h,w] view of `activation`."""
        maps = self._as_stored(activation)
        return maps.transpose(2, 3) if self.transposed else maps

    def _as_stored(self, activation: Tensor) -> Tensor:
        """[B,C,first,second]: the two spatial axes in the tensor's own order."""
        if self.kind == "nchw":
            return activation
        if self.kind == "nhwc":
            return activation.permute(0, 3, 1, 2)
        first, second = self.grid[::-1] if self.transposed else self.grid
        cells = activation[:, self.prefix : self.prefix + first * second]
        return cells.reshape(cells.shape[0], first, second, cells.shape[2]).permute(0, 3, 1, 2)


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
    """Where maps are read: one tap, or several parallel ones whose maps are merged after resizing."""

    taps: tuple[Tap, ...]

    @property
    def name(self) -> str:
        """The module paths, as reports show them."""
        return " + ".join(tap.path for tap in self.taps)
