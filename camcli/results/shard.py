"""One part of many of the same run, chosen by the hash of each image's id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from camcli.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """What this part's own files are called by: `-3-of-8`."""
        return f"-{self.index}-of-{self.count}"

    def has(self, name: str) -> bool:
        """Whether the image with the id `name` belongs to this part; the same on every machine."""
        digest = hashlib.sha256(os.fsencode(name)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


def shard_of(text: str | None, environment: Mapping[str, str]) -> Shard | None:
    """The part that `--shard` or a job array asks for; raises ConfigError.

    `3/8` is the third of eight. `/8` takes the index from JOB_COMPLETION_INDEX or SLURM_ARRAY_TASK_ID. Without
    `--shard` a Slurm array with more than one task is split among its tasks.
    """
    if text is None:
        count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
        return _checked(_from_array(environment), count) if count is not None and count > 1 else None
    match = re.fullmatch(r"(\d*)/(\d+)", text)
    if not match:
        raise ConfigError(f"--shard {text}: write it as 3/8, or /8 in a job array")
    index = int(match[1]) if match[1] else _from_array(environment)
    return _checked(index, int(match[2]))


def _checked(index: int, count: int) -> Shard:
    if not 1 <= index <= count:
        raise ConfigError(f"--shard {index}/{count}: the first number is 1 to {max(count, 1)}")
    return Shard(index, count)


def _from_array(environment: Mapping[str, str]) -> int:
    """Kubernetes counts from 0; Slurm from wherever the user began."""
    completion = _number(environment, "JOB_COMPLETION_INDEX")
    if completion is not None:
        return completion + 1
    task = _number(environment, "SLURM_ARRAY_TASK_ID")
    if task is None:
        raise ConfigError("--shard without an index needs JOB_COMPLETION_INDEX or SLURM_ARRAY_TASK_ID")
    first = _number(environment, "SLURM_ARRAY_TASK_MIN") or 0
    step = _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
    return (task - first) // step + 1


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None or text == "":
        return None
    if not text.isdigit():
        raise ConfigError(f"{name}: {text!r} is not a number")
    return int(text)
