"""Which classes are explained: by index, by name, by probability, in contrast."""

from __future__ import annotations

import re

import numpy as np
import pytest

from camcli.config.schema import TargetsConfig
from camcli.engine.targets import against, chooser, class_index, ranked
from camcli.errors import ConfigError

LABELS = ("tench, Tinca tinca", "crane", "crane bird, crane", "Crane Fly", "vase", "jar, vase", "drake", "drake")


def chosen(config: object, *probabilities: float) -> list[int]:
    """For an image with these probabilities."""
    return chooser(TargetsConfig.model_validate(config), LABELS)(np.array(probabilities, dtype=np.float32))


@pytest.mark.parametrize(
    ("name", "index"),
    [("tench", 0), ("TINCA TINCA", 0), ("tench, tinca tinca", 0), ("crane", 1), ("crane bird", 2), ("crane fly", 3)],
)
def test_a_whole_label_comes_before_a_part_of_another(name: str, index: int) -> None:
    assert class_index(name, LABELS) == index
    assert class_index("vase", LABELS) == 4


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("drake", "'drake' names the classes [6, 7]; give the index"),
        ("tenchh", "the model has no class 'tenchh', did you mean 'tench'"),
        (8, "class 8 is not one of the model's 0..7"),
        (-1, "class -1 is not one of the model's 0..7"),
    ],
)
def test_what_is_no_class_is_refused(wanted: int | str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        class_index(wanted, LABELS)


def test_the_last_class_is_one() -> None:
    assert class_index(7, LABELS) == 7
    assert class_index(0, LABELS) == 0


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
    config = TargetsConfig.model_validate({"contrast": ["vase", "tench"]})
    assert chosen({"contrast": ["vase", "tench"]}, *[0.1] * 8) == [4]
    assert against(config, LABELS) == 0
    assert against(TargetsConfig(top=1), LABELS) is None
    with pytest.raises(ConfigError, match="twice the same class, 'crane'"):
        against(TargetsConfig.model_validate({"contrast": ["crane", 1]}), LABELS)
