"""Deep feature factorisation: the factorisation against scikit-learn's, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from camcli.analysis.concepts import cells_of, spread
from camcli.demo.scenes import scene
from camcli.engine.methods.factors import concepts_of, weights_of
from camcli.images.decode import LoadedImage
from camcli.images.find import Item
from camcli.models.demo import LABELS
from camcli.render.concepts import concept_overlay
from tests.conftest import SHAPES, Ended


def cells(count: int = 120, channels: int = 30, rank: int = 4) -> torch.Tensor:
    """Non-negative [count,channels]: `rank` sparse parts and a little noise."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(count, rank, generator=generator) * (torch.rand(count, rank, generator=generator) > 0.5)
    parts = torch.rand(rank, channels, generator=generator) * (torch.rand(rank, channels, generator=generator) > 0.6)
    return weights @ parts + 0.01 * torch.rand(count, channels, generator=generator)


def test_factors_are_non_negative_and_as_near_as_those_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    data = cells()
    concepts = concepts_of(data, 4)
    weights = weights_of(data, concepts)
    assert concepts.shape == (4, 30)
    assert concepts.min() >= 0
    assert weights.min() >= 0
    ours = float((data - weights @ concepts).norm())
    theirs = decomposition.NMF(4, init="nndsvda", max_iter=1000).fit(data.numpy()).reconstruction_err_
    assert ours < 1.02 * theirs


def test_the_planted_parts_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.zeros(3, 12)
    for i in range(3):
        parts[i, 4 * i : 4 * i + 4] = 1 + torch.rand(4, generator=generator)
    data = torch.rand(60, 3, generator=generator) @ parts
    found = concepts_of(data, 3)
    cosines = found @ (parts / parts.norm(dim=1, keepdim=True)).T
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2]
    assert cosines.amax(1).min() > 0.99


def test_the_command_finds_concepts_that_raise_the_shapes(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for file in sorted(SHAPES.glob("*"))[:6]:
        Image.open(file).convert("RGB").save(tmp_path / "in" / f"{file.stem}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"not an image")
    ended = camcli("dff", tmp_path / "in", "--out", tmp_path / "out", "-k", 3, "--json")
    assert ended.code == 1
    found = json.loads(ended.out)
    assert found == json.loads((tmp_path / "out" / "concepts.json").read_text())
    assert len({concept["colour"] for concept in found["concepts"]}) == 3
    assert any(concept["classes"] for concept in found["concepts"])
    assert all(c["raised"] > 0 for concept in found["concepts"] for c in concept["classes"])
    assert [failure["id"] for failure in found["failures"]] == ["broken.png"]
    for image in found["images"]:
        assert len(image["mean_heat"]) == 3
        with Image.open(tmp_path / "out" / image["overlay"]) as overlay, Image.open(image["source"]) as source:
            assert overlay.width >= source.width
            assert overlay.height > source.height
            below = np.asarray(overlay.convert("RGB"), dtype=int)[: source.height, : source.width]
            grey = np.asarray(source.convert("L"), dtype=int)[..., None]
            tinted = np.abs(below - grey).max(axis=-1) > 30
        assert tinted.any() == (max(image["mean_heat"]) > 0.01)


def test_cells_keep_the_order_of_rows_and_lose_what_is_negative() -> None:
    activations = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = cells_of(activations)
    assert found.shape == (40, 3)
    assert torch.equal(found[20 + 2 * 5 + 3], activations[1, :, 2, 3].clamp_min(0))


def test_a_sample_is_spread_over_all_images() -> None:
    items = [Item(str(number), Path(str(number))) for number in range(10)]
    assert [item.id for item in spread(items, 5)] == ["0", "2", "4", "6", "8"]
    assert spread(items, 20) == items


def test_a_concept_is_hot_where_its_shape_is(
    camcli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heats: list[NDArray[np.float32]] = []

    def noted(loaded: LoadedImage, heat: NDArray[np.float32], *rest: Any) -> Image.Image:
        heats.append(heat)
        return concept_overlay(loaded, heat, *rest)

    monkeypatch.setattr("camcli.analysis.concepts.concept_overlay", noted)
    (tmp_path / "in").mkdir()
    masks: list[NDArray[np.bool_]] = []
    for index in range(6):
        drawn = scene(5, index, labels=[LABELS.index("star" if index % 2 else "ring")])
        Image.fromarray(drawn.image).save(tmp_path / "in" / f"{index}.png")
        masks += dict(drawn.shapes).values()
    ended = camcli("dff", tmp_path / "in", "--out", tmp_path / "out", "-k", 4, "--json")
    concepts = [[c["label"] for c in concept["classes"]] for concept in json.loads(ended.out)["concepts"]]
    [star] = [number for number, labels in enumerate(concepts) if labels[:1] == ["star"]]
    for heat, mask in zip(heats[1::2], masks[1::2], strict=True):
        assert np.asarray(Image.fromarray(heat[star]).resize(mask.shape))[mask].mean() > 2 * heat[star].mean()


def test_nothing_readable_is_an_error(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    ended = camcli("dff", tmp_path, "--out", tmp_path / "out")
    assert (ended.code, "nothing to factorise" in ended.err) == (5, True)
