"""How much memory and how many cores this process may use: of the machine, of its control groups, of its Slurm job."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from camcli.config.schema import RunConfig
from camcli.images.memory import Budget, budget_size, cached_blocks

_UNKNOWN_MEMORY = 4 << 30
_GROUPS_OF = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def usable_memory(groups_of: Path = _GROUPS_OF, groups: Path = _GROUPS, environ: Mapping[str, str] = os.environ) -> int:
    """Bytes; the smallest of all limits that are known."""
    limits = [*_installed(), *_slurm_memory(environ)]
    for folder in _folders(groups_of, groups, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min((limit for limit in limits if limit > 0), default=_UNKNOWN_MEMORY)


def budget_for(config: RunConfig) -> Budget:
    """What decoded images of a run may take."""
    memory = budget_size(config.runtime.memory, usable_memory())
    return Budget(memory - cached_blocks(memory))


def cores(config: RunConfig) -> int:
    """How many cores a run may use."""
    return config.runtime.threads or usable_cores()


def usable_cores(groups_of: Path = _GROUPS_OF, groups: Path = _GROUPS, environ: Mapping[str, str] = os.environ) -> int:
    """At least 1; parts of a core count as one."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += filter(None, [_number(environ, "SLURM_CPUS_PER_TASK")])
    for folder in _folders(groups_of, groups, "cpu"):
        limits += _quota(folder)
    return max(1, min(limits))


def _installed() -> Iterator[int]:
    with suppress(ValueError, OSError, AttributeError):
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _slurm_memory(environ: Mapping[str, str]) -> Iterator[int]:
    """Slurm counts in MiB; 0 stands for all memory of a node."""
    yield _number(environ, "SLURM_MEM_PER_NODE") << 20
    cores = _number(environ, "SLURM_CPUS_PER_TASK") or _number(environ, "SLURM_CPUS_ON_NODE")
    yield _number(environ, "SLURM_MEM_PER_CPU") * max(1, cores) << 20


def _number(environ: Mapping[str, str], name: str) -> int:
    """0 where there is no such number."""
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _quota(folder: Path) -> Iterator[int]:
    """Cores that a control group may use, by version 2 or 1."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        yield math.ceil(int(quota) / int(period))
    with suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield math.ceil(int(quota) / int(period))


def _folders(groups_of: Path, groups: Path, controller: str) -> Iterator[Path]:
    """Where limits of this process may stand: its own group of each version, and all groups above.

    In a container the path may be that of the host; then only the mounted top of it exists.
    https://man7.org/linux/man-pages/man7/cgroups.7.html
    """
    try:
        lines = groups_of.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tops = [groups / controllers, groups / controller] if controllers else [groups, groups / "unified"]
        own = Path(path.lstrip("/"))
        for top in dict.fromkeys(tops):
            yield from (top / part for part in (own, *own.parents))
