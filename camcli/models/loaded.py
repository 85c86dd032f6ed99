"""What every model source hands over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from camcli.images.preprocess import Preprocess


@dataclass(frozen=True, slots=True)
class Entry:
    """One model that a source knows; input_size is [height, width] px, parameters None where it was not asked for.

    tags: what its published weights are called, as in `resnet50.a1_in1k`.
    """

    source: str
    name: str
    pretrained: bool
    cached: bool
    input_size: tuple[int, int]
    parameters: int | None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A classifier ready to explain: module maps float32 [B,C,H,W] to logits [B,K], in eval mode and frozen.

    C: as many as `preprocess` has channels.
    labels: one for each of the K classes.
    weights: where they came from, for the manifest; weights_sha256 is None for random ones.
    code, code_sha256: the Python file that built the module, where it is the user's.
    notes: what was unwrapped to come to them, and whatever else a user should know.
    """

    module: nn.Module
    source: str
    name: str
    labels: tuple[str, ...]
    activation: Literal["softmax", "sigmoid"]
    preprocess: Preprocess
    weights: str
    weights_sha256: str | None
    notes: tuple[str, ...] = ()
    code: str | None = None
    code_sha256: str | None = None

    @contextmanager
    def in_colour(self) -> Iterator[nn.Module]:
        """Inside, the module takes [B,3,H,W], whatever channels its inputs have: to look at it as at any other."""
        grey = self.preprocess.channels == 1
        handle = self.module.register_forward_pre_hook(_to_grey) if grey else None
        try:
            yield self.module
        finally:
            if handle:
                handle.remove()


def _to_grey(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].mean(dim=1, keepdim=True), *args[1:])
