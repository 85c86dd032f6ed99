"""Weight files: finding them in the libraries' own caches, fetching, hashing and reading them safely."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from camcli.errors import ModelError

PROBE_SECONDS = 3.0
_IMPOSTORS = {
    b"<": "a web page (HTML): fetch the file itself, often behind a `raw`, `resolve` or `download` link",
    b"version https://git-lfs": "a git-LFS pointer to them: `git lfs pull` fetches the file itself",
}
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")


def sha256(path: Path) -> str:
    """Hex digest of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a checkpoint without code in it; raises ModelError."""
    try:
        checkpoint = _read(path)
    except pickle.UnpicklingError as error:
        raise ModelError(_unpicklable(path, str(error))) from None
    except Exception as error:  # safetensors, zip and torch raise many kinds on damaged files
        raise ModelError(_unreadable(path, error)) from None
    tensors = _tensors(path, checkpoint)
    refuse_useless(path, tensors)
    return tensors


def recognise(path: Path) -> None:
    """Raises ModelError for a file that is empty, or something else under the name of weights."""
    try:
        with path.open("rb") as file:
            head = file.read(512).lstrip().lower()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise ModelError(f"{path}: not a readable weights file: it is empty; fetch it again")
    for start, what in _IMPOSTORS.items():
        if head.startswith(start):
            raise ModelError(f"{path}: not weights but {what}")


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


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


def _tensors(path: Path, checkpoint: object) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not all(isinstance(v, Tensor) for v in checkpoint.values()):
        raise ModelError(f"{path}: holds no state dict of tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in checkpoint.items()}


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


def unfit(path: Path, model: str, reason: str) -> ModelError:
    """The error about weights of another model."""
    return ModelError(f"{path}: does not fit {model}: {reason}; check model.name, model.num_classes and model.kwargs")


def load(module: nn.Module, path: Path, model: str) -> None:
    """Put the weights of the file `path` into `module`, called `model`; raises ModelError."""
    try:
        module.load_state_dict(read_state_dict(path))
    except RuntimeError as error:
        raise unfit(path, model, short(error)) from None


def short(error: Exception) -> str:
    """The first few lines of what torch or timm has to say, each cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(line if len(line) < 160 else line[:157] + "..." for line in lines[:3])


def hub_file(url: str) -> Path:
    """Where torch's hub cache keeps the file of `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(url).path)


def cached_or_fetched(url: str, offline: bool) -> Path:
    """The file of `url` in torch's hub cache, downloaded and checked by its hash when it is not there yet."""
    path = hub_file(url)
    name = path.name
    if path.exists():
        return path
    require_network(url, name, str(path.parent), offline)
    path.parent.mkdir(parents=True, exist_ok=True)
    match = torch.hub.HASH_REGEX.search(name)
    try:
        torch.hub.download_url_to_file(url, str(path), match.group(1) if match else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"weights {name}: download from {url} failed: {error}") from None
    return path


def require_network(url: str, name: str, looked_in: str, offline: bool) -> None:
    """Raises ModelError within PROBE_SECONDS when `url`'s host does not answer or must not be asked."""
    reason = "--offline forbids a download" if offline else _unreachable(url)
    if reason:
        raise ModelError(
            f"weights {name}: not in {looked_in}, and {reason}. Copy the file there, or give a local one with "
            "--set model.weights=FILE.safetensors (or none for random weights)"
        )


def _unreachable(url: str) -> str | None:
    """Why the host of `url` cannot be reached; a thread, because name lookups know no time limit."""
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    host = urlparse(url).hostname
    return answer[0] if answer else f"{host} did not answer within {PROBE_SECONDS:g} s"


def _ask(url: str) -> str | None:
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"{url} answered {error.code} {error.reason}" if error.code == 404 else None
    except (OSError, ValueError) as error:
        return f"{urlparse(url).hostname} cannot be reached ({getattr(error, 'reason', error)})"
    return None
