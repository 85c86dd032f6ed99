"""Tuned engines against plain definitions: maps at places drawn at random, with batch norms that do something.

`python -m tests.survey --tuned` draws five places in each of forty architectures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from camcli.config.model import ModelConfig
from camcli.engine.engine import Engine
from camcli.engine.layers import Layout, Tap, TargetLayer
from camcli.engine.layers.trace import Output, Place, record, visiting
from camcli.engine.methods import METHODS
from camcli.engine.tuning import tune
from camcli.images.preprocess import Preprocess
from camcli.models.source import model_source
from tests import oracles
from tests.conftest import loaded
from tests.nets import calibrated, inputs

LEAST = 0.99999
ROUNDING = 0.02
PLACES = 5
SIDE = 96
CLASSES = 7
ARCHITECTURES = (
    *("torchvision/resnet18", "torchvision/googlenet", "torchvision/densenet121", "torchvision/mobilenet_v3_small"),
    *("torchvision/mnasnet0_5", "torchvision/shufflenet_v2_x0_5", "torchvision/regnet_y_400mf", "torchvision/vgg11_bn"),
    *("torchvision/efficientnet_b0", "torchvision/resnext50_32x4d", "timm/resnet18d", "timm/resnet10t"),
    *("timm/legacy_xception", "timm/legacy_seresnet18", "timm/xception41", "timm/inception_v4", "timm/dpn48b"),
    *("timm/dla34", "timm/ese_vovnet19b_dw", "timm/selecsls42", "timm/hardcorenas_a", "timm/ghostnet_050"),
    *("timm/mobileone_s0", "timm/repvgg_a0", "timm/res2net50_14w_8s", "timm/resnest14d", "timm/skresnet18"),
    *("timm/hrnet_w18_small", "timm/cspresnet50", "timm/rexnet_100", "timm/efficientnet_lite0", "timm/mixnet_s"),
    *("timm/tf_efficientnetv2_b0", "timm/fbnetc_100", "timm/regnetx_002", "timm/lcnet_050", "timm/mobilevit_xxs"),
    *("timm/hgnetv2_b0", "timm/repvit_m0_9", "timm/starnet_s1"),
)
QUICK = {
    "torchvision/resnet18": 0,
    "torchvision/shufflenet_v2_x0_5": 0,
    "timm/resnet18d": 0,
    "timm/lcnet_050": 0,
    "timm/hardcorenas_a": 0,
}
"""Some of them, with a seed."""

FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": lambda a, g: (g.mean((2, 3), keepdim=True) * a).sum(1),
    "hirescam": lambda a, g: (g * a).sum(1),
    "layercam": lambda a, g: (g.clamp_min(0) * a).sum(1),
}
"""From activations and gradients [B,C,h,w] to raw maps [B,h,w]."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Lowest correlation over methods with a full backward in float64 through the network as it was built.

    folded, replica: of a tuned engine and its replica in float64, where rounding cannot hide anything or be to blame.
    single, half: of a tuned engine in fp32 and bf16; single_before, half_before: of one that is not tuned.
    """

    model: str
    place: str
    folded: float
    replica: float
    single: float = 1.0
    single_before: float = 1.0
    half: float = 1.0
    half_before: float = 1.0

    @property
    def holds(self) -> bool:
        """Tuning changed nothing but rounding."""
        single, half = (rounded(before) for before in (self.single_before, self.half_before))
        return min(self.folded, self.replica) >= LEAST and self.single >= single and self.half >= half


def rounded(before: float) -> float:
    """What a tuned engine must reach where one that is not tuned reaches `before` in the same precision.

    Rounding switches single rectifiers, so two equally good ways to compute a network differ by chance.
    """
    return before - 2 * (1 - before) - ROUNDING


def examine(name: str, seed: int, rounding: bool = True, places: int = PLACES, side: int = SIDE) -> Iterator[Agreement]:
    """Agreement at random places of an architecture, called SOURCE/NAME."""
    module, x = build(name, side), inputs(1, side, seed)
    for output in drawn(module, x, seed, places):
        yield agreement(name, module, x, output, rounding)


def build(name: str, side: int) -> nn.Module:
    """With random weights that keep the signal alive, and the statistics that its batch norms saw."""
    torch.manual_seed(0)
    source, _, model = name.partition("/")
    config = ModelConfig(source=source, name=model, weights="none", num_classes=CLASSES)
    module = model_source(source).build(config, None).module
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d) and child.affine:
            nn.init.uniform_(child.weight, 0.5, 1.5)
    return calibrated(module, inputs(4, side, seed=9))


def drawn(module: nn.Module, x: Tensor, seed: int, places: int) -> list[Output]:
    """Tensors of maps of at least 2 x 2 cells that the prediction depends on, drawn at random."""
    trace = record(module, x)
    grids = [output for output in trace.outputs if len(output.shape) == 3 and min(output.shape[1:]) > 1]
    alive = [o for o, g in zip(grids, trace.gradients(grids), strict=True) if g is not None and g.any()]
    order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed)).tolist()
    return [alive[i] for i in order[:places]]


def agreement(model: str, module: nn.Module, x: Tensor, output: Output, rounding: bool) -> Agreement:
    """Of the maps at the place of `output`, which is read as [B,C,h,w] whatever it is."""
    place = output.place
    exact, x64 = copy.deepcopy(module).double(), x.double()
    target = int(exact(x64).argmax())
    expected = by_full_backward(exact, x64, place, target)
    layer = TargetLayer((Tap(place.path, Layout("nchw", (output.shape[1], output.shape[2])), place.call, place.item),))
    tuned = tuned_engine(exact, layer, x.shape[-1])
    found = [lowest(expected, engine, x64, target) for engine in (tuned, tuned.replica())]
    if rounding:
        plain, tuned = engine_at(module, layer, x.shape[-1]), tuned_engine(copy.deepcopy(module), layer, x.shape[-1])
        for precision in ("fp32", "bf16"):
            plain.precision = tuned.precision = precision
            found += [lowest(expected, engine, x, target) for engine in (tuned, plain)]
    name = f"{place.path} {place.call}" if place.call else place.path
    return Agreement(model, name, *found)


def engine_at(module: nn.Module, layer: TargetLayer, side: int) -> Engine:
    """For the methods of FORMULAS."""
    preprocess = Preprocess((side, side), (side, side), (0, 0, 0), (1, 1, 1), "bilinear", "center")
    return Engine(loaded(module, preprocess, CLASSES), [layer], [METHODS.get(name) for name in FORMULAS])


def tuned_engine(module: nn.Module, layer: TargetLayer, side: int) -> Engine:
    """The same, tuned; it takes the module's own type of number, float64 too."""
    engine = engine_at(module, layer, side)
    normalise, number = engine.normalise, next(module.parameters()).dtype
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "normalise", lambda pixels: normalise(pixels).to(number))
        tune(engine)
    return engine


def by_full_backward(module: nn.Module, x: Tensor, place: Place, target: int) -> list[Tensor]:
    """The raw maps of FORMULAS [B,h,w] by an ordinary backward pass down to the image."""
    seen: list[tuple[torch.autograd.graph.GradientEdge, Tensor]] = []

    def visit(here: Place, tensor: Tensor) -> None:
        if here == place:
            seen.append((torch.autograd.graph.get_gradient_edge(tensor), tensor.detach().clone()))

    with visiting(module, visit):
        score = module(x.clone().requires_grad_())[:, target].sum()
    [(edge, activation)] = seen
    [gradient] = torch.autograd.grad(score, [edge])
    return [formula(activation, gradient) for formula in FORMULAS.values()]


def lowest(expected: Sequence[Tensor], engine: Engine, x: Tensor, target: int) -> float:
    """Correlation of the worst of the engine's raw maps."""
    done = engine.forward(x)
    target_weights = torch.zeros_like(done.logits.detach())
    target_weights[:, target] = 1
    batch, views = engine.views(done, target_weights)
    raws = [method.compute(batch, views)[0].sum(1) for method in engine.methods]
    return min(oracles.correlation(a.numpy(), b.numpy()) for a, b in zip(raws, expected, strict=True))


def summary(rows: Sequence[Agreement]) -> str:
    """Counts, and the lowest figure of each kind."""
    lines = [f"tuned maps hold at {sum(row.holds for row in rows)} of {len(rows)} places"]
    for name in ("folded", "replica", "single", "single_before", "half", "half_before"):
        figures = sorted(getattr(row, name) for row in rows)
        lines.append(f"{name}: lowest {figures[0]:.12f}, median {figures[len(figures) // 2]:.12f}")
    return "\n".join([*lines, *(f"differs: {row}" for row in rows if not row.holds)])
