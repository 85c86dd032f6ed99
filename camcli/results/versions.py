"""The versions of what results depend on."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from camcli import __version__

UNKNOWN = "unknown"
LIBRARIES = ("camcli", "torch", "torchvision", "timm", "pillow", "numpy")
EXTRAS = ("openvino",)


def versions() -> dict[str, str]:
    """Installed versions by name, without importing anything; `unknown` where an installation does not tell.

    Of extras only those that are installed.
    """
    found = {name: __version__ if name == "camcli" else _version(name) for name in (*LIBRARIES, *EXTRAS)}
    return {name: known for name, known in found.items() if name in LIBRARIES or known != UNKNOWN}


@cache
def key() -> str:
    """A short name for `versions()`, which records bear; it is the same wherever the versions are."""
    return hashlib.sha256(json.dumps(versions(), sort_keys=True).encode()).hexdigest()[:8]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN
