"""What decoded images take in memory: counted in one budget, from what this process may use."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from camcli.config.file import load_config
from camcli.engine.precision import Choice
from camcli.errors import ConfigError
from camcli.images.decode import WHOLE, loading
from camcli.images.memory import Budget, budget_size, cached_blocks
from camcli.images.preprocess import Preprocess
from camcli.pipeline.limits import usable_cores, usable_memory
from camcli.pipeline.workers import Task
from tests.conftest import Ended, save_image
from tests.test_resume import contents
from tests.test_run import TINY

Camcli = Callable[..., Ended]
PREPROCESS = Preprocess((64, 64), (64, 64), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "bilinear", "center")
SIDE = 1600
MIB = 1 << 20
SLACK = 10 * MIB  # a forked test process grows by some MiB whatever it does


def grow(images: dict[str, Image.Image]) -> None:
    """All kinds of images, by the name of their file."""
    colours = Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    grey = colours.convert("L")
    for name, mode in (("rgb.png", "RGB"), ("l.png", "L"), ("bits.png", "1"), ("clear.png", "RGBA"), ("p.png", "P")):
        images[name] = colours.convert(mode)
    images["deep.png"] = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    images["float.tiff"] = grey.convert("F")
    images["whole.tiff"] = grey.convert("I")
    images["cmyk.jpg"] = colours.convert("CMYK")
    for name in ("plain.jpg", "progressive.jpg", "turned.jpg", "plain.webp", "plain.gif", "plain.bmp", "deflated.tiff"):
        images[name] = colours
    images["clear.webp"] = colours.convert("RGBA")


def save_all(folder: Path) -> None:
    """Write them."""
    images: dict[str, Image.Image] = {}
    grow(images)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image in images.items():
        more: dict[str, Any] = {"exif": exif} if name == "turned.jpg" else {}
        more |= {"progressive": True} if name == "progressive.jpg" else {}
        more |= {"compression": "tiff_deflate"} if name == "deflated.tiff" else {}
        image.save(folder / name, **more)


def peak_of(work: Callable[[], object]) -> int:
    """By how many bytes `work` makes a fresh process larger than it was, at most."""
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        try:
            Image.core.clear_cache()  # type: ignore[attr-defined]
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            work()
            os.write(send, str(status("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as told:
        text = told.read()
    os.waitpid(child, 0)
    return int(text)


def status(name: str) -> int:
    """Bytes, as the system counts them for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs to reset the peak")
def test_decoding_never_takes_more_than_is_counted(tmp_path: Path) -> None:
    save_all(tmp_path)
    too_much = {}
    for path in sorted(tmp_path.iterdir()):
        with loading(path, PREPROCESS, WHOLE, Budget(1 << 40)) as image:
            cost = image.cost

        def decode(path: Path = path) -> None:
            with loading(path, PREPROCESS, WHOLE, Budget(1 << 40)):
                pass

        taken = peak_of(decode)
        if not taken <= cost + path.stat().st_size + SLACK:
            too_much[path.name] = (round(taken / SIDE**2, 1), cost / SIDE**2)
        assert cost >= 4 * SIDE**2
        assert image.bytes == 4 * SIDE**2
    assert not too_much


def test_a_budget_lets_in_what_fits_and_keeps_at_most_half() -> None:
    budget = Budget(100)
    assert [budget.keep(30), budget.is_scarce, budget.keep(21), budget.keep(20)] == [True, True, False, True]
    entered: list[str] = []

    def enter(name: str, size: int) -> threading.Thread:
        def work() -> None:
            with budget.room(size):
                entered.append(name)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    with budget.room(50):
        waiting = enter("small", 1)
        waiting.join(0.2)
        assert entered == []
        budget.give_back(20)
        waiting.join(10)
        assert entered == ["small"]
        larger = enter("larger than all", 500)
        larger.join(0.2)
        assert entered == ["small"]
    larger.join(10)
    assert entered == ["small", "larger than all"]
    assert (budget.in_work, budget.kept) == (0, 30)


class Witness(Budget):
    """A budget that notes the most that was counted at a time, and what is left at the end."""

    seen: list[Witness] = []  # noqa: RUF012 - emptied by the tests

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.most = self.most_kept = self.asked = 0
        self.seen.append(self)

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Note what is counted."""
        with super().room(size):
            self.asked += 1
            self.most = max(self.most, self.held + self.in_work + self.kept)
            yield

    def keep(self, size: int) -> bool:
        """Note what is kept."""
        kept = super().keep(size)
        self.most_kept = max(self.most_kept, self.kept)
        return kept


@pytest.fixture
def witnesses(monkeypatch: pytest.MonkeyPatch) -> list[Witness]:
    """The budgets of the runs of a test."""
    monkeypatch.setattr("camcli.pipeline.limits.Budget", Witness)
    Witness.seen.clear()
    return Witness.seen


@pytest.mark.parametrize(
    "words",
    [(), ("overlay.scale=run",), ("overlay={size: model}",), ("overlay={format: webp, grid: true}",)],
    ids=["original", "one-range", "model", "grid"],
)
def test_a_run_counts_all_that_it_decodes_and_stays_within(
    camcli: Camcli, tmp_path: Path, witnesses: list[Witness], words: tuple[str, ...]
) -> None:
    Image.new("1", (700, 600)).save(tmp_path / "00.png")
    for i in range(1, 12):
        os.link(tmp_path / "00.png", tmp_path / f"{i:02}.png")
    given = [part for word in (*words, "runtime.memory=24MiB", "runtime.threads=4") for part in ("-s", word)]
    assert camcli("run", tmp_path, "--out", tmp_path / "out", *TINY, *given).code == 0
    [budget] = witnesses
    assert budget.size == 24 * MIB
    assert 0 < budget.most <= budget.size
    assert budget.most_kept <= budget.size // 2
    assert (budget.in_work, budget.kept) == (0, 0)
    assert budget.asked >= (12 if words == ("overlay={size: model}",) else 24)


def test_concepts_count_what_they_decode(camcli: Camcli, tmp_path: Path, witnesses: list[Witness]) -> None:
    for i in range(5):
        save_image(tmp_path / "in" / f"{i}.png", 300, 200, i)
    words = ("dff", tmp_path / "in", "--out", tmp_path / "out", "-s", "runtime.memory=8MiB")
    ended = camcli(*words)
    assert ended.code == 0, ended.err
    learning, painting = witnesses
    for budget in (learning, painting):
        assert 0 < budget.most <= budget.size == 8 * MIB
        assert (budget.in_work, budget.kept) == (0, 0)
    assert learning.most_kept == 0
    assert learning.asked == 5
    assert painting.asked == 5 + 5


def test_what_waits_for_a_large_image_is_not_lost(camcli: Camcli, tmp_path: Path) -> None:
    for i in range(6):
        save_image(tmp_path / "in" / f"{i}.png", 900 if i % 2 else 90, 700 if i % 2 else 70, i)
    for name, memory in (("little", "1MiB"), ("enough", "1GiB")):
        words = ("run", tmp_path / "in", "--out", tmp_path / name, *TINY, "-s", f"runtime.memory={memory}")
        assert camcli(*words).code == 0
    assert contents(tmp_path / "little")["results.jsonl"] == contents(tmp_path / "enough")["results.jsonl"]
    assert "nothing to do" in camcli(*words[:3], tmp_path / "little", *TINY).err


def test_freed_blocks_of_pillow_count() -> None:
    core = Image.core  # type: ignore[attr-defined]
    before, block = core.get_blocks_max(), core.get_block_size()
    try:
        core.set_blocks_max(64)
        assert (cached_blocks(80 * block), core.get_blocks_max()) == (10 * block, 10)
        assert (cached_blocks(800 * block), core.get_blocks_max()) == (10 * block, 10)
        assert (cached_blocks(block), core.get_blocks_max()) == (0, 0)
    finally:
        core.set_blocks_max(before)


@pytest.mark.parametrize(
    ("asked", "usable", "expected"), [(0.25, 8 << 30, 2 << 30), (1.0, 1 << 30, 1 << 30), (4e9, 1 << 30, 4_000_000_000)]
)
def test_memory_is_a_size_or_a_part(asked: float, usable: int, expected: int) -> None:
    assert budget_size(asked, usable) == expected


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("0.5", 0.5), ("1", 1)]
)
def test_sizes_are_written_as_people_write_them(text: str, size: float) -> None:
    assert load_config(None, [f"runtime.memory={text}"]).config.runtime.memory == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "4096", "many", "4 apples", "0B", "true"])
def test_nonsense_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.memory"):
        load_config(None, [f"runtime.memory={text}"])


def test_workers_share_the_memory() -> None:
    task = Task(load_config(None, ["runtime.memory=1GiB"]).config, Choice("fp32", ""), Path("out"), "", "", False)
    assert task.on(torch.device("cpu"), 4).config.runtime.memory == 1 << 28


def group(top: Path, files: dict[str, str]) -> None:
    """A tree of control groups."""
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("mine", "files", "memory", "cores"),
    [
        ("0::/a/b", {"a/b/memory.max": "5000000", "a/b/cpu.max": "150000 100000"}, 5_000_000, 2),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "6000000", "a/cpu.max": "100000 100000"}, 6_000_000, 1),
        ("0::/a", {"a/memory.max": "9000000", "a/memory.high": "7000000", "a/cpu.max": "max 100000"}, 7_000_000, None),
        ("0::/of/the/host", {"memory.max": "8000000", "cpu.max": "50000 100000"}, 8_000_000, 1),
        ("0::/a", {"b/memory.max": "8000000", "b/cpu.max": "100000 100000"}, None, None),
        (
            "4:memory:/x/y\n2:cpu,cpuacct:/x",
            {
                "memory/x/y/memory.limit_in_bytes": "9223372036854771712",
                "memory/x/memory.limit_in_bytes": "4000000",
                "cpu,cpuacct/x/cpu.cfs_quota_us": "100000",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            4_000_000,
            1,
        ),
        ("1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
        ("1:name=systemd:/a\n0::/a", {"unified/a/memory.max": "3000000"}, 3_000_000, None),
        (None, {"memory.max": "2000000"}, 2_000_000, None),
    ],
)
def test_control_groups_limit_memory_and_cores(
    tmp_path: Path, mine: str | None, files: dict[str, str], memory: int | None, cores: int | None
) -> None:
    if mine is not None:
        (tmp_path / "cgroup").write_text(mine + "\n")
    group(tmp_path / "groups", files)
    nowhere: dict[str, str] = {}
    here = tmp_path / "cgroup", tmp_path / "groups", nowhere
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert usable_memory(*here) == (memory or installed)
    assert usable_cores(*here) == min(cores or 64, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("environ", "memory"),
    [
        ({"SLURM_MEM_PER_NODE": "512"}, 512 * MIB),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_PER_TASK": "3"}, 300 * MIB),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "2"}, 200 * MIB),
        ({"SLURM_MEM_PER_CPU": "100"}, 100 * MIB),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_MEM_PER_NODE": "many"}, None),
    ],
)
def test_slurm_limits_memory_and_cores(tmp_path: Path, environ: dict[str, str], memory: int | None) -> None:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert usable_memory(tmp_path, tmp_path, environ) == (memory or installed)
    asked = int(environ.get("SLURM_CPUS_PER_TASK", 64))
    assert usable_cores(tmp_path, tmp_path, environ) == min(asked, len(os.sched_getaffinity(0)))
