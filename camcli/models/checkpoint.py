"""A file of weights, as training scripts and libraries save it -> tensors by name, and labels beside them."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camcli.errors import ConfigError, ModelError
from camcli.models.labels import labels_in

INDEX = ".index.json"
NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "module")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_BESIDE = ("args", "hyper_parameters", "hparams", "config", "meta")


class _Inert:
    """What stands in for values that a checkpoint keeps beside its tensors: nothing of theirs is made or run."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""


def _stand_in(place: str) -> type[_Inert]:
    module, _, name = place.rpartition(".")
    return type(name, (_Inert,), {"__module__": module})


# What torch refuses by itself and training scripts often save: their arguments, paths and NumPy's numbers.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    *map(_stand_in, ("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath")),
    *map(_stand_in, ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")),
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """tensors: by the names in the file. labels: of the classes, where it tells them. steps: how it was unwrapped."""

    path: Path
    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...] | None = None
    steps: tuple[str, ...] = ()


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """What is in a .safetensors file, an index of several, or a checkpoint, of which no code is ever run.

    key: where in it the weights are, such as `state_dict_ema`; by default they are looked for, and those that are no
    average are preferred. Raises ModelError, and ConfigError for a key that is not there.
    """
    found = _read(path)
    inner, steps = _at(path, found, key) if key else _unwrapped(path, found)
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    refuse_useless(path, tensors)
    return Checkpoint(path, tensors, _labels(found), tuple(steps))


def shards(path: Path) -> list[Path]:
    """The files that an index names; raises ModelError."""
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        if not all(isinstance(name, str) and name == Path(name).name and not name.endswith(INDEX) for name in names):
            raise ValueError("names of files beside it are wanted")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a readable index of weights: {error}") from None
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(f"{path}: {missing[0]} is not beside it ({len(missing)} of {len(names)} files are missing)")
    return [path.parent / name for name in names]


def _read(path: Path) -> Mapping[Any, Any]:
    if path.name.endswith(INDEX):
        return {name: value for shard in shards(path) for name, value in _read(shard).items()}
    try:
        found = _loaded(path)
    except pickle.UnpicklingError as error:
        raise ModelError(_unpicklable(path, str(error))) from None
    except Exception as error:  # safetensors, zip and torch raise many kinds on damaged files
        raise ModelError(_unreadable(path, error)) from None
    if not isinstance(found, Mapping):
        raise ModelError(f"{path}: holds no state dict of tensors")
    return found


def _loaded(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _at(path: Path, found: Mapping[Any, Any], key: str) -> tuple[Mapping[Any, Any], list[str]]:
    """What is under `key`: that of a mapping, of one in another (`a.b`), or what the names of tensors begin with."""
    inner: Any = found
    for part in [key] if key in found else key.split("."):
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    if isinstance(inner, Mapping) and _own_tensors(inner):
        return inner, [f"took `{key}`"]
    begun = {name: value for name, value in _unwrapped(path, found)[0].items() if str(name).startswith(f"{key}.")}
    if begun:
        return {str(name).removeprefix(f"{key}."): value for name, value in begun.items()}, [f"took `{key}.`"]
    there = ", ".join(_places(found)) or "none"
    raise ConfigError(f"model.checkpoint_key: {path} holds no tensors under {key!r} (there: {there})")


def _unwrapped(path: Path, found: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], list[str]]:
    """The innermost mapping of tensors, and the steps to it; raises ModelError where there is none, or a choice."""
    steps: list[str] = []
    while True:
        known = [name for name in (*NESTED, *AVERAGED) if _holds_tensors(found.get(name))]
        if not known and not _own_tensors(found):
            known = _places(found)
            if len(known) > 1:
                raise ModelError(
                    f"{path}: holds tensors under {', '.join(known)}: set model.checkpoint_key to one of them"
                )
        if not known:
            break
        found = found[known[0]]
        average = next((name for name in known[1:] if name in AVERAGED), None)
        other = f" (averaged weights: model.checkpoint_key={average})" if average else ""
        steps.append(f"took `{known[0]}`{other}")
    if not _own_tensors(found) and not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path}: holds no state dict of tensors")
    return found, steps


def _own_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(inner, Tensor) and isinstance(name, str) for name, inner in value.items())


def _holds_tensors(value: object, depth: int = 3) -> bool:
    if not isinstance(value, Mapping) or not depth:
        return False
    return _own_tensors(value) or any(_holds_tensors(inner, depth - 1) for inner in value.values())


def _places(found: Mapping[Any, Any]) -> list[str]:
    """The keys of `found` that hold tensors by name, which the states of optimizers do not."""
    return [str(name) for name, value in found.items() if isinstance(value, Mapping) and _own_tensors(value)]


def _labels(found: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """The labels that stand beside the weights, or in what the training script kept of its settings."""
    for place in (found, *(_as_mapping(found.get(name)) for name in _BESIDE)):
        if labels := labels_in(place):
            return labels
    return None


def _as_mapping(value: object) -> Mapping[Any, Any]:
    return vars(value) if isinstance(value, argparse.Namespace) else value if isinstance(value, Mapping) else {}


def _unpicklable(path: Path, error: str) -> str:
    """torch's own advice is left out: it would have the file run its code."""
    found = re.search(r"GLOBAL ([\w.]+)", error)
    with path.open("rb") as file:
        is_pickle = file.read(1) == b"\x80"
    if not (found or is_pickle):
        return f"{path}: not a readable weights file; camcli reads .safetensors and what torch.save writes"
    what = f" ({found[1]})" if found else ""
    lines = _as_state_dict(path, "torch.load", ", weights_only=False")
    return (
        f"{path}: refused, it holds more than tensors and could run code{what}. If it is a whole model from a source "
        f"that you trust, these two lines in Python write its state dict:\n{lines}"
    )


def _unreadable(path: Path, error: Exception) -> str:
    if "TorchScript" in str(error):
        return (
            f"{path}: a TorchScript archive, not a state dict; these two lines in Python write one:\n"
            f"{_as_state_dict(path, 'torch.jit.load', '')}"
        )
    reason = str(error).partition("\n")[0]
    return f"{path}: not a readable weights file: {type(error).__name__}: {reason}"


def _as_state_dict(path: Path, load: str, how: str) -> str:
    new = str(path.with_name(f"{path.stem}-state.pth"))
    return f"    model = {load}({str(path)!r}, map_location='cpu'{how})\n    torch.save(model.state_dict(), {new!r})"


def refuse_useless(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ModelError, with the name of the tensor, for numbers that no training leaves behind."""
    for name, tensor in tensors.items():
        if fault := _fault(name, tensor):
            raise ModelError(f"{path}: {name} {fault}; model.weights wants the numbers of a trained model")
    learned = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    if not learned:
        raise ModelError(f"{path}: holds no tensor of weights; give another file, or `none` for random weights")
    if not any(bool(tensor.any()) for tensor in learned):
        raise ModelError(f"{path}: holds only zeros; give another file, or `none` for random weights")


def _fault(name: str, tensor: Tensor) -> str | None:
    """What is wrong with one tensor, if anything."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return "is not stored as plain numbers"
    if tensor.is_complex():
        return "holds complex numbers"
    if not tensor.is_floating_point():
        return f"holds {str(tensor.dtype).removeprefix('torch.')}" if name.endswith(("weight", "bias")) else None
    if not bool(torch.isfinite(tensor.float()).all()):
        return "holds NaN or infinite values"
    return None
