"""The same network, computed faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camcli.engine.engine import Engine
from camcli.engine.folding import fold
from camcli.engine.tap import before_first
from camcli.engine.targets import likeliest
from camcli.errors import ConfigError


def tune(engine: Engine) -> None:
    """Lay out weights with colours last, and fold batch norms.

    Methods that look at all pixels or biases get the network as it was built.
    """
    if not looking_inside(engine):
        fold(engine.module, noise(engine), engine.taps)
    engine.module.to(memory_format=torch.channels_last)


def looking_inside(engine: Engine) -> list[str]:
    """The methods that look at all pixels or biases, by name; nothing is folded where there are any."""
    return [method.name for method in engine.methods if "pixels" in method.needs]


def noise(engine: Engine, images: int = 1) -> torch.Tensor:
    """float32 [images,C,H,W]: unlike one flat colour, it reaches what networks do with edges."""
    size = (images, *engine.model.preprocess.size, engine.model.preprocess.channels)
    return engine.normalise(torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def blank(engine: Engine, images: int) -> torch.Tensor:
    """uint8 [images,H,W,C], all black, for whoever only measures or compiles."""
    preprocess = engine.model.preprocess
    return torch.zeros(images, *preprocess.size, preprocess.channels, dtype=torch.uint8)


def compile_backbone(engine: Engine) -> None:
    """Compile the modules that have finished when the first tap is reached, and the tap's own; raises ConfigError."""
    if names := looking_inside(engine):
        raise ConfigError(f"runtime.backend: {names[0]} looks into the network, which compile hides; set it to torch")
    calls, _ = before_first(engine.module, engine.taps, engine.network, noise(engine))
    for module in dict.fromkeys(call.module for call in calls):
        module.forward = torch.compile(module.forward, dynamic=False)


def warm_up(engine: Engine, batch_size: int) -> None:
    """One batch, so that compiling fails before the run if it fails; raises ConfigError."""
    try:
        engine.explain(blank(engine, batch_size), likeliest)
    except Exception as error:  # the compiler raises many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"runtime.backend: compile fails here: {reason}; set it to torch") from None


def replicas(engine: Engine, count: int) -> Sequence[Engine]:
    """`count` engines with the same weights, the first of them `engine`."""
    return [engine, *(engine.replica() for _ in range(count - 1))]
