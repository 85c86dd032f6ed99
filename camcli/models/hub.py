"""Folders and files of the model hub: in its cache, or downloaded when they must be and may be; and saved folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from camcli.errors import ConfigError, ModelError, short
from camcli.models import weights
from camcli.models.checkpoint import INDEX, shards

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")


def folder_of(repo: str, with_weights: bool) -> Path:
    """Where the files of `repo` (`user/model`, or `user/model@revision`) are; raises ModelError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, revision = _parts(repo)
    patterns = [CONFIG, PROCESSOR, *(["*.safetensors", "pytorch_model*.bin", f"*{INDEX}"] if with_weights else [])]
    try:
        found = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if (found / CONFIG).is_file() and (not with_weights or weights_in(found)):
            return found
    except HFValidationError:
        raise ModelError(f"{repo}: is no folder here and no name of the hub, such as user/model") from None
    except LocalEntryNotFoundError:
        pass
    with _network(repo):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def complete(repo: str, file: str) -> None:
    """Fetch one more file of a folder that is here, where the hub has it and can be asked."""
    from huggingface_hub import try_to_load_from_cache

    name, revision = _parts(repo)
    if try_to_load_from_cache(name, file, revision=revision) is not None:
        return
    with suppress(ModelError), _network(repo):
        _downloaded(repo, file)


def cached(repo: str, files: Sequence[str]) -> Path | None:
    """The first of `files` that is here."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo, file) for file in files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetched(repo: str, files: Sequence[str]) -> Path:
    """The first of `files` that the hub has, downloaded; raises ModelError."""
    with _network(repo):
        found = next(filter(None, (_downloaded(repo, file) for file in files)), None)
    if found is None:
        raise ModelError(f"weights {repo}: the hub holds none of {', '.join(files)}")
    return found


def _downloaded(repo: str, file: str) -> Path | None:
    """None where the hub has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, revision = _parts(repo)
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError:  # the hub did not answer
        raise
    except EntryNotFoundError:
        return None


def _parts(repo: str) -> tuple[str, str | None]:
    name, _, revision = repo.partition("@")
    return name, revision or None


@contextmanager
def _network(repo: str) -> Iterator[None]:
    """For a download inside; raises ModelError where the hub must not or cannot be asked, and for what goes wrong."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    weights.require_network(f"{constants.ENDPOINT}/{_parts(repo)[0]}", repo, constants.HF_HUB_CACHE)
    try:
        yield
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise ModelError(f"weights {repo}: download failed: {short(error)}") from None


def saved_folder(place: str, writer: str) -> Path:
    """The folder on this machine that `writer`, a function of a library, has written; raises ConfigError."""
    folder = Path(os.path.expanduser(place))
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: holds no {CONFIG}; a folder that {writer} has written is wanted")
    return folder


def settings_in(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder, empty where there is no such file; raises ConfigError."""
    file = folder / name
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: holds no JSON object")
    return found


def weights_in(folder: Path) -> Path | None:
    """The file of weights, or the index of several; None where there is none. Raises ModelError for missing parts."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is not None and found.name.endswith(INDEX):
        shards(found)
    return found


def weights_of(folder: Path) -> Path:
    """As `weights_in`; raises ModelError where there are none."""
    found = weights_in(folder)
    if found is None:
        raise ModelError(f"{folder}: holds no weights (looked for {', '.join(WEIGHTS)})")
    return found
