"""The versions of what results depend on."""

from __future__ import annotations

from importlib.metadata import version

LIBRARIES = ("camcli", "torch", "torchvision", "timm", "pillow", "numpy")


def versions() -> dict[str, str]:
    """Installed versions by name, without importing anything."""
    return {name: version(name) for name in LIBRARIES}
