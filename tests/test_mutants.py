"""The mutants keep up with the code: each names a text that stands in its file just once, and tests that exist."""

from __future__ import annotations

import shlex
from collections import Counter

import pytest

from tests.conftest import REPO
from tests.mutants.__main__ import Mutant, read

MUTANTS = read("")
ROOMS = sorted({path.parts[-2] for path in (REPO / "camcli").glob("*/*.py") if path.name != "__init__.py"})


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_names_its_tests(mutant: Mutant) -> None:
    text = (REPO / mutant.file).read_text()
    assert text.count(mutant.was) == 1
    assert text.replace(mutant.was, mutant.now) != text
    assert all((REPO / word.partition("::")[0]).exists() for word in shlex.split(mutant.tests) if ".py" in word)


def test_every_room_has_mutants() -> None:
    counted = Counter(mutant.file.split("/")[1] for mutant in MUTANTS)
    assert not [room for room in ROOMS if not counted[room]]
