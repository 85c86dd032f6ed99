"""Attention followed through transformers of both libraries, against maps taken out by the libraries' own means."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from camcli.config.schema import OptionsConfig
from camcli.engine.engine import Engine
from camcli.engine.layers import Layout, Tap, TargetLayer
from camcli.engine.methods import METHODS
from camcli.engine.targets import Target
from camcli.errors import MethodError
from camcli.images.preprocess import Preprocess
from tests import oracles
from tests.conftest import loaded
from tests.nets import calibrated, inputs
from tests.test_engine import pixels

CLASSES = 6
SIDE = 64


def network(library: str, fused: bool = True, **options: Any) -> tuple[nn.Module, str]:
    """A small transformer with random weights, and the path of its last norm before attention."""
    torch.manual_seed(0)
    if library == "torchvision":
        module: nn.Module = torchvision.models.VisionTransformer(SIDE, 16, 3, 4, 32, 64, num_classes=CLASSES)
        return calibrated(module, inputs(4, SIDE)), "encoder.layers.encoder_layer_2.ln_1"
    module = timm.create_model("test_vit", img_size=SIDE, num_classes=CLASSES, **options)
    for child in module.modules():
        if hasattr(child, "fused_attn"):
            setattr(child, "fused_attn", fused)  # noqa: B010
    return calibrated(module, inputs(4, SIDE)), "blocks.5.norm1"


def engine(module: nn.Module, path: str, *names: str, prefix: int = 1) -> Engine:
    """With that many tokens before the 4 x 4 patches."""
    layer = TargetLayer((Tap(path, Layout("tokens", (4, 4), prefix)),))
    square = Preprocess((SIDE, SIDE), (SIDE, SIDE), (0, 0, 0), (1, 1, 1), "bilinear", "center")
    methods = [METHODS.get(name) for name in names]
    return Engine(loaded(module, square, CLASSES), [layer], methods, options=OptionsConfig(chunk=2))


def attention_of(library: str, x: Tensor, target: int) -> tuple[list[Tensor], list[Tensor]]:
    """Attention maps [B,heads,N,N] and gradients, from unfused modules whose softmax or weights are held."""
    module, _ = network(library, fused=False)
    kept: list[Tensor] = []

    def hold(weights: Tensor) -> Tensor:
        kept.append(weights)
        return weights

    with pytest.MonkeyPatch.context() as patch:
        if library == "timm":
            plain = Tensor.softmax
            patch.setattr(Tensor, "softmax", lambda self, dim: hold(plain(self, dim)))
        else:
            patch.setattr(
                nn.functional, "scaled_dot_product_attention", lambda q, k, v, *_, **__: _plain(q, k, v, hold)
            )
        logits = module(x.clone().requires_grad_())
    return [a.detach() for a in kept], list(torch.autograd.grad(logits[:, target].sum(), kept))


def _plain(q: Tensor, k: Tensor, v: Tensor, hold: Any) -> Tensor:
    return hold((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)) @ v  # type: ignore[no-any-return]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_both_follow_the_definition_image_by_image(library: str, fused: bool) -> None:
    x, target = inputs(3, SIDE), 2
    maps, gradients = attention_of(library, x, target)
    module, path = network(library, fused)
    found = engine(module, path, "attention-rollout", "attention-gradient")
    done = found.forward(x)
    weights = torch.zeros(3, CLASSES)
    weights[:, target] = 1
    batch, views = found.views(done, weights)
    ours = [method.compute(batch, views)[0] for method in found.methods]
    for image in range(3):
        rollout = relevance = torch.eye(17)
        for a, g in zip(maps, gradients, strict=True):
            mixed = a[image].mean(0) + torch.eye(17)
            rollout = mixed / mixed.sum(-1, keepdim=True) @ rollout
            relevance = relevance + (a[image] * g[image]).clamp(min=0).mean(0) @ relevance
        for raw, naive in zip(ours, (rollout, relevance), strict=True):
            expected = naive[0, 1:].view(4, 4)
            assert torch.allclose(raw[image], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
            assert oracles.correlation(raw[image].numpy(), expected.numpy()) > 0.9999


@pytest.mark.parametrize("name", ["attention-rollout", "attention-gradient"])
@pytest.mark.parametrize("case", ["patches are averaged", "no class token", "no attention"])
def test_a_model_without_class_token_attention_is_refused(case: str, name: str) -> None:
    if case == "patches are averaged":
        found = engine(*network("timm", global_pool="avg"), name)
    elif case == "no class token":
        found = engine(*network("timm", class_token=False, global_pool="avg"), name, prefix=0)
    else:
        module = calibrated(timm.create_model("test_resnet", num_classes=CLASSES), inputs(2, SIDE))
        layer = TargetLayer((Tap("layer4", Layout("nchw", (2, 2))),))
        found = Engine(loaded(module, classes=CLASSES), [layer], [METHODS.get(name)])
    with pytest.raises(MethodError, match=r"class token.*Use 'gradcam'"):
        found.explain(pixels(1, SIDE), lambda _: [Target(1)])
