"""What an exception of a forward pass says: that memory is short, that the device is lost, or neither."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def device_faults(device: torch.device) -> Iterator[None]:
    """Inside, a lost device or too little memory is a DeviceError, whatever else was made of it on the way."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        for cause in _causes(error):
            if device_lost(cause):
                raise lost(device, cause) from error
            if out_of_memory(cause):
                raise too_small(device, cause) from error
        raise


def _causes(error: BaseException | None) -> Iterator[Exception]:
    """The error, and what it was raised for."""
    while error is not None:
        if isinstance(error, Exception):
            yield error
        error = error.__cause__ or error.__context__


def too_small(device: torch.device, error: Exception) -> DeviceError:
    """The error that ends a run for which there is too little memory before its first image."""
    return DeviceError(
        f"the device {device} has too little memory for this model: {_first_line(error)}; {_NEXT} once there is more: "
        "try a smaller model or input.size, runtime.precision bf16, or another runtime.device"
    )


def every_image_fails(kind: str, message: str) -> DeviceError:
    """The error that ends a run whose model explains no image, not even one that it explained before."""
    return DeviceError(
        f"the model fails for every image: {kind}: {message.strip() or 'no message'}; {_NEXT} once it is mended: "
        "try another runtime.device, runtime.precision fp32, other methods, or free memory"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
