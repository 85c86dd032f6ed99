"""The same network, computed faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camcli.engine.engine import Engine
from camcli.engine.folding import fold
from camcli.engine.tap import cut, noting
from camcli.engine.targets import likeliest
from camcli.errors import ConfigError


def tune(engine: Engine, compile_: bool) -> None:
    """Lay out weights with colours last, fold batch norms and, if asked, compile what comes before the layer.

    Methods that look at all pixels or biases get the network as it was built; raises ConfigError where one of them
    meets `compile`, or where nothing can be compiled.
    """
    if not _looking_inside(engine):
        fold(engine.module, _noise(engine), engine.taps)
    engine.module.to(memory_format=torch.channels_last)
    if compile_:
        compile_backbone(engine)


def _looking_inside(engine: Engine) -> list[str]:
    return [method.name for method in engine.methods if "pixels" in method.needs]


def _noise(engine: Engine) -> torch.Tensor:
    """float32 [1,3,H,W]: unlike one flat colour, it reaches what networks do with edges."""
    size = (1, *engine.model.preprocess.size, engine.model.preprocess.channels)
    return engine.normalise(torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def compile_backbone(engine: Engine) -> None:
    """Compile the modules that have finished when the first tap is reached, and the tap's own; raises ConfigError."""
    if names := _looking_inside(engine):
        raise ConfigError(f"runtime.compile: {names[0]} looks into the network, so it cannot be compiled")
    inputs = _noise(engine)
    with torch.no_grad(), noting(engine.module, engine.taps) as past, cut(engine.module, engine.taps):
        engine.network(inputs)
    first = min(past.values(), key=len)
    for module in dict.fromkeys(call.module for call in first):
        module.forward = torch.compile(module.forward, dynamic=False)


def warm_up(engine: Engine, batch_size: int) -> None:
    """One batch, so that compiling fails before the run if it fails; raises ConfigError."""
    preprocess = engine.model.preprocess
    pixels = torch.zeros(batch_size, *preprocess.size, preprocess.channels, dtype=torch.uint8)
    try:
        engine.explain(pixels, likeliest)
    except Exception as error:  # the compiler raises many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"runtime.compile: cannot be compiled here: {reason}; set it to false") from None


def replicas(engine: Engine, count: int) -> Sequence[Engine]:
    """`count` engines with the same weights, the first of them `engine`."""
    return [engine, *(engine.replica() for _ in range(count - 1))]
