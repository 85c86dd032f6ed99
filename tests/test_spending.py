"""Forward passes are spent on what is asked alone: no method runs for copies that fill up a batch, nor twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from camcli.config.schema import OptionsConfig
from camcli.engine.engine import Engine, Explanation
from camcli.engine.layers import resolve_layer
from camcli.engine.methods import METHODS
from camcli.engine.targets import Target
from tests.conftest import Ended, loaded, save_image
from tests.test_engine import pixels
from tests.test_run import TINY

SIDE = 32
PATCHES = 4
FROM_LOGITS = ("scorecam", "iscam", "sscam", "ablationcam", "reciprocam", "occlusion", "rise")
COSTLY = (*FROM_LOGITS, "integrated-gradients", "smoothgrad")
OPTIONS = OptionsConfig(chunk=4, patch=16, stride=16, steps=6, samples=6, max_channels=12, masks=6)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each forward pass of any engine had."""
    found: list[int] = []
    network = Engine.network

    def counting(self: Engine, inputs: Tensor) -> Tensor:
        found.append(len(inputs))
        return network(self, inputs)

    monkeypatch.setattr(Engine, "network", counting)
    return found


def engine(*names: str) -> Engine:
    """A small residual network with random weights."""
    torch.manual_seed(0)
    model = loaded(timm.create_model("test_resnet", num_classes=5).eval(), classes=5)
    methods = [METHODS.get(name) for name in names]
    return Engine(model, [resolve_layer(model.module, (SIDE, SIDE))], methods, options=OPTIONS)


def spent(
    rows: list[int], engine: Engine, batch: Tensor, wanted: Sequence[list[int]], count: int | None = None
) -> tuple[int, list[Explanation]]:
    """Rows beside the batch's own forward pass, when each image is asked its `wanted` classes; and the answers."""
    rows.clear()
    targets = iter(wanted)
    answers = engine.explain(batch, lambda _: [Target(index) for index in next(targets)], count)
    assert rows[0] == len(batch)
    return sum(rows[1:]), [answer for answer in answers if isinstance(answer, Explanation)]


@pytest.mark.parametrize("name", COSTLY)
def test_rows_that_ask_nothing_cost_nothing(rows: list[int], name: str) -> None:
    """Neither copies at the end of a batch nor images without a target; the numbers are those of the full batch."""
    found, batch = engine(name), pixels(4, SIDE)
    each, full = spent(rows, found, batch, [[1]] * 4)
    filled, [first] = spent(rows, found, batch, [[1]], count=1)
    sparse, answers = spent(rows, found, batch, [[], [1], [], []])
    separate = [spent(rows, found, batch, [[1] if i == j else [] for j in range(4)])[0] for i in range(4)]
    assert (filled, sparse) == (separate[0], separate[1])
    assert all(0 < one < each for one in separate)
    assert [len(answer.heatmaps) for answer in answers] == [0, 1, 0, 0]
    assert np.array_equal(first.heatmaps[0].heat, full[0].heatmaps[0].heat)
    assert np.array_equal(answers[1].heatmaps[0].heat, full[1].heatmaps[0].heat)


def test_score_cam_costs_nothing_beside_the_whole_masks_of_its_integral(rows: list[int]) -> None:
    batch = pixels(2, SIDE)
    alone, _ = spent(rows, engine("iscam"), batch, [[1]] * 2)
    both, answers = spent(rows, engine("scorecam", "iscam"), batch, [[1]] * 2)
    assert both == alone > 0
    _, single = spent(rows, engine("scorecam"), batch, [[1]] * 2)
    assert np.array_equal(answers[1].heatmaps[0].heat, single[1].heatmaps[0].heat)


@pytest.mark.parametrize("name", FROM_LOGITS)
def test_a_second_target_costs_no_forward_pass_where_logits_serve_both(rows: list[int], name: str) -> None:
    found, batch = engine(name), pixels(2, SIDE)
    once, _ = spent(rows, found, batch, [[1], [1]])
    twice, answers = spent(rows, found, batch, [[1, 2], [1, 2]])
    assert twice == once > 0
    _, other = spent(rows, found, batch, [[2], [2]])
    for both, alone in zip(answers, other, strict=True):
        assert np.array_equal(both.heatmaps[1].heat, alone.heatmaps[0].heat)


@pytest.mark.parametrize("name", ["guided-backprop", "fullgrad"])
def test_gradients_are_taken_in_chunks_of_one_size_and_only_where_asked(rows: list[int], name: str) -> None:
    """Six images in chunks of at most four are two of three; with five, a copy fills up the second."""
    found, batch = engine(name), pixels(6, SIDE)
    _, full = spent(rows, found, batch, [[1]] * 6)
    assert rows[1:] == [3, 3]
    _, answers = spent(rows, found, batch, [[]] * 4 + [[1], []])
    assert rows[1:] == [3]
    assert np.array_equal(answers[4].heatmaps[0].heat, full[4].heatmaps[0].heat)
    _, [*_, last] = spent(rows, found, batch[[0, 1, 2, 3, 4]], [[1]] * 5)
    assert rows[1:] == [3, 3]
    assert np.array_equal(last.heatmaps[0].heat, full[4].heatmaps[0].heat)


def test_a_run_that_does_not_fill_its_last_batch_pays_for_its_images_alone(
    camcli: Callable[..., Ended], rows: list[int], tmp_path: Path
) -> None:
    for seed in range(5):
        save_image(tmp_path / "in" / f"{seed}.png", 40, 40, seed)
    totals = {}
    for method in ("gradcam", "occlusion"):
        rows.clear()
        words = (*TINY, "-s", "input.size=32", "-s", "options={patch: 16, stride: 16}", "-s", f"methods={method}")
        more = ("-s", "runtime.batch_size=4", "--threads", "1")
        assert camcli("run", tmp_path / "in", "--out", tmp_path / method, *words, *more).code == 0
        totals[method] = sum(rows)
    assert totals["gradcam"] >= 8
    assert totals["occlusion"] - totals["gradcam"] == 5 * PATCHES
