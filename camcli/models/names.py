"""Names of models without their source, or with the wrong one."""

from __future__ import annotations

from camcli.errors import ConfigError
from camcli.models.source import SOURCES, model_source
from camcli.registry import did_you_mean


def qualified(name: str) -> str:
    """`timm/resnet18d` for `resnet18d`: the name with the source that has it, and its weights if it names any.

    Raises ConfigError where several sources have it, or none.
    """
    found = [f"{source}/{name}" for source in having(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"model: {name!r} is a model of {len(found)} libraries: write {' or '.join(found)}")
    near = did_you_mean(name, {other for source in SOURCES for other in model_source(source).names()})
    raise ConfigError(f"model: no library has a model {name!r}{near or '; `camcli models` lists what there is'}")


def having(name: str) -> list[str]:
    """The sources that have a model of that name, and if it names weights, those that have these."""
    arch, _, tag = name.partition(".")
    found = [source for source in SOURCES if arch in model_source(source).names()]
    return [source for source in found if not tag or tag in model_source(source).entry(arch, False).tags]


def unknown(source: str, arch: str) -> ConfigError:
    """The error about an architecture that `source` does not have, with the source that does, or names like it."""
    others = [f"{other}/{arch}" for other in having(arch) if other != source]
    if others:
        return ConfigError(f"unknown {source} model {arch!r}, did you mean {' or '.join(map(repr, others))}?")
    return ConfigError(f"unknown {source} model {arch!r}{did_you_mean(arch, model_source(source).names())}")
