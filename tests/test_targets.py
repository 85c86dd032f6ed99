"""Which classes are explained: by index, by name, by probability, in contrast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camcli.config.schema import TargetsConfig
from camcli.engine.targets import Target, chooser, ranked, target_weights
from camcli.errors import ConfigError

LABELS = ("tench, Tinca tinca", "crane", "crane bird, crane", "Crane Fly", "vase", "jar, vase", "drake", "drake")


def targets(config: object, *probabilities: float) -> list[Target]:
    """For an image with these probabilities."""
    return chooser(TargetsConfig.model_validate(config), LABELS)(np.array(probabilities, dtype=np.float32))


def chosen(config: object, *probabilities: float) -> list[int | None]:
    """The classes of `targets`."""
    return [target.index for target in targets(config, *probabilities)]


def test_classes_named_twice_are_explained_once_in_the_order_given() -> None:
    assert chosen(["vase", 1, "crane", 4, "tench"], *[0.1] * 8) == [4, 1, 0]


def test_every_class_at_least_so_probable_most_probable_first() -> None:
    assert chosen({"above": 0.5}, 0.1, 0.5, 0.75, 0.49, 0.5, 0, 0, 1) == [7, 2, 1, 4]
    assert chosen({"above": 0.7}, 0.7) == []  # in float32 it is 0.699999988, which is what the record says
    assert chosen({"above": 0.5}, 0.1, 0.4) == []


def test_without_one_there_is_the_most_probable_where_else_says_so() -> None:
    assert chosen({"above": 0.5, "else": "top1"}, 0.1, 0.4, 0.3) == [1]
    assert chosen({"above": 0.5, "else": "top1"}, 0.6, 0.4, 0.7) == [2, 0]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 9])
def test_the_most_probable_are_ranked_with_ties_in_order_of_index(most: int) -> None:
    probabilities = np.array([0.2, 0.3, 0.2, 0.3], dtype=np.float32)
    assert ranked(probabilities, most) == [1, 3, 0, 2][:most]
    assert chosen({"top": most}, 0.2, 0.3, 0.2, 0.3) == [1, 3, 0, 2][:most]


def test_a_contrast_explains_the_first_against_the_second() -> None:
    assert targets({"contrast": ["vase", "tench"]}, *[0.1] * 8) == [Target(4, against=0)]
    assert targets({"classes": ["vase"]}, *[0.1] * 8) == [Target(4, against=None)]
    with pytest.raises(ConfigError, match="twice the same class, 'crane'"):
        targets({"contrast": ["crane", 1]}, *[0.1] * 8)


def test_a_target_is_a_score_of_the_logits_of_its_own_image() -> None:
    logits = torch.tensor([[1.0, 2, 4], [8, 16, 32], [64, 128, 256], [512, 1024, 2048]])
    asked = [Target(2), Target(1, against=0), None]
    assert (logits * target_weights(asked, logits)).sum(dim=1).tolist() == [4, 16 - 8, 0, 0]
    assert not target_weights([Target()] * 4, logits).any()
