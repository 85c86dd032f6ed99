"""Every error that camcli raises on purpose, and the exit code that each one means.

    CamcliError            3   something outside the images stops the run
    ├── ConfigError        2   a config file, an override or an option is wrong
    │   ├── LayerError     2   no usable target layer, or the one asked for does not serve
    │   └── MethodError    2   a method does not serve for this model, layer or setting
    ├── ModelError         3   the model or its weights cannot be had
    │   ├── OfflineError   3   something reached for the network under --offline
    │   └── NoGradientError 3  no gradient flows through the model, or none of its layers can be looked into
    ├── DeviceError        3   the device that computes is lost, or the model fails for every image
    ├── InputError         3   no image can be read any more: their folder is gone, or files cannot be opened
    ├── NoInputsError      5   nothing to do
    ├── IncompleteError    1   parts of a run are missing
    ├── OutputError        3   the output folder cannot be written
    ├── LockedError       75   another run holds the output folder
    ├── InternalError     70   camcli itself broke; a log has the traceback
    └── ItemError          -   one image failed: a record in the report, never the end of a run

A message names the thing, the reason and the next step.
"""

from __future__ import annotations

from camcli.records import Stage


class CamcliError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 3


class ConfigError(CamcliError):
    """A config file, an override or an option is wrong."""

    exit_code = 2


class LayerError(ConfigError):
    """No usable target layer was found, or the one asked for does not serve."""


class MethodError(ConfigError):
    """A method does not serve for this model, layer or setting; another one may."""


class ModelError(CamcliError):
    """The model or its weights cannot be had."""


class OfflineError(ModelError):
    """Something reached for the network although `--offline` forbids it."""


class NoGradientError(ModelError):
    """No gradient flows through the model, or none of its layers can be looked into."""


class DeviceError(CamcliError):
    """The device that computes is lost, or the model fails for every image."""


class InputError(CamcliError):
    """No image can be read any more: the folder that holds them is gone, or this process may open no more files."""


class NoInputsError(CamcliError):
    """No image was found in what the user named."""

    exit_code = 5


class IncompleteError(CamcliError):
    """Parts of a run are missing or not finished."""

    exit_code = 1


class OutputError(CamcliError):
    """The output folder cannot be written."""


class LockedError(CamcliError):
    """Another run holds the output folder."""

    exit_code = 75


class InternalError(CamcliError):
    """Something that nobody expected; the message names the log that holds its traceback."""

    exit_code = 70


class ItemError(Exception):
    """One image failed at `stage`; the run goes on."""

    def __init__(self, stage: Stage, kind: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.kind = kind


def short(error: Exception) -> str:
    """The first few lines of what a library has to say, each cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(line if len(line) < 160 else line[:157] + "..." for line in lines[:3])
