"""Masks that are searched for: the objective is the formula, and every step lowers it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from camcli.engine.engine import Engine
from camcli.engine.methods.igos import Problem, Search, SearchBoth, minimised
from camcli.engine.targets import Target
from tests.test_engine import pixels
from tests.test_methods import CLASSES, engine_for, heatmaps

SIDE = 7


def problem(masks: int, **options: Any) -> tuple[Engine, Problem]:
    """Of two images and their targets, with few steps."""
    engine = engine_for("igos")
    about = engine.forward(engine.normalise(pixels(2)))
    weights = torch.eye(CLASSES)[[1, 3]]
    batch, _ = engine.views(about, weights)
    told = (Search if masks == 1 else SearchBoth).model_validate({"side": SIDE, "steps": 3, **options})
    return engine, Problem.of(batch, batch.inputs, weights, told, masks)


def naive(engine: Engine, found: Problem, masks: Tensor, row: int) -> float:
    """The objective of one row, a forward pass at a time."""
    options, x, b = found.options, found.image[row], found.baseline[row]
    label = int(found.target_weights[row].argmax())

    def mean_p(mask: Tensor, kept: Tensor, other: Tensor) -> float:
        large = F.interpolate(mask[None, None], (64, 64), mode="bilinear", align_corners=True)[0]
        total = 0.0
        for step in range(options.steps):
            t = (step + 1) / options.steps
            image = kept * large * t + other * (1 - large * t) + found.jitter[step]
            total += float(engine.module(image[None]).softmax(1)[0, label]) / options.steps
        return total

    def squares(m: Tensor) -> float:
        return float(((m[:, 1:] - m[:, :-1]) ** 2).mean() + ((m[1:] - m[:-1]) ** 2).mean())

    m = masks[row].prod(0)
    hidden = options.l1 * float((1 - m).mean())
    if found.masks == 1:
        return mean_p(m, x, b) + hidden + options.tv * squares(m)
    d, i = (F.interpolate(one[None, None], (64, 64), mode="bilinear", align_corners=True)[0, 0] for one in masks[row])
    scores = mean_p(masks[row, 0], x, b) - mean_p(masks[row, 1], b, x)
    scores += _large_p(engine, found, d * i, row, label)
    return scores / 2 + hidden + options.tv * squares(m)


def _large_p(engine: Engine, found: Problem, large: Tensor, row: int, label: int) -> float:
    """Deletion less insertion of a mask at the image's size."""
    x, b, total = found.image[row], found.baseline[row], 0.0
    for step in range(found.options.steps):
        t = (step + 1) / found.options.steps
        for sign, kept, other in ((1, x, b), (-1, b, x)):
            image = kept * large * t + other * (1 - large * t) + found.jitter[step]
            total += sign * float(engine.module(image[None]).softmax(1)[0, label]) / found.options.steps
    return total


@pytest.mark.parametrize("masks", [1, 2])
def test_the_objective_is_the_formula(masks: int) -> None:
    engine, found = problem(masks, bilateral=False)
    drawn = torch.rand(2, masks, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    for row in range(2):
        assert float(found.objective(drawn)[row]) == pytest.approx(naive(engine, found, drawn, row), abs=1e-4)


def test_the_bilateral_variation_costs_less_where_the_image_has_an_edge() -> None:
    _, found = problem(1, bilateral=True, tv=1.0, l1=0.0)
    step = torch.ones(2, 1, SIDE, SIDE)
    step[..., SIDE // 2 :] = 0
    flat = Problem.of(found.batch, torch.zeros_like(found.image), found.target_weights, found.options, 1)
    edge = torch.zeros_like(found.image)
    edge[..., 32:] = 1
    edged = Problem.of(found.batch, edge, found.target_weights, found.options, 1)
    assert (edged._regular(step) < flat._regular(step)).all()


@pytest.mark.parametrize("masks", [1, 2])
def test_the_gradient_is_that_of_the_objective(masks: int) -> None:
    _, found = problem(masks)
    generator = torch.Generator().manual_seed(1)
    at = 0.2 + 0.6 * torch.rand(2, masks, SIDE, SIDE, generator=generator)
    along = torch.randn(at.shape, generator=generator)
    expected = (found.objective(at + 5e-3 * along) - found.objective(at - 5e-3 * along)) / 1e-2
    assert torch.allclose((found.gradient(at) * along).sum(dim=(1, 2, 3)), expected, rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("masks", [1, 2])
def test_the_objective_falls_at_every_step_that_is_taken(masks: int) -> None:
    _, found = problem(masks, l1=0.01, tv=0.5)
    reached = [minimised(found, steps) for steps in range(9)]
    path = [found.objective(masks) for masks in reached]
    assert torch.equal(reached[0], found.start())
    assert all((after <= before).all() for before, after in pairwise(path))
    assert sum(int((after < before).sum()) for before, after in pairwise(path)) >= 6
    assert (path[-1] < path[0]).all()
    assert all(((masks >= 0) & (masks <= 1)).all() for masks in reached)


@pytest.mark.parametrize("name", ["igos", "igos++"])
def test_the_same_images_give_the_same_bytes_in_any_company(name: str) -> None:
    """Rows that ask nothing, other targets and a second run change no bit."""
    engine = engine_for(name)
    [first, second, _] = heatmaps(engine, pixels(3), [1])
    again = heatmaps(engine_for(name), pixels(3), [1])
    assert np.array_equal(first[0].heat, again[0][0].heat)
    assert not first[0].empty
    wanted = iter([[], [Target(1)], []])
    alone = engine.explain(pixels(3), lambda _: next(wanted))[1]
    assert np.array_equal(second[0].heat, alone.heatmaps[0].heat)  # type: ignore[union-attr]


def test_a_noise_baseline_is_no_image() -> None:
    _, found = problem(1, baseline="noise")
    assert torch.equal(found.baseline[0], found.baseline[1])
    assert abs(float(found.baseline.std()) - 1) < 0.05
