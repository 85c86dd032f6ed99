"""Weight files: finding them in the libraries' own caches, fetching, hashing and reading them safely."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from camcli.errors import ModelError

PROBE_SECONDS = 3.0
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")


def sha256(path: Path) -> str:
    """Hex digest of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a checkpoint without code in it; raises ModelError."""
    try:
        checkpoint = _read(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such weights file") from None
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ModelError(
            f"{path}: refused, it holds more than tensors and could run code ({reason}); "
            "convert it to .safetensors where you trust it"
        ) from None
    except Exception as error:  # safetensors, zip and torch raise many kinds on damaged files
        raise ModelError(f"{path}: not a readable weights file: {type(error).__name__}: {error}") from None
    return _tensors(path, checkpoint)


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(path: Path, checkpoint: object) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not all(isinstance(v, Tensor) for v in checkpoint.values()):
        raise ModelError(f"{path}: holds no state dict of tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in checkpoint.items()}


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
