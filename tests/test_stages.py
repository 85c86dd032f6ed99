"""What the stages of a run are made of: order, limits and ends of the work on threads, and files that are read once."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camcli.errors import ItemError
from camcli.images.decode import WHOLE, loading
from camcli.images.memory import Budget
from camcli.images.preprocess import Preprocess
from camcli.images.read import Source
from camcli.pipeline.flow import until
from camcli.pipeline.order import in_order
from tests.conftest import Ended, save_image
from tests.test_resume import images
from tests.test_run import TINY, lines

Camcli = Callable[..., Ended]
PREPROCESS = Preprocess((32, 32), (32, 32), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "bilinear", "center")


@pytest.mark.parametrize(("threads", "most"), [(1, 1), (3, 3), (3, 7), (4, 1)])
def test_results_come_in_order_and_no_more_are_begun_than_may_be(threads: int, most: int) -> None:
    rng = random.Random(threads * most)
    pauses = [rng.random() / 500 for _ in range(60)]
    begun: list[int] = []
    taken: list[int] = []
    ahead: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        ahead.append(len(begun) - len(taken))
        time.sleep(pauses[number])
        return number * number

    for found in in_order(work, iter(range(60)), threads, lambda: most):
        taken.append(found)
    assert taken == [number * number for number in range(60)]
    assert max(ahead) <= most + 1  # the one that is just being taken


def test_nothing_is_taken_before_a_thread_is_free_for_it() -> None:
    go = threading.Event()
    taken: list[int] = []

    def things() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        assert go.wait(60)
        return number

    with closing(in_order(work, things(), 2, lambda: 10)) as found:
        first = threading.Thread(target=lambda: next(found))
        first.start()
        while len(taken) < 2:
            time.sleep(0.01)
        time.sleep(0.05)
        assert taken == [0, 1]
        go.set()
        first.join(60)


@pytest.mark.parametrize("where", ["work", "things"])
def test_an_error_comes_in_its_place_and_ends_the_threads(where: str) -> None:
    def things() -> Iterator[int]:
        yield from range(5)
        if where == "things":
            raise ZeroDivisionError
        yield from range(5, 50)

    def work(number: int) -> int:
        if where == "work" and number == 5:
            raise ZeroDivisionError
        time.sleep(0.002 * (5 - number) if number < 5 else 0)
        return number

    before = threading.active_count()
    found: list[int] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(in_order(work, things(), 3, lambda: 8))
    assert found == list(range(5))
    assert threading.active_count() == before


def test_a_chain_that_is_left_early_ends_all_its_threads() -> None:
    before, stopped = threading.active_count(), threading.Event()
    numbers = iter(range(10**9))
    with (
        closing(in_order(abs, until(stopped.is_set, numbers), 3, lambda: 5)) as first,
        closing(in_order(abs, until(stopped.is_set, first), 2, lambda: 4)) as second,
    ):
        assert [next(second) for _ in range(20)] == list(range(20))
        stopped.set()
    assert threading.active_count() == before
    assert next(numbers) < 20 + 5 + 4 + 3


def test_what_comes_after_the_wish_to_stop_is_not_passed_on() -> None:
    taken: list[int] = []

    def things() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    assert list(until(lambda: len(taken) > 2, things())) == [0, 1]
    assert taken == [0, 1, 2]


@pytest.fixture(scope="module")
def opened_files() -> list[str]:
    """Every file that this process opens by its name."""
    names: list[str] = []

    def note(event: str, words: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(words[0], str):
            names.append(words[0])

    sys.addaudithook(note)  # for the life of the process
    return names


@pytest.mark.parametrize("size", ["original", "model"])
def test_each_file_is_opened_once_for_its_hash_and_its_pixels(
    camcli: Camcli, tmp_path: Path, opened_files: list[str], size: str
) -> None:
    folder = images(tmp_path / "in", 5)
    (folder / "9.jpg").write_text("no image")
    opened_files.clear()
    words = ("run", folder, "--out", tmp_path / "out", *TINY, "-s", f"overlay.size={size}")
    assert camcli(*words, "-s", "runtime.precision=fp32").code == 1
    opened = [path for path in opened_files if path.startswith(str(folder)) and os.path.isfile(path)]
    assert sorted(opened) == sorted(str(path) for path in folder.iterdir())
    for record in lines(tmp_path / "out"):
        content = Path(record["source"]).read_bytes()
        assert record["input"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert record["input"]["bytes"] == len(content)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.tiff", "x.webp", "x.gif"])
def test_a_file_too_large_to_hold_gives_the_same(tmp_path: Path, name: str) -> None:
    path = save_image(tmp_path / name, 90, 70)
    size = path.stat().st_size
    most: list[int] = []

    class Counting(Budget):
        @contextmanager
        def holding(self, size: int) -> Iterator[None]:
            most.append(size)
            with super().holding(size):
                yield

    held, read_twice = Counting(8 * size), Counting(8 * size - 8)
    one, other = Source(path), Source(path)
    with loading(one, PREPROCESS, True, held) as image:
        pass
    assert most == [size]
    with loading(other, PREPROCESS, True, read_twice) as again:
        pass
    assert most == [size]
    assert one.state == other.state
    assert one.state is not None
    assert one.state.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert image.image is not None
    assert again.image is not None
    assert image.image.tobytes() == again.image.tobytes()
    assert np.array_equal(image.input, again.input)
    assert (held.held, held.in_work, read_twice.held) == (0, 0, 0)


def test_what_is_known_of_a_file_that_cannot_be_decoded_stays_known(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, digest in (("empty", b""), ("text", b"no image"), ("pipe", None)):
        source = Source(tmp_path / f"{name}.jpg")
        with pytest.raises(ItemError), loading(source, PREPROCESS, WHOLE, Budget(1 << 30)):
            pass
        assert source.state is not None
        assert source.state.sha256 == (None if digest is None else hashlib.sha256(digest).hexdigest())
        assert source.state.mtime_ns == source.path.stat().st_mtime_ns
    gone = Source(tmp_path / "gone.jpg")
    with pytest.raises(ItemError), loading(gone, PREPROCESS, WHOLE, Budget(1 << 30)):
        pass
    assert gone.state is None


def test_files_that_are_held_keep_no_pixels_waiting_for_ever() -> None:
    budget = Budget(100)
    both = threading.Barrier(2)
    most: list[int] = []

    def read() -> None:
        with budget.holding(45):
            both.wait(60)
            with budget.room(30):
                most.append(budget.held + budget.in_work)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(10)
    assert sorted(most) == [75, 120]  # 90 held leave no room for 30, so the first is let in as the only one in work
    assert (budget.held, budget.in_work) == (0, 0)
