"""Deep feature factorisation: the factorisation against scikit-learn's, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camcli.engine.methods.factors import concepts_of, weights_of
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


def test_nothing_readable_is_an_error(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    ended = camcli("dff", tmp_path, "--out", tmp_path / "out")
    assert (ended.code, "nothing to factorise" in ended.err) == (5, True)
