"""What a run would refuse before it loads weights: names and files of a config, all at once and with their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from camcli.config.file import LoadedConfig
from camcli.config.model import ModelConfig
from camcli.engine.methods import methods_of
from camcli.engine.methods.options import faults
from camcli.errors import CamcliError, ConfigError
from camcli.models.labels import given_labels
from camcli.models.source import model_source, weights_file


def check(loaded: LoadedConfig) -> None:
    """Raises ConfigError with a line for each field that names what is not there."""
    _refuse(loaded, [*_faults(loaded), *faults(loaded.config.options)])


def check_options(loaded: LoadedConfig) -> None:
    """Raises ConfigError with a line for each option that no method has, or with a value that it does not take."""
    _refuse(loaded, list(faults(loaded.config.options)))


def _refuse(loaded: LoadedConfig, wrong: Sequence[tuple[str, CamcliError | str]]) -> None:
    if wrong:
        raise ConfigError("\n".join(f"{loaded.place(field)}: {field}: {reason}" for field, reason in wrong))


def _faults(loaded: LoadedConfig) -> Iterator[tuple[str, CamcliError]]:
    for field, look in _looks(loaded):
        try:
            look()
        except CamcliError as error:
            yield field, error


def _looks(loaded: LoadedConfig) -> Iterator[tuple[str, Callable[[], object]]]:
    """(field, what raises CamcliError where the field is wrong)."""
    config, model = loaded.config, loaded.config.model
    for position, name in enumerate(config.methods):
        yield f"methods.{position}", lambda name=name: methods_of([name])  # type: ignore[misc]
    yield "model.name", lambda: model_source(model.source).check(model)
    if model.weights not in ("pretrained", "none"):
        yield "model.weights", lambda: weights_file(model)
    if model.labels:
        yield "model.labels", lambda: _labels(model)


def _labels(model: ModelConfig) -> None:
    labels = given_labels(model.labels or ())
    if model.num_classes not in (None, len(labels)):
        where = f"{model.labels} has" if isinstance(model.labels, str) else "there are"
        raise ConfigError(f"{where} {len(labels)} labels, but model.num_classes is {model.num_classes}")
