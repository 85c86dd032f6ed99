"""Label files: one class a line, in order of the model's indices."""

from __future__ import annotations

from pathlib import Path

from camcli.errors import ConfigError


def read_labels(file: Path) -> tuple[str, ...]:
    """The labels of `file`, empty lines left out; raises ConfigError."""
    try:
        return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.labels: {file}: cannot be read: {error}") from None
