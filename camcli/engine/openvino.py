"""The network before the target layer in OpenVINO: exported once, kept in the cache, compiled for one batch size."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camcli.engine.backbone import SparedCall, Wanted
from camcli.engine.layers.cache import cache_directory
from camcli.records import Precision

HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
"""What each precision is called there; it has no fp16 on a CPU."""
KEPT = 8
"""Exported networks that the cache holds: each is as large as its weights."""
LARGEST_BATCH = 4096
RULES = 1
"""To be raised whenever another network may be exported than before."""


def installed() -> str:
    """Its version, empty where it is not installed."""
    return version("openvino") if importlib.util.find_spec("openvino") else ""


@cache
def library() -> Any:
    """The package, which asks nobody to count its users: imported by itself, it reports each import to its makers."""
    telemetry = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        sys.modules.pop("openvino_telemetry")
        if telemetry:
            sys.modules["openvino_telemetry"] = telemetry
    return openvino


@dataclass(slots=True)
class Compiled:
    """A network compiled for `size` images, with a request of its own; other batches are filled up or divided.

    So an image gets the same numbers whatever else is in its batch, and however many there are.
    """

    model: Any
    size: int
    request: Any = field(init=False)

    def __post_init__(self) -> None:
        self.request = self.model.create_infer_request()

    def replica(self) -> Compiled:
        """The same for another thread."""
        return Compiled(self.model, self.size)

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        """float32 [B,3,H,W] to the network's tensors."""
        found = [self._one(some) for some in torch.split(inputs, self.size)]
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True)]

    def _one(self, inputs: Tensor) -> list[Tensor]:
        images, missing = len(inputs), self.size - len(inputs)
        filled = torch.cat([inputs, inputs[-1:].expand(missing, -1, -1, -1)]) if missing else inputs
        results = self.request.infer([filled.permute(0, 2, 3, 1).contiguous().numpy()], share_inputs=True)
        tensors = [torch.from_numpy(np.array(results[i])) for i in range(len(results))]
        return [tensor[: len(tensor) // self.size * images] for tensor in tensors]


def compiled(network: Any, precision: Precision, size: int, image: Sequence[int], streams: int) -> Compiled:
    """`network` for batches of `size` images [H,W,C], at most `streams` of them at a time, a core for each."""
    network.reshape([size, *image])
    how = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "ENABLE_CPU_PINNING": False,
    }
    # On a thread of its own: the library gives the thread that compiles a stack for signals and frees it with the
    # network, so that the next signal of that thread would be the end of the process.
    with ThreadPoolExecutor(1) as pool:
        return Compiled(pool.submit(library().Core().compile_model, network, "CPU", how).result(), size)


def exported(module: nn.Module, spared: Sequence[SparedCall], image: Sequence[int], key: str | None) -> Any:
    """What computes the tensors that `spared` calls ask for, from the cache where `key` was asked before.

    image: (H, W, C). key: all that the network depends on; None: nobody knows. Raises what the exporters raise.
    """
    file = _file(key)
    if file and file.is_file():
        return library().Core().read_model(file)
    network = _export(module, spared, image)
    if file:
        with suppress(OSError, RuntimeError):
            _keep(network, file)
    return network


def known(key: str | None) -> bool:
    """Whether the cache has a network for `key`."""
    file = _file(key)
    return bool(file and file.is_file())


def forget(key: str | None) -> None:
    """Take out of the cache what turned out to be wrong."""
    if file := _file(key):
        shutil.rmtree(file.parent, ignore_errors=True)


def _file(key: str | None) -> Path | None:
    layers = cache_directory()
    if key is None or layers is None:
        return None
    name = hashlib.sha256(f"{RULES} {installed()} {key}".encode()).hexdigest()[:32]
    return layers.parent / "openvino" / name / "network.xml"


def _export(module: nn.Module, spared: Sequence[SparedCall], image: Sequence[int]) -> Any:
    library()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    table = torch.export.default_decompositions()
    for op in ops_to_not_decompose():
        with suppress(KeyError):
            table.pop(op)  # type: ignore[no-untyped-call]
    batch = torch.export.Dim("batch", max=LARGEST_BATCH)
    with torch.no_grad():
        program = torch.export.export(Wanted(module, spared), (torch.zeros(2, *image),), dynamic_shapes=({0: batch},))
    decoder = TorchFXPythonDecoder(program.run_decompositions(table).module(), dynamic_shapes=True)
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))


def _keep(network: Any, file: Path) -> None:
    """At once or not at all, and in place of the oldest; raises OSError."""
    root = file.parent.parent
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=".new-"))
    try:
        library().save_model(network, folder / file.name, compress_to_fp16=False)
        os.replace(folder, file.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    kept = sorted(root.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
