"""What an exception of a forward pass says: that memory is short, that the device is lost, or neither."""

from __future__ import annotations

import torch

from camcli.errors import DeviceError

_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
_LOST = ("cuda error", "hip error", "device-side assert", "cuda driver error", "nccl error")
_NEXT = "no image is recorded as failed for it, and the same command goes on from there"


def out_of_memory(error: Exception) -> bool:
    """CUDA has its own class; on the CPU torch raises RuntimeError."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def device_lost(error: Exception) -> bool:
    """The device answers nothing more in this process; before torch 2.8 that is a RuntimeError with these words."""
    known = getattr(torch, "AcceleratorError", ())
    if out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, known) or any(words in str(error).lower() for words in _LOST)


def lost(device: torch.device, error: Exception) -> DeviceError:
    """The error that ends a run whose device is lost."""
    return DeviceError(f"the device {device} failed: {_first_line(error)}; {_NEXT}")


def every_image_fails(kind: str, message: str) -> DeviceError:
    """The error that ends a run whose model explains no image, not even one that it explained before."""
    return DeviceError(
        f"the model fails for every image: {kind}: {message.strip() or 'no message'}; {_NEXT} once it is mended: "
        "try another runtime.device, runtime.precision fp32, other methods, or free memory"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
