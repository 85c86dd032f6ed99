"""Check an installation: versions, devices, caches, and the embedded model on drawn scenes."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from camcli.demo.evaluate import evaluate
from camcli.engine import openvino
from camcli.models import demo
from camcli.results.versions import versions

SCENES = 50
SEED = 1
LEAST_POINTING = 0.8


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """versions: by name. devices, backends: by the names that `runtime.device` and `runtime.backend` take.

    caches: folder and bytes by library. check: what `camcli.demo.evaluate` measured, or the error.
    healthy: the check's pointing game is good enough.
    """

    versions: dict[str, str]
    devices: dict[str, str]
    backends: dict[str, str]
    caches: dict[str, tuple[str, int]]
    check: dict[str, Any]
    healthy: bool


def examine() -> Diagnosis:
    """Look at this machine and run the embedded model on drawn scenes with known answers."""
    try:
        check = asdict(evaluate(SCENES, SEED, weights=demo.WEIGHTS))
        healthy = check["pointing_game"] >= LEAST_POINTING
    except Exception as error:  # a broken installation raises anything, and saying so is the purpose
        check, healthy = {"error": f"{type(error).__name__}: {error}"}, False
    return Diagnosis(
        {"python": platform.python_version(), **versions()}, devices(), backends(), caches(), check, healthy
    )


def devices() -> dict[str, str]:
    """What this machine can compute on."""
    found = {"cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Metal"
    return found


def backends() -> dict[str, str]:
    """What can compute the network before the target layer."""
    compiler = shutil.which("c++") or shutil.which("g++")
    found = openvino.installed()
    return {
        "torch": torch.__version__,
        "openvino": found or "not installed: python -m pip install 'camcli[openvino]'",
        "compile": compiler or "no C++ compiler",
    }


def caches() -> dict[str, tuple[str, int]]:
    """Where the libraries keep downloaded weights, and how many bytes are there."""
    from huggingface_hub import constants

    folders = {"timm": Path(constants.HF_HUB_CACHE), "torchvision": Path(torch.hub.get_dir()) / "checkpoints"}
    return {name: (str(folder), _bytes(folder)) for name, folder in folders.items()}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
