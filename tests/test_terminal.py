"""What a person types and reads: short options, labels, model names, the summary, help and completion."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.conftest import Ended

Camcli = Callable[..., Ended]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("star",), [{"index": 3, "label": "star", "wordnet": None}]),
        (("n02123045", "-m", "timm/resnet50"), [{"index": 281, "label": "tabby, tabby cat", "wordnet": "n02123045"}]),
        (("tabby", "-m", "torchvision/vgg11"), [{"index": 281, "label": "tabby", "wordnet": "n02123045"}]),
        (
            ("class_1", "-m", "timm/test_resnet", "-s", "model.num_classes=3"),
            [{"index": 1, "label": "class_1", "wordnet": None}],
        ),
        (
            ("class_2", "-m", "torchvision/squeezenet1_1", "-s", "model.num_classes=3"),
            [{"index": 2, "label": "class_2", "wordnet": None}],
        ),
    ],
)
def test_labels_are_listed_without_weights(camcli: Camcli, words: tuple[str, ...], rows: list[object]) -> None:
    ended = camcli("labels", *words, "--json")
    assert (ended.code, json.loads(ended.out)) == (0, rows)


def test_a_word_that_no_label_has_is_said(camcli: Camcli) -> None:
    assert camcli("labels").out.splitlines()[3] == " 3  star"
    ended = camcli("labels", "dog")
    assert (ended.code, ended.out) == (2, "")
    assert "none of the 12 labels has 'dog' in it" in ended.err
