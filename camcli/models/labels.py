"""Label files: one class a line, in order of the model's indices."""

from __future__ import annotations

from pathlib import Path

from camcli.errors import ConfigError


def read_labels(file: Path) -> tuple[str, ...]:
    """The labels of `file`, empty lines left out; raises ConfigError."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigError(f"model.labels: {file}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, or no name that a file can have
        raise ConfigError(f"model.labels: {str(file)!r}: cannot be read: {error}") from None
    return tuple(line.strip() for line in lines if line.strip())
