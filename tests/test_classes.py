"""What classes are called: as they stand, in another case, by a word of theirs, by WordNet id."""

from __future__ import annotations

import re
from functools import cache

import pytest
from timm.data import ImageNetInfo
from torchvision.models import ResNet18_Weights

from camcli.errors import ConfigError
from camcli.models.classes import class_index, matching, wordnet_ids

LABELS = ("tench, Tinca tinca", "crane", "crane bird, crane", "Crane Fly", "vase", "jar, vase", "drake", "drake")


@cache
def imagenet(library: str) -> tuple[str, ...]:
    """The 1000 labels as a library writes them."""
    if library == "torchvision":
        return tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(i) for i in range(1000))


@pytest.mark.parametrize(
    ("name", "index"),
    [("tench", 0), ("TINCA TINCA", 0), ("tench, tinca tinca", 0), ("crane", 1), ("crane bird", 2), ("crane fly", 3)],
)
def test_a_whole_label_comes_before_a_part_of_another(name: str, index: int) -> None:
    assert class_index(name, LABELS) == index
    assert class_index("vase", LABELS) == 4


@pytest.mark.parametrize(
    ("library", "name", "index"),
    [
        ("torchvision", "Cardigan", 264),
        ("torchvision", "cardigan", 474),
        ("torchvision", "crane bird", 134),
        ("torchvision", "MAILLOT TANK SUIT", 639),
        ("timm", "Cardigan", 264),
        ("timm", "cardigan", 474),
        ("timm", "maillot", 638),
        ("timm", "maillot, tank suit", 639),
    ],
)
def test_names_that_differ_only_in_case_are_reached_as_they_stand(library: str, name: str, index: int) -> None:
    assert class_index(name, imagenet(library)) == index


@pytest.mark.parametrize(
    ("library", "name", "words"),
    [
        (
            "torchvision",
            "CARDIGAN",
            "names 2 classes: 264 'Cardigan'; 474 'cardigan'; give the index, or the whole label",
        ),
        ("timm", "Maillot", "names 2 classes: 638 'maillot'; 639 'maillot, tank suit'; give the index, or the whole"),
        ("timm", "crane", "names 2 classes: 134 'crane'; 517 'crane'; give the index$"),
        ("torchvision", "cat", "no class 'cat', but 5 labels have it: 282 'tiger cat'; .*; 383 'Madagascar cat'$"),
        ("torchvision", "goldf", "no class 'goldf', but 2 labels have it: 1 'goldfish'; 11 'goldfinch'$"),
        ("torchvision", "terrier", "no class 'terrier', but 18 labels have it: .*; 8 more$"),
        ("torchvision", "espreso", "no class 'espreso', did you mean 'espresso'"),
        ("torchvision", "", "no class ''; `camcli labels` lists them$"),
        ("torchvision", "n99999999", "no class 'n99999999'; `camcli labels` lists them$"),
    ],
)
def test_what_is_ambiguous_or_no_class_is_never_silently_one(library: str, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        class_index(name, imagenet(library))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("drake", "'drake' names 2 classes: 6 'drake'; 7 'drake'; give the index"),
        ("VASE", "'VASE' names 2 classes: 4 'vase'; 5 'jar, vase'; give the index"),
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


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_wordnet_ids_are_names_of_the_labels_that_libraries_have(library: str) -> None:
    assert class_index("n02123045", imagenet(library)) == 281
    assert len(set(wordnet_ids(imagenet(library)))) == 1000
    assert wordnet_ids(("cat", "dog")) == wordnet_ids(imagenet(library)[::-1]) == ()


def test_a_label_may_begin_with_its_wordnet_id() -> None:
    labels = ("n02123045 tabby, tabby cat", "n01440764 tench")
    found = [class_index(name, labels) for name in ("n01440764", "tabby", "tabby cat", "n02123045 tabby, tabby cat")]
    assert found == [1, 0, 0, 0]


def test_labels_are_found_by_a_word_and_else_by_a_part_of_one() -> None:
    assert matching("fly", LABELS) == [3]
    assert matching("CRANE", LABELS) == [1, 2, 3]
    assert matching("as", LABELS) == [4, 5]
    assert matching(None, LABELS) == list(range(8))
    assert matching("n02123045", imagenet("timm")) == [281]
