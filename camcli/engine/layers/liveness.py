"""At how many locations a tensor gets a gradient: what a rectifier lets through changes with image and class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from camcli.engine.layers.layout import Layout
from camcli.engine.layers.probe import CALIBRATING, Size, images
from camcli.engine.layers.trace import Place, visiting

NEARLY_ALL = 0.9
NEARLY_NONE = 0.05
CLASSES = 4


def live_locations(layout: Layout, gradient: Tensor) -> Tensor:
    """[B] share of the locations in which any channel of `gradient` [B, ...] is not zero."""
    return layout.to_maps(gradient != 0).any(1).float().mean((1, 2))


def live_channels(layout: Layout, gradient: Tensor) -> int:
    """In how many channels `gradient` is not zero everywhere."""
    return int(layout.to_maps(gradient != 0).any(0).flatten(1).any(1).sum())


def live_shares(module: nn.Module, size: Size, layouts: Mapping[Place, Layout]) -> dict[Place, Tensor]:
    """[classes, images] `live_locations` at each place, for the CLASSES likeliest classes of some synthetic images."""
    edges: dict[Place, GradientEdge] = {}

    def visit(place: Place, tensor: Tensor) -> None:
        if place in layouts and tensor.requires_grad and tensor.shape[0] == CALIBRATING:
            edges[place] = get_gradient_edge(tensor)

    with torch.enable_grad(), visiting(module, visit):
        logits = module(images(module, size).requires_grad_(True).clone())
        scores = logits.topk(min(CLASSES, logits.shape[1]), dim=1).values.sum(0)
    shares: dict[Place, list[Tensor]] = {place: [] for place in edges}
    for score in scores:
        found = torch.autograd.grad(score, list(edges.values()), retain_graph=True, allow_unused=True)
        for place, gradient in zip(edges, found, strict=True):
            nothing = torch.zeros(CALIBRATING)
            shares[place].append(nothing if gradient is None else live_locations(layouts[place], gradient).cpu())
    return {place: torch.stack(rows) for place, rows in shares.items()}
