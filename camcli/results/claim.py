"""Whose a run folder is: one whole run's, the parts' of one run, or `camcli dff`'s; and who writes there now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from camcli.errors import ConfigError, LockedError
from camcli.results.lock import Lock, holder, is_held

Kind = Literal["run", "merge", "dff"]

CONCEPTS = "concepts.json"
_PART_FILES = re.compile(r"(?:run|results)-\d+-of-(\d+)\.jsonl?")
_PART = re.compile(r"-\d+-of-(\d+)")


def lock_file(out: Path, suffix: str = "") -> Path:
    """What a run, or the part of one called `suffix`, locks."""
    return out / f".lock{suffix}"


@contextmanager
def claimed(out: Path, kind: Kind, suffix: str) -> Iterator[None]:
    """Inside, the folder `out` is that of this job and of no other, and no other process does the same part of it.

    A part shares the folder's lock with other parts and holds one of its own. Raises ConfigError where the folder
    holds the results of another kind of job, LockedError where another process writes, and OSError.
    """
    with ExitStack() as stack:
        shared = bool(suffix)
        _take(stack, out, Lock(lock_file(out), shared))
        if shared:
            _take(stack, out, Lock(lock_file(out, suffix)))
            _refuse_other_divisions_at_work(out, suffix)
        refuse_another_job(out, kind, suffix)
        yield


def _take(stack: ExitStack, out: Path, lock: Lock) -> None:
    if not lock.acquire():
        raise _locked(out, lock.path)
    stack.callback(lock.release)


def _locked(out: Path, path: Path) -> LockedError:
    """Who holds the lock at `path`; a whole run is kept out by parts, whose own locks say who they are."""
    at_work = [part for part in sorted(out.glob(".lock-*-of-*")) if is_held(part)]
    who = holder(at_work[0] if at_work else path)
    part = f", part {at_work[0].name.removeprefix('.lock-')}" if at_work else ""
    return LockedError(f"{out}: another run writes there{part}{who}; wait for it, or choose another --out")


def _refuse_other_divisions_at_work(out: Path, suffix: str) -> None:
    """Two parts of different divisions that begin at the same moment have no results yet that could tell."""
    for path in sorted(out.glob(".lock-*-of-*")):
        if _division(path.name.removeprefix(".lock")) != _division(suffix) and is_held(path):
            raise _locked(out, path)


def _division(suffix: str) -> str:
    match = _PART.fullmatch(suffix)
    return match[1] if match else ""


def refuse_another_job(out: Path, kind: Kind, suffix: str) -> None:
    """Raises ConfigError where the folder `out` holds the results of another kind of job than this one."""
    divisions = parts_in(out)
    merged = kind == "merge" or bool(suffix)
    if kind != "dff" and (out / CONCEPTS).exists():
        raise _taken(out, "the concepts of `camcli dff`", f"{CONCEPTS} and overlays/")
    if divisions and (kind == "dff" or not merged):
        raise _taken(out, f"a run in {divisions[0]} parts", "run-*, results-*", f"--shard I/{divisions[0]} goes on")
    if divisions and suffix and divisions != [_division(suffix)]:
        raise _taken(out, f"a run in {' and '.join(divisions)} parts", "run-*, results-*")
    whole = any((out / name).exists() for name in ("run.json", "results.jsonl"))
    if whole and not divisions and (suffix or (kind == "dff" and not (out / CONCEPTS).exists())):
        raise _taken(out, "a run that is not divided", "run.json, results.jsonl")


def parts_in(out: Path) -> list[str]:
    """Into how many parts the runs in `out` are divided, as text, in order: one number, or none."""
    found = {match[1] for path in out.glob("r*-of-*") if (match := _PART_FILES.fullmatch(path.name))}
    return sorted(found, key=int)


def _taken(out: Path, what: str, files: str, other: str = "") -> ConfigError:
    steps = ", ".join(filter(None, ["choose another --out", other]))
    return ConfigError(
        f"{out}: holds {what} ({files}), and one folder belongs to one job; {steps}, or delete the folder. "
        "--fresh deletes the results of its own job only"
    )
