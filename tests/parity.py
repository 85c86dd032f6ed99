"""Our maps against the reference packages and naive definitions, over networks and methods, as a table.

    python -m tests.parity                    the whole matrix, some minutes
    python -m tests.parity vgg16 scorecam     some networks, some methods

Each figure is the lowest correlation over two images (one for scorecam and ablationcam). `=` marks a naive
definition in the place of a package that computes something else there (tests/test_parity.py shows each such defect),
and `-` a method that does not apply.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camcli.config.schema import OptionsConfig
from camcli.engine.engine import Engine
from camcli.engine.methods import METHODS
from camcli.errors import MethodError
from camcli.images.preprocess import Preprocess
from camcli.models.loaded import LoadedModel
from tests import oracles, peers
from tests.nets import CLASSES, NETS, Net, inputs

COSTLY = ("scorecam", "iscam", "sscam", "ablationcam", "reciprocam")
UP_TO_SIGN = ("eigencam", "eigengradcam", "kpcacam")
RELU_ONLY = ("squeezenet1_0", "resnet18", "resnet50", "vgg16")
CONV_ONLY = (*RELU_ONLY, "densenet121", "mobilenet_v3_large")
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A built network, two images, and a class of which both have a positive logit."""

    net: Net
    module: nn.Module
    x: Tensor
    cells: int
    target: int

    @classmethod
    def of(cls, name: str) -> Case:
        """The case called `name`; its grid is measured on the spot."""
        net = NETS[name]
        module, x = net.build(), inputs(2, net.side)
        shapes: list[torch.Size] = []
        with oracles.exchanged(module, net.path, lambda output: shapes.append(output.shape) or output):  # type: ignore[func-returns-value]
            target = int(module(x).amin(0).argmax())
        cells = {"nchw": shapes[0][-1], "nhwc": shapes[0][1], "tokens": round((shapes[0][1] - 1) ** 0.5)}[net.kind]
        return cls(net, module, x, cells, target)

    @property
    def reshape(self) -> Callable[[Tensor], Tensor] | None:
        """As the packages want it; None for NCHW."""
        if self.net.kind == "nhwc":
            return lambda t: t.permute(0, 3, 1, 2)
        if self.net.kind == "tokens":
            return lambda t: t[:, 1:].reshape(len(t), self.cells, self.cells, -1).permute(0, 3, 1, 2)
        return None

    def maps_of(self, stored: Tensor) -> Tensor:
        """[B,C,h,w]."""
        return stored if self.reshape is None else self.reshape(stored)

    def raw(self, name: str, **options: int) -> Tensor:
        """Our raw maps [B,h,w]."""
        raw = self.parts(name, self.target, **options)
        return raw if raw.dim() == 3 else raw.sum(1)

    def parts(self, name: str, target: int, **options: int) -> Tensor:
        """Our raw maps as the method gives them, [B,h,w] or [B,C,h,w]."""
        engine = self.engine(name, **options)
        done = engine.forward(self.x)
        target_weights = torch.zeros_like(done.logits.detach())
        target_weights[:, target] = 1
        [raw] = METHODS.get(name).compute(*engine.views(done, target_weights))
        return raw

    def engine(self, *names: str, **options: int) -> Engine:
        """For the methods called `names`."""
        side = (self.net.side, self.net.side)
        preprocess = Preprocess(side, side, (0, 0, 0), (1, 1, 1), "bilinear", "center")
        labels = tuple(map(str, range(CLASSES)))
        model = LoadedModel(self.module, "test", self.net.name, labels, "softmax", preprocess, "none", None)
        methods = [METHODS.get(name) for name in names]
        return Engine(model, [self.net.layer(self.cells)], methods, options=OptionsConfig(**options))


def agreement(case: Case, name: str) -> tuple[float, str]:
    """(lowest correlation over the images, mark of the oracle)."""
    side = case.net.side
    if name in COSTLY:
        case = replace(case, x=case.x[:1])
    try:
        raw = case.raw(name)
    except MethodError:
        return float("nan"), "-"
    theirs, mark = reference(case, name)
    ours = raw.numpy() if raw.shape[-1] == theirs.shape[-1] else oracles.shown(raw, side)
    figures = [oracles.correlation(a, b) for a, b in zip(ours, theirs, strict=True)]
    if name in UP_TO_SIGN:
        turned = zip(oracles.shown(-raw, side), theirs, strict=True)
        figures = [max(f, oracles.correlation(a, b)) for f, (a, b) in zip(figures, turned, strict=True)]
    return min(figures), mark


def reference(case: Case, name: str) -> tuple[Array, str]:
    """[B,H,W] of the package where it is right, else the (raw) map of the naive definition, with its mark."""
    module, path, x = case.module, case.net.path, case.x
    if name == "ablationcam" and (case.net.name not in RELU_ONLY):
        return oracles.ablation(module, path, case.maps_of, x, case.target).numpy(), "="
    if name == "fem":
        [maps] = oracles.outputs(module, path, x)
        return oracles.shown(oracles.strong_features(case.maps_of(maps)), case.net.side), "="
    if name == "reciprocam":
        about = module, path, case.maps_of, x, case.target, case.net.kind == "tokens"
        return oracles.shown(oracles.lone_locations(*about), case.net.side), "="
    if name in ("iscam", "sscam"):
        return _changed_masks(case, name), "="
    if name == "gradcam++":
        return oracles.shown(oracles.plus_plus(module, path, case.maps_of, x, case.target), case.net.side), "="
    if name == "fullgrad" and case.net.name not in CONV_ONLY:
        return oracles.full_gradient(module, case.reshape, x, case.target).numpy(), "="
    if name == "shapleycam" and case.net.name not in CONV_ONLY:
        return oracles.shown(oracles.shapley(module, path, case.maps_of, x, case.target), case.net.side), "="
    if name in peers.GRAD_CAM:
        return peers.grad_cam(name, module, path, x, case.target, case.reshape), ""
    return OTHERS[name](case)


def _changed_masks(case: Case, name: str) -> Array:
    noise = torch.Generator().manual_seed(0)
    noises = [2.0 * torch.randn(case.x.shape[-2:], generator=noise) for _ in range(35)]
    steps = [partial(torch.mul, (i + 1) / 10) for i in range(10)]
    changes = steps if name == "iscam" else [partial(torch.add, one) for one in noises]
    [maps] = oracles.outputs(case.module, case.net.path, case.x)
    return oracles.shown(
        oracles.score_cam(case.module, case.maps_of(maps), case.x, case.target, changes), case.net.side
    )


def _guided(case: Case) -> tuple[Array, str]:
    if case.net.name in RELU_ONLY:
        return peers.guided_backprop(case.module, case.x, case.target), ""
    return _ruled(case, deconvolved=False), "="


def _ruled(case: Case, deconvolved: bool) -> Array:
    x = case.x.clone().requires_grad_()
    with oracles.guided_activations(deconvolved):
        case.module(x)[:, case.target].sum().backward()
    assert x.grad is not None
    return x.grad.sum(1).numpy()


def _guided_gradcam(case: Case) -> tuple[Array, str]:
    guided, mark = _guided(case)
    heat = peers.grad_cam("gradcam", case.module, case.net.path, case.x, case.target, case.reshape)
    return np.asarray(guided * heat, dtype=np.float32), mark


def _cam(case: Case) -> tuple[Array, str]:
    return peers.grad_cam("gradcam", case.module, case.net.path, case.x, case.target, case.reshape), ""


def _integrated(case: Case) -> tuple[Array, str]:
    options = {"n_steps": 32, "method": "riemann_middle", "internal_batch_size": 16}
    return peers.captum("IntegratedGradients", case.module, case.x, case.target, **options), ""


def _occlusion(case: Case) -> tuple[Array, str]:
    options = {"sliding_window_shapes": (3, 32, 32), "strides": (3, 16, 16), "perturbations_per_eval": 8}
    summed = peers.captum("Occlusion", case.module, case.x, case.target, **options)
    return np.asarray(summed / 3, dtype=np.float32), ""


def _smooth_plus_plus(case: Case) -> tuple[Array, str]:
    noise = torch.Generator().manual_seed(0)
    samples = [torch.randn(case.x.shape[1:], generator=noise) for _ in range(4)]
    ranges = case.x.amax((1, 2, 3)) - case.x.amin((1, 2, 3))
    copies = [case.x + 0.07 * ranges[:, None, None, None] * sample for sample in samples]
    raw = oracles.smooth_plus_plus(case.module, case.net.path, case.maps_of, case.x, copies, case.target)
    return oracles.shown(raw, case.net.side), "="


def _smoothgrad(case: Case) -> tuple[Array, str]:
    noise = torch.Generator().manual_seed(0)
    samples = [torch.randn(case.x.shape[1:], generator=noise) for _ in range(16)]
    maps = []
    for image in case.x:
        total = torch.zeros_like(image)
        for sample in samples:
            x = (image + 0.15 * (image.max() - image.min()) * sample).requires_grad_()
            total += torch.autograd.grad(case.module(x[None])[0, case.target], x)[0]
        found = (total / 16).abs().sum(0)
        maps.append(found.clamp_max(float(np.percentile(found.numpy(), 99))))
    return torch.stack(maps).numpy(), "="


OTHERS: dict[str, Callable[[Case], tuple[Array, str]]] = {
    "cam": _cam,
    "guided-backprop": _guided,
    "deconvnet": lambda case: (_ruled(case, deconvolved=True), "="),
    "guided-gradcam": _guided_gradcam,
    "integrated-gradients": _integrated,
    "occlusion": _occlusion,
    "smooth-gradcam++": _smooth_plus_plus,
    "smoothgrad": _smoothgrad,
}


def main(names: list[str]) -> None:
    """The table."""
    torch.set_num_threads(1)
    methods = [name for name in METHODS if name in names or not set(names) & set(METHODS)]
    print("| network | " + " | ".join(methods) + " |")
    print("|---" * (1 + len(methods)) + "|")
    for name in [name for name in NETS if name in names or not set(names) & set(NETS)]:
        case = Case.of(name)
        cells = []
        for method in methods:
            figure, mark = agreement(case, method)
            cells.append(mark if mark == "-" else f"{figure:.6f}{mark}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
