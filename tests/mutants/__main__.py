"""Does the suite notice small faults? Each mutant changes one text of one file in a copy of the project.

    python -m tests.mutants                 all of them, and the share that was noticed
    python -m tests.mutants geometry.py     those whose file or text contains the word
    python -m tests.mutants --jobs 1        one at a time

The mutants of `tests/mutants/*.yaml` name a file, the text that is there, the text that takes its place, and the
tests to run. One that no test can notice says why under `equivalent`, is not run and does not count. Exit code 1
where a mutant survives or a test selection fails without one.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

REPO = Path(__file__).parents[2]
COPIED = ("camcli", "tests", "configs", "sample_images", "pyproject.toml", "README.md", "CHANGELOG.md")
SECONDS = 300
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore:Module already imported")
FAILED = 1  # pytest's exit code when tests were run and some failed

Fate = Literal["noticed", "SURVIVED", "BROKEN"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """In `file`, `now` takes the place of `was`; the pytest arguments `tests` should fail."""

    file: str
    was: str
    now: str
    tests: str
    equivalent: str = ""

    @property
    def name(self) -> str:
        """For a list: the file and the change."""
        return f"{self.file}: {_short(self.was)} -> {_short(self.now)}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:67]}..."


def read(word: str) -> list[Mutant]:
    """The mutants with `word` in their file or text, in order of the files."""
    files = sorted(Path(__file__).parent.glob("*.yaml"))
    found = [Mutant(**entry) for file in files for entry in yaml.safe_load(file.read_text())]
    return [mutant for mutant in found if word in f"{mutant.file} {mutant.was} {mutant.now}"]


@contextmanager
def copy_of_the_project() -> Iterator[Path]:
    """A copy to spoil; shared weights stay reachable beside it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        copy.mkdir()
        for name in COPIED:
            source = REPO / name
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=hidden) if source.is_dir() else shutil.copy(source, copy / name)
        (Path(folder) / "shared").symlink_to(REPO.parent / "shared")
        yield copy


def apply(mutant: Mutant, copy: Path) -> bool:
    """Change the file; False where the text is not there exactly once."""
    path = copy / mutant.file
    text = path.read_text() if path.exists() else ""
    path.write_text(text.replace(mutant.was, mutant.now))
    return text.count(mutant.was) == 1


def run_tests(copy: Path, tests: str) -> int | None:
    """pytest's exit code in a child that has the heavy libraries imported already; None after SECONDS."""
    pid = os.fork()
    if pid == 0:
        _become_pytest(copy, tests)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, 9)
    os.waitpid(pid, 0)
    return None


def _become_pytest(copy: Path, tests: str) -> None:
    import pytest

    code = 3
    try:
        os.setsid()
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        sys.path.insert(0, str(copy))
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "camcli")]:
            del sys.modules[name]
        with open(copy / "log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = int(pytest.main([*OPTIONS, f"--basetemp={copy / 'tmp'}", *shlex.split(tests)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fate(mutant: Mutant) -> Fate:
    """Whether the mutant's tests fail; one that hangs is noticed as well."""
    with copy_of_the_project() as copy:
        if not apply(mutant, copy):
            return "BROKEN"
        code = run_tests(copy, mutant.tests)
        if code not in (None, 0, FAILED):
            print((copy / "log").read_text()[-2000:])
    return "noticed" if code in (None, FAILED) else "SURVIVED" if code == 0 else "BROKEN"


def passes(tests: str) -> bool:
    """Whether a selection passes on the project as it is."""
    with copy_of_the_project() as copy:
        code = run_tests(copy, tests)
        if code != 0:
            print((copy / "log").read_text()[-2000:])
    return code == 0


def judge(mutants: Sequence[Mutant], jobs: int) -> bool:
    """Print the fate of each one; whether all were noticed by tests that pass without them."""
    with ThreadPoolExecutor(jobs) as pool:
        selections = sorted({mutant.tests for mutant in mutants})
        wrong = [tests for tests, ok in zip(selections, pool.map(passes, selections), strict=True) if not ok]
        for tests in wrong:
            print(f"fails without a mutant: {tests}")
        fates: list[Fate] = []
        for mutant, found in zip(mutants, pool.map(fate, mutants), strict=True):
            fates.append(found)
            print(f"{found:8}  {mutant.name}", flush=True)
    noticed = fates.count("noticed")
    print(f"{noticed} of {len(mutants)} noticed, {noticed / max(1, len(mutants)):.1%}")
    return noticed == len(mutants) and not wrong


def main() -> None:
    """Read the options, judge the mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only mutants with this in their file or text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    found = read(args.word)
    for mutant in found:
        if mutant.equivalent:
            print(f"equal     {mutant.name}: {mutant.equivalent}")
    _import_what_is_heavy()
    sys.exit(0 if judge([mutant for mutant in found if not mutant.equivalent], args.jobs) else 1)


def _import_what_is_heavy() -> None:
    import matplotlib  # noqa: F401
    import PIL.Image  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
