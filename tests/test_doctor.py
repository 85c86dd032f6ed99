"""The doctor tells a healthy installation from a broken one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from camcli.models import demo
from tests.conftest import Ended

Camcli = Callable[..., Ended]


def test_a_healthy_installation(camcli: Camcli) -> None:
    ended = camcli("doctor", "--json")
    assert ended.code == 0, ended.out
    found = json.loads(ended.out)
    assert found["check"]["scenes"] == 50
    assert found["check"]["pointing_game"] > 0.9
    assert {"python", "camcli", "torch", "timm"} <= found["versions"].keys()
    assert "cpu" in found["devices"]
    assert found["caches"].keys() == {"timm", "torchvision"}


def test_a_model_that_sees_nothing_is_not_healthy(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = timm.create_model(demo.ARCH, num_classes=len(demo.LABELS), **demo.KWARGS).state_dict()
    save_file(untrained, tmp_path / "untrained.safetensors", {"seed": "0"})
    monkeypatch.setattr("camcli.models.demo.WEIGHTS", tmp_path / "untrained.safetensors")
    ended = camcli("doctor")
    assert ended.code == 1
    assert "NOT healthy" in ended.out


def test_weights_that_are_gone_are_named(camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camcli.models.demo.WEIGHTS", tmp_path / "gone.safetensors")
    ended = camcli("doctor")
    assert ended.code == 1
    assert "gone.safetensors" in ended.out


def test_the_size_of_a_cache_counts_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from camcli.cli.doctor import caches

    blobs = tmp_path / "hub" / "checkpoints" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "a").write_bytes(b"x" * 100)
    (blobs.parent / "link").symlink_to(blobs / "a")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert caches()["torchvision"] == (str(blobs.parent), 100)
