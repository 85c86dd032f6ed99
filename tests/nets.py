"""Seeded networks whose signals stay alive without training, and where each one is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from camcli.engine.layers import Layout, Tap, TargetLayer
from camcli.engine.layers.layout import LayoutKind

CLASSES = 10


@dataclass(frozen=True)
class Net:
    """An architecture of torchvision, the side of its input in pixels, and a layer with its layout."""

    name: str
    side: int
    path: str
    kind: LayoutKind = "nchw"
    prefix: int = 0

    def build(self) -> nn.Module:
        """Frozen, in evaluation mode, with random weights that keep every layer's output at about unit size."""
        torch.manual_seed(0)
        kwargs = {"image_size": self.side} if self.name.startswith("vit") else {}
        module: nn.Module = torchvision.models.get_model(self.name, weights=None, num_classes=CLASSES, **kwargs)
        return calibrated(module, inputs(4, self.side, seed=9))

    def layer(self, cells: int) -> TargetLayer:
        """The target layer, for a grid of `cells` x `cells`."""
        return TargetLayer((Tap(self.path, Layout(self.kind, (cells, cells), self.prefix)),))


NETS = {
    net.name: net
    for net in (
        Net("squeezenet1_0", 128, "features.12"),
        Net("resnet18", 128, "layer4"),
        Net("resnet50", 96, "layer4"),
        Net("vgg16", 96, "features.29"),
        Net("densenet121", 96, "features.denseblock4"),
        Net("mobilenet_v3_large", 96, "features.16"),
        Net("convnext_tiny", 96, "features.7"),
        Net("swin_t", 96, "norm", "nhwc"),
        Net("vit_b_16", 96, "encoder.layers.encoder_layer_11.ln_1", "tokens", 1),
    )
}


def inputs(count: int, side: int, seed: int = 0) -> Tensor:
    """float32 [count,3,side,side]: smooth blobs and noise, about normalised."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return smooth + 0.3 * torch.randn(count, 3, side, side, generator=generator)


def trained(module: nn.Module) -> nn.Module:
    """`module` with norms that do something, as after training, and frozen."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) / 10)
            norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5, generator)
                nn.init.uniform_(norm.bias, -0.2, 0.2, generator)
    return module.eval().requires_grad_(False)


def calibrated(module: nn.Module, batch: Tensor) -> nn.Module:
    """`module` with weights scaled, layer by layer, so that its outputs have a spread of one on `batch`."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = None
        bias = getattr(child, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.normal_(bias, std=0.3)
    for name, parameter in module.named_parameters():
        if "layer_scale" in name:
            nn.init.constant_(parameter, 0.5)
        elif name.endswith("weight") and not parameter.any():
            nn.init.normal_(parameter)
    module.train().requires_grad_(False)
    for child in module.modules():
        if isinstance(child, nn.Dropout) or type(child).__name__ == "StochasticDepth":
            child.eval()
    _with_hooks(module, lambda: module(batch))
    return module.eval()


def _with_hooks(module: nn.Module, run: Callable[[], object]) -> None:
    def rescale(child: nn.Module, args: object, output: Tensor) -> Tensor:
        spread = output.std().clamp_min(1e-6)
        for parameter in child.parameters(recurse=False):
            parameter.div_(spread)
        return output / spread

    linear = [child for child in module.modules() if isinstance(child, nn.Conv2d | nn.Linear)]
    handles = [child.register_forward_hook(rescale) for child in linear]
    run()
    for handle in handles:
        handle.remove()
