"""What a model's classes are called: by index, by label, by one of a label's names, by WordNet id."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from camcli.errors import ConfigError
from camcli.registry import did_you_mean

if TYPE_CHECKING:
    from timm.data import ImageNetInfo

SHOWN = 10
_WORDNET_ID = re.compile(r"n\d{8}")


def class_index(wanted: int | str, labels: Sequence[str]) -> int:
    """The index of a class: an index, a label, one of the names that a label lists with commas, or a WordNet id.

    As it stands, a whole label comes before a part of another; in another case, a name must be of one class alone.
    WordNet ids are those of `wordnet_ids`, or those that labels begin with.
    Raises ConfigError where there is no such class, or more than one.
    """
    if isinstance(wanted, int):
        if not 0 <= wanted < len(labels):
            raise ConfigError(f"targets: class {wanted} is not one of the model's 0..{len(labels) - 1}")
        return wanted
    found = next(filter(None, _by_name(wanted.strip(), labels)), [])
    if len(found) == 1:
        return found[0]
    raise ConfigError(_ambiguous(wanted, found, labels) if found else _unknown(wanted, labels))


def matching(pattern: str | None, labels: Sequence[str]) -> list[int]:
    """The classes whose label has the word `pattern`; else those whose label, or WordNet id, has it anywhere."""
    if pattern is None:
        return list(range(len(labels)))
    wanted = pattern.casefold()
    word = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
    known = [label.casefold() for label in labels]
    with_word = [i for i, label in enumerate(known) if word.search(label)]
    return with_word or [i for i, label in enumerate(known) if wanted in label] or _of_id(wanted, labels)


def _by_name(wanted: str, labels: Sequence[str]) -> Iterator[list[int]]:
    """The classes of that name, the narrowest sense of it first."""
    yield [i for i, label in enumerate(labels) if label == wanted]
    yield [i for i, label in enumerate(labels) if wanted in _parts(label)]
    yield _of_id(wanted, labels)
    folded = wanted.casefold()
    yield [i for i, label in enumerate(labels) if folded in (label.casefold(), *map(str.casefold, _parts(label)))]


def _of_id(wanted: str, labels: Sequence[str]) -> list[int]:
    """The class of a WordNet id, if it is one that is known."""
    if not _WORDNET_ID.fullmatch(wanted):
        return []
    return [i for i, name in enumerate(wordnet_ids(tuple(labels))) if name == wanted]


@cache
def wordnet_ids(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The WordNet id of each class where `labels` are ImageNet's as timm or torchvision has them; else none.

    In torchvision's labels the 1000 classes are in the same order as in timm's.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": len(labels)})
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    return tuple(info.label_names()) if labels in (descriptions(info), _of_torchvision()) else ()


def descriptions(info: ImageNetInfo) -> tuple[str, ...]:
    """The labels of ImageNet's classes, or those of a part of it, as timm has them."""
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))


def _of_torchvision() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _parts(label: str) -> list[str]:
    """The names in `n02123045 tabby, tabby cat`: its id, if it begins with one, and what stands between commas."""
    first, _, rest = label.partition(" ")
    if not _WORDNET_ID.fullmatch(first):
        return [part.strip() for part in label.split(",")]
    return [first, rest.strip(), *(part.strip() for part in rest.split(","))]


def _ambiguous(wanted: str, found: Sequence[int], labels: Sequence[str]) -> str:
    """A label that no other class has is a way to say which one is meant."""
    distinct = len({labels[i] for i in found}) == len(found)
    exactly = ", or the whole label exactly as it stands" if distinct else ""
    return f"targets: {wanted!r} names {len(found)} classes: {_listed(found, labels)}; give the index{exactly}"


def _unknown(wanted: str, labels: Sequence[str]) -> str:
    text = f"targets: the model has no class {wanted!r}"
    if found := matching(wanted.strip(), labels) if wanted.strip() else []:
        having = "one label has" if len(found) == 1 else f"{len(found)} labels have"
        return f"{text}, but {having} it: {_listed(found, labels)}"
    near = did_you_mean(wanted, [name for label in labels for name in _parts(label)])
    return text + (near or "; `camcli labels` lists them")


def _listed(found: Sequence[int], labels: Sequence[str]) -> str:
    """`281 tabby, tabby cat; 282 tiger cat`, the first SHOWN of them."""
    more = f"; {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(f"{i} {labels[i]!r}" for i in found[:SHOWN]) + more
