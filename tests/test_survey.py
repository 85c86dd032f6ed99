"""A slice of the survey with every layout kind, against what the libraries say of their own models."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import survey, tuned


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("source", "name", "path", "layout", "grid"),
    [
        ("timm", "test_resnet", "layer4", "nchw", "5x5"),
        ("timm", "test_mambaout", "stages", "nhwc", "5x5"),
        ("timm", "test_vit_relpos", "blocks.8", "tokens", "10x10"),
        ("timm", "test_vit", "blocks.5.norm1", "tokens", "10x10"),
        ("timm", "deit_tiny_distilled_patch16_224", "blocks.11.norm1", "tokens", "14x14"),
        ("timm", "vit_tiny_patch16_dinov3_qkvb", "blocks.11", "tokens", "16x16"),
        ("timm", "cait_xxs24_224", "blocks", "tokens", "14x14"),
        ("timm", "crossvit_tiny_240", "blocks.2.blocks.1 + blocks.2.blocks.0", "tokens + tokens", "14x14 + 20x20"),
        ("torchvision", "squeezenet1_1", "features", "nchw", "13x13"),
        ("torchvision", "vit_b_32", "encoder.layers.encoder_layer_11.ln_1", "tokens", "7x7"),
    ],
)
def test_layer_and_gradient(source: str, name: str, path: str, layout: str, grid: str) -> None:
    row = survey.examine(source, name, check_gradient=True)
    assert (row.outcome, row.path, row.layout, row.grid) == ("resolved", path, layout, grid)
    assert row.gradient_error is not None
    assert row.gradient_error < survey.MAX_GRADIENT_ERROR


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_dinov3_qkvb"])
def test_prefix_is_what_timm_counts(name: str) -> None:
    module, _ = survey.build("timm", name)
    assert survey.examine("timm", name, check_gradient=False).prefix == str(module.num_prefix_tokens)


def row(outcome: str, error: float | None = None) -> survey.Row:
    return survey.Row("timm", "net", 1.0, "64x64", outcome, gradient_error=error)


def test_one_refusal_in_a_hundred_passes_and_two_fail() -> None:
    assert not survey.failed([row("resolved")] * 99 + [row("refused")])
    assert survey.failed([row("resolved")] * 98 + [row("refused")] * 2)


def test_a_wrong_gradient_fails() -> None:
    assert survey.failed([row("resolved", 1e-3)])
    assert not survey.failed([row("resolved", 1e-6)])


def test_models_without_classifier_are_not_counted() -> None:
    assert "resolved 1 of 1" in survey.summary([row("resolved"), row("skipped")])


def test_the_command_prints_a_count_and_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "survey.csv"
    arguments = ["--source", "timm", "--pattern", "test_resnet", "--csv", str(table), "--check-gradient"]
    monkeypatch.setattr(sys, "argv", ["survey", *arguments])
    assert survey.main() == 0
    assert "resolved 1 of 1 architectures" in capsys.readouterr().out
    with table.open(encoding="utf-8") as stream:
        (written,) = csv.DictReader(stream)
    assert (written["model"], written["path"], written["layout"]) == ("test_resnet", "layer4", "nchw")


def test_the_smallest_variant_has_a_classifier() -> None:
    assert survey.smallest("visformer") == "visformer_tiny"


def test_the_command_compares_tuned_maps_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "tuned.csv"
    monkeypatch.setattr(sys, "argv", ["survey", "--tuned", "--pattern", "*/lcnet_050", "--csv", str(table)])
    assert survey.main() == 0
    assert "tuned maps hold at 5 of 5 places" in capsys.readouterr().out
    with table.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["model"] for row in rows} == {"timm/lcnet_050"}
    assert all(0.5 < float(row["half"]) < 1 for row in rows)


def test_a_tuned_map_that_differs_fails() -> None:
    right = tuned.Agreement("timm/net", "layer", 1.0, 1.0, 0.999, 0.999, 0.9, 0.95)
    assert right.holds
    assert not replace(right, folded=0.9999).holds
    assert not replace(right, replica=0.9999).holds
    assert not replace(right, single=0.9).holds
    assert not replace(right, half=0.8).holds
