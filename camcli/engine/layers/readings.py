"""Every way in which a shape could be read as a grid over the image."""

from __future__ import annotations

from collections.abc import Iterator

from camcli.engine.layers.layout import Layout

MAX_EXTRA_TOKENS = 16
Size = tuple[int, int]


def readings(shape: tuple[int, ...], size: Size) -> list[Layout]:
    """Layouts that fit `shape` (without the batch axis) for an image of `size` (H, W), likelier ones first."""
    return list(_of_maps(shape, size) if len(shape) == 3 else _of_tokens(shape[0], size))


def _of_maps(shape: tuple[int, ...], size: Size) -> Iterator[Layout]:
    """[C,h,w] and [h,w,C]."""
    if _covers((shape[1], shape[2]), size):
        yield Layout("nchw", (shape[1], shape[2]))
    if _covers((shape[0], shape[1]), size):
        yield Layout("nhwc", (shape[0], shape[1]))


def _of_tokens(count: int, size: Size) -> Iterator[Layout]:
    """Grids of `count` tokens less up to MAX_EXTRA_TOKENS, which stand before the grid or behind it."""
    for extra in range(MAX_EXTRA_TOKENS + 1):
        for grid in _grids(count - extra, size):
            for prefix in sorted({0, extra}, reverse=True):
                yield Layout("tokens", grid, prefix)


def _grids(count: int, size: Size) -> Iterator[Size]:
    """Factorisations of `count` with the proportions of the image."""
    for rows in range(2, count // 2 + 1):
        if count % rows == 0 and _covers((rows, count // rows), size):
            yield rows, count // rows


def _covers(grid: Size, size: Size) -> bool:
    """At least 2 x 2 locations, which some stride gives for both axes of the image, rounded down or up."""
    sides = list(zip(grid, size, strict=True))
    if any(n < 2 or n > pixels for n, pixels in sides):
        return False
    strides = [pixels / n for n, pixels in sides]
    rounded_down = max(pixels / (n + 1) for n, pixels in sides) < min(strides)
    rounded_up = max(strides) < min(pixels / (n - 1) for n, pixels in sides)
    return rounded_down or rounded_up
