"""Weight files: finding them in the libraries' own caches, fetching and hashing them."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from camcli.errors import ModelError, NoGradientError
from camcli.models.checkpoint import INDEX, shards
from camcli.models.offline import is_closed

PROBE_SECONDS = 3.0
_IMPOSTORS = {
    b"<": "a web page (HTML): fetch the file itself, often behind a `raw`, `resolve` or `download` link",
    b"version https://git-lfs": "a git-LFS pointer to them: `git lfs pull` fetches the file itself",
}


def sha256(path: Path) -> str:
    """Hex digest of the file at `path`; of an index, that of the digests of the files that it names."""
    if path.name.endswith(INDEX):
        return hashlib.sha256("".join(map(sha256, shards(path))).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of names, types, shapes and numbers, for weights that are in no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def refuse_onnx(path: Path) -> None:
    """Raises NoGradientError for a file of that name."""
    if path.suffix.lower() == ".onnx":
        raise NoGradientError(f"{path}: an ONNX graph, through which no gradient flows")


def hub_file(url: str) -> Path:
    """Where torch's hub cache keeps the file of `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(url).path)


def cached_or_fetched(url: str) -> Path:
    """The file of `url` in torch's hub cache, downloaded and checked by its hash when it is not there yet."""
    path = hub_file(url)
    name = path.name
    if path.exists():
        return path
    require_network(url, name, str(path.parent))
    path.parent.mkdir(parents=True, exist_ok=True)
    match = torch.hub.HASH_REGEX.search(name)
    try:
        torch.hub.download_url_to_file(url, str(path), match.group(1) if match else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"weights {name}: download from {url} failed: {error}") from None
    return path


def require_network(url: str, name: str, looked_in: str) -> None:
    """Raises ModelError within PROBE_SECONDS when `url`'s host does not answer or must not be asked."""
    reason = "--offline forbids a download" if is_closed() else _unreachable(url)
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
