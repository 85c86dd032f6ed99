"""Folders of the model hub: in its cache, or downloaded when they must be and may be."""

from __future__ import annotations

from pathlib import Path

from camcli.errors import ModelError
from camcli.models import weights
from camcli.models.checkpoint import INDEX, shards

CONFIGS = ("config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")


def folder_of(repo: str, offline: bool, with_weights: bool) -> Path:
    """Where the files of `repo` (`user/model`, or `user/model@revision`) are; raises ModelError."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repo.partition("@")
    patterns = [*CONFIGS, *(["*.safetensors", "pytorch_model*.bin", f"*{INDEX}"] if with_weights else [])]
    try:
        found = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        if (found / CONFIGS[0]).is_file() and (not with_weights or weights_in(found)):
            return found
    except HFValidationError:
        raise ModelError(f"{repo}: is no folder here and no name of the hub, such as user/model") from None
    except LocalEntryNotFoundError:
        pass
    weights.require_network(f"{constants.ENDPOINT}/{name}", repo, constants.HF_HUB_CACHE, offline)
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise ModelError(f"weights {repo}: download failed: {weights.short(error)}") from None


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
