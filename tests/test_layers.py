"""The automatic layer and its layout, against models whose answer is known by construction."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig

from camcli.cli.console import print_layers
from camcli.engine.layers import Layout, Tap, TargetLayer, list_candidates, resolve_layer
from camcli.engine.layers.cache import cache_directory, resolve_cached
from camcli.engine.layers.cuts import cut_points, smallest_cut, vertex
from camcli.engine.layers.names import UnknownLayer, module_path
from camcli.engine.layers.probe import Evidence, Probe, images, response
from camcli.engine.layers.readings import readings
from camcli.engine.layers.search import Search
from camcli.engine.layers.trace import Place
from camcli.engine.layers.untrained import initialised
from camcli.errors import LayerError
from tests import survey

Size = tuple[int, int]
CLASSES = 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.act(self.conv(x).add_(x))
        return branch


def cnn() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 4, stride=4)
    stages = nn.Sequential(Residual(8), nn.Conv2d(8, 16, 2, stride=2), nn.BatchNorm2d(16), Residual(16))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    return frozen(nn.Sequential(stem, stages, head))


def vit(size: Size = (64, 96), **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3}
    return frozen(VisionTransformer(img_size=size, num_classes=CLASSES, **shape, **kwargs))


def swin() -> nn.Module:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"patch_size": 4, "window_size": 4, "embed_dim": 24, "depths": (1, 2), "num_heads": (2, 2)}
    return frozen(SwinTransformer(img_size=64, num_classes=CLASSES, **shape))


class Rearranged(nn.Module):
    """Patches whose locations are moved about before any module returns them."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(24, 3, 8, 8) / 14)
        self.move = move
        self.mix = nn.LayerNorm(24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.move(F.conv2d(x, self.weight, stride=8)).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.mix(tokens).square().mean(1))
        return logits


class TwoBranches(nn.Module):
    """Two streams at different strides that meet only in the logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1))
        self.coarse = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1))
        self.heads = nn.ModuleList(nn.Linear(8, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        streams = self.fine(x), self.coarse(x)
        fine, coarse = (head(y.square().mean((2, 3))) for head, y in zip(self.heads, streams, strict=True))
        return fine + coarse  # type: ignore[no-any-return]


def shuffled(maps: Tensor) -> Tensor:
    order = torch.randperm(maps.shape[2] * maps.shape[3], generator=torch.Generator().manual_seed(1))
    return maps.flatten(2)[:, :, order].unflatten(2, maps.shape[2:])  # type: ignore[no-any-return, no-untyped-call]


def gradient_through(module: nn.Module, size: Size, layer: TargetLayer) -> tuple[Tensor, Tensor]:
    """The image's gradient by way of the taps alone, and in full."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(3)).requires_grad_()
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    hooks = [module.get_submodule(tap.path).register_forward_hook(keep) for tap in layer.taps]
    logit = module(image * 1).max()
    for hook in hooks:
        hook.remove()
    at_taps = torch.autograd.grad(logit, kept, retain_graph=True)
    (through,) = torch.autograd.grad(kept, image, at_taps, retain_graph=True)
    (full,) = torch.autograd.grad(logit, image)
    return through, full


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
def test_cnn_gives_its_last_stage(size: Size) -> None:
    layer = resolve_layer(cnn(), size)
    assert layer.taps == (Tap("1", Layout("nchw", (size[0] // 8, size[1] // 8))),)


@pytest.mark.parametrize(
    ("kwargs", "prefix"),
    [
        ({}, 1),
        ({"reg_tokens": 4}, 5),
        ({"reg_tokens": 1}, 2),
    ],
)
def test_class_token_vit_gives_the_norm_before_the_last_attention(kwargs: dict[str, Any], prefix: int) -> None:
    module = vit(**kwargs)
    assert module.num_prefix_tokens == prefix
    assert resolve_layer(module, (64, 96)).taps == (Tap("blocks.2.norm1", Layout("tokens", (4, 6), prefix)),)


def test_pooling_vit_gives_its_last_tokens() -> None:
    module = vit(class_token=False, global_pool="avg", fc_norm=False)
    assert resolve_layer(module, (64, 96)).taps == (Tap("norm", Layout("tokens", (4, 6))),)


def test_swin_is_read_with_channels_last() -> None:
    assert resolve_layer(swin(), (64, 64)).taps == (Tap("norm", Layout("nhwc", (8, 8))),)


@pytest.mark.parametrize(("build", "size"), [(cnn, (64, 96)), (swin, (64, 64)), (TwoBranches, (64, 64))])
def test_the_whole_gradient_of_the_image_goes_through_the_layer(build: Callable[[], nn.Module], size: Size) -> None:
    module = frozen(build())
    through, full = gradient_through(module, size, resolve_layer(module, size))
    torch.testing.assert_close(through, full)


def test_branches_that_meet_in_the_logits_are_cut_together() -> None:
    layer = resolve_layer(frozen(TwoBranches()), (64, 96))
    assert {tap.path: tap.layout.grid for tap in layer.taps} == {"fine": (8, 12), "coarse": (4, 6)}


class StemAndBranches(TwoBranches):
    """The two streams come from one early layer, through which the whole prediction flows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 2, stride=2), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.stem(x))


def test_late_branches_are_preferred_to_an_early_cut() -> None:
    layer = resolve_layer(frozen(StemAndBranches()), (128, 192))
    assert {tap.path: tap.layout.grid for tap in layer.taps} == {"fine": (8, 12), "coarse": (4, 6)}


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class MeanOfCells(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean((1, 2))


def test_the_same_values_are_tapped_where_they_stand_first() -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 16, 8, stride=8), nn.Tanh(), nn.Identity(), ChannelsLast()
    module = frozen(nn.Sequential(*body, MeanOfCells(), nn.Linear(16, CLASSES)))
    assert resolve_layer(module, (64, 96)).taps == (Tap("1", Layout("nchw", (8, 12))),)


class Twice(nn.Module):
    """Returns one tensor under two keys."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        return {"left": y, "right": y}


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Twice()
        self.skip = nn.Identity()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        sides = self.body(x)
        logits: Tensor = self.head((sides["left"] * self.skip(sides["right"])).mean((2, 3)))
        return logits


def test_a_tensor_that_goes_two_ways_is_tapped_where_it_is_made() -> None:
    module = frozen(Joined())
    layer = resolve_layer(module, (64, 64))
    assert layer.name == "body.conv"
    through, full = gradient_through(module, (64, 64), layer)
    torch.testing.assert_close(through, full)


@pytest.mark.parametrize("move", [shuffled, lambda maps: maps.transpose(2, 3), lambda maps: maps.flip(2)])
def test_a_grid_out_of_order_is_refused(move: Callable[[Tensor], Tensor]) -> None:
    module = frozen(Rearranged(move))
    with pytest.raises(LayerError, match="image"):
        resolve_layer(module, (64, 64))
    with pytest.raises(LayerError, match="'mix' does not follow the image's grid"):
        resolve_layer(module, (64, 64), "mix")


def test_the_same_grid_in_order_is_accepted() -> None:
    layer = resolve_layer(frozen(Rearranged(lambda maps: maps)), (64, 64), "mix")
    assert layer.taps == (Tap("mix", Layout("tokens", (8, 8))),)


def test_a_dead_layer_is_refused_with_a_live_one_named() -> None:
    with pytest.raises(LayerError, match=r"'blocks\.2' is dead.*layer: auto.*blocks\.2\.norm1"):
        resolve_layer(vit(), (64, 96), "blocks.2")


class ClassMaps(nn.Module):
    """SqueezeNet's end: class maps behind a rectifier, averaged; `bias` how few locations are above zero."""

    def __init__(self, stride: int = 1, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.Tanh())
        self.maps = nn.Conv2d(8, CLASSES, stride, stride=stride)
        self.rectify = nn.ReLU()
        nn.init.constant_(self.maps.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.rectify(self.maps(self.body(x))).mean((2, 3))
        return logits


def share_above_zero(module: ClassMaps, size: Size) -> float:
    """Of the locations of the four likeliest class maps of each synthetic image."""
    maps = module.rectify(module.maps(module.body(images(module, size))))
    likeliest = maps.mean((2, 3)).topk(4, 1).indices
    return float(torch.stack([(maps[i, likeliest[i]] > 0).float().mean() for i in range(len(maps))]).mean())


@pytest.mark.parametrize("path", ["body", "maps"])
@pytest.mark.parametrize("bias", [-0.3, 0.0, 0.2])
def test_a_named_layer_with_locations_that_get_no_gradient_goes_on_with_a_note(path: str, bias: float) -> None:
    module = frozen(ClassMaps(bias=bias))
    share = share_above_zero(module, (64, 96))  # type: ignore[arg-type]
    assert 0.05 < share < 0.9
    layer = resolve_layer(module, (64, 96), path)
    assert layer.taps == (Tap(path, Layout("nchw", (8, 12))),)
    assert layer.note.startswith(f"layer {path}: {int(100 * share)}% of the locations get a gradient")


def test_a_layer_of_which_nearly_all_locations_get_a_gradient_has_no_note() -> None:
    module = frozen(ClassMaps(bias=0.8))
    assert share_above_zero(module, (64, 64)) > 0.95  # type: ignore[arg-type]
    assert resolve_layer(module, (64, 64), "body").note == ""


class LoudClass(nn.Module):
    """Class 0 wins always, and sees `left`; all others see `right`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.unused = (nn.Conv2d(3, 8, 8, stride=8) for _ in range(3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        loud = 100 + self.left(x).square().mean((1, 2, 3))
        others = self.head(self.right(x).square().mean((2, 3)))[:, 1:]
        return torch.cat([loud[:, None] + 0 * self.unused(x).mean(), others], 1)


def test_a_layer_that_serves_other_classes_than_the_likeliest_is_accepted() -> None:
    layer = resolve_layer(frozen(LoudClass()), (64, 64), "right")
    assert layer.taps == (Tap("right", Layout("nchw", (8, 8))),)
    assert "75%" in layer.note  # three classes of the four likeliest


def test_a_layer_of_few_channels_that_all_get_a_gradient_is_chosen() -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 8, stride=8), nn.Tanh(), nn.Conv2d(8, 2, 1), nn.Tanh()
    module = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, CLASSES))
    assert resolve_layer(frozen(module), (64, 96)).name == "3"


def test_a_layer_that_serves_no_class_is_refused() -> None:
    with pytest.raises(LayerError, match="'unused' is dead"):
        resolve_layer(frozen(LoudClass()), (64, 64), "unused")


@pytest.mark.parametrize(
    ("stride", "bias", "expected"), [(1, 0.8, "body"), (1, 0.2, "body"), (1, -0.3, "rectify"), (2, 0.2, "rectify")]
)
def test_class_maps_are_chosen_only_where_no_layer_of_several_channels_is_as_late(
    stride: int, bias: float, expected: str
) -> None:
    assert resolve_layer(frozen(ClassMaps(stride, bias)), (96, 96)).name == expected


def test_a_layer_without_grid_is_refused_with_its_shape() -> None:
    with pytest.raises(LayerError, match=r"'2\.0' has no spatial layout \(it returns \[1, 16, 1, 1\]\).*auto"):
        resolve_layer(cnn(), (64, 64), "2.0")


def look_near(attention: nn.Module) -> None:
    """Give LeViT's position biases what training gives them: the farther a token, the less it counts."""
    index: Tensor = attention.attention_bias_idxs  # type: ignore[assignment]
    biases: Tensor = attention.attention_biases  # type: ignore[assignment]
    asked, held = (int(n**0.5) for n in index.shape)
    step = 1 if asked == held else 2
    for query, key in itertools.product(range(index.shape[0]), range(index.shape[1])):
        rows = abs(query // asked * step - key // held)
        columns = abs(query % asked * step - key % held)
        biases[:, index[query, key]] = -float(rows + columns)


@pytest.mark.filterwarnings("ignore")
def test_sixteen_tokens_are_a_grid_where_attention_looks_near() -> None:
    module, size = survey.build("timm", "levit_128s")
    with torch.no_grad():
        for child in module.modules():
            if hasattr(child, "attention_biases"):
                look_near(child)
    assert resolve_layer(module, size).taps == (Tap("stages", Layout("tokens", (4, 4))),)


def offered(message: str) -> list[str | None]:
    """The layers that a refusal names as the next step; None for `auto`."""
    meant = re.search(r"did you mean (.*?)\?", message)
    listed = re.search(r"one of (.*)$", message)
    near = re.findall(r"'(.*?)'", meant[1]) if meant else []
    return [*near, *(listed[1].split(", ") if listed else []), *([None] if "`layer: auto`" in message else [])]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("source", "name", "asked"),
    [
        ("timm", "test_vit", "norm"),
        ("timm", "test_vit3", "blocks.9"),
        ("timm", "test_vit2", "head"),
        ("timm", "vit_tiny_patch16_224", "blocks.11"),
        ("timm", "test_convnext2", "head.flatten"),
        ("timm", "levit_128s", "stages.2"),
        ("timm", "test_efficientnet_ln", "classifier"),
        ("timm", "crossvit_tiny_240", "norm.0"),
        ("timm", "pit_ti_224", "norm"),
        ("timm", "mobilevit_xxs", "stages.5"),
        ("timm", "test_resnet", "layer5"),
        ("timm", "test_convnext", "head"),
        ("timm", "test_efficientnet", "global_pool"),
        ("timm", "test_mambaout", "stages.9"),
        ("timm", "test_nfnet", "final_act.1"),
        ("timm", "test_byobnet", "stages.3.9"),
        ("torchvision", "alexnet", "classifier.1"),
        ("torchvision", "squeezenet1_0", "features.13"),
        ("torchvision", "mobilenet_v3_small", "classifier"),
        ("torchvision", "shufflenet_v2_x0_5", "fc"),
    ],
)
def test_every_layer_that_a_refusal_offers_is_accepted(source: str, name: str, asked: str) -> None:
    module, size = survey.build(source, name)
    size = size if source == "timm" else (96, 96)
    with pytest.raises(LayerError) as refused:
        resolve_layer(module, size, asked)
    names = offered(str(refused.value))
    assert len(names) >= 3, refused.value
    for path in names:
        assert resolve_layer(module, size, path).taps


def test_an_unknown_layer_gets_suggestions() -> None:
    words = r"unknown layer 'blocks\.2\.norm': 'blocks\.2' \(Block\) has norm1, .*; did you mean 'blocks\.2\.norm"
    with pytest.raises(LayerError, match=words):
        resolve_layer(vit(), (64, 96), "blocks.2.norm")


class Branches(nn.Module):
    """A list, a dictionary, a sequence with names, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(20))
        self.heads = nn.ModuleDict({"a-b": nn.Linear(3, 2)})
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, 3, 1))
        self.features.add_module("1", nn.Sigmoid())
        self.features.add_module("0", nn.Hardtanh())
        self.again = self.stages[3]


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("stages[-1]", "stages.19"),
        ("stages[-20][1]", "stages.0.1"),
        ("stages.4.-1", "stages.4.1"),
        ("model.stages[7][0]", "stages.7.0"),
        ("features[0]", "features.conv0"),
        ("features.0", "features.0"),
        ("features[-1]", "features.0"),
        ("heads['a-b']", "heads.a-b"),
        ("again[0]", "stages.3.0"),
        ("Hardtanh", "features.0"),
    ],
)
def test_layers_are_named_as_people_write_them(written: str, path: str) -> None:
    module = Branches()
    found = module_path(module, written)
    assert found == path
    # Python itself reads the same, but for strings between dots.
    if "." not in written and "[" in written:
        assert eval(f"module.{written}") is module.get_submodule(found)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("stages[20]", "unknown layer 'stages[20]': 'stages' (ModuleList) goes from [0] to [19]"),
        ("stages[-21]", "'stages' (ModuleList) goes from [0] to [19]"),
        ("stages[3][1].relu", "'stages.3.1' (ReLU) has no modules inside"),
        ("stages.x", "'stages' (ModuleList) has 0, 1, …, 11, 12, 13, 14, 15, 16, 17, 18, 19"),
        ("layer4", "unknown layer 'layer4': the model has stages, heads, features, again"),
        ("heads[0]", "'heads' (ModuleDict) has a-b"),
        ("ReLU", "'ReLU' is the class of 20 modules: stages.0.1, stages.1.1, …, "),
        ("stages[", "unknown layer 'stages[': write it as layer4[-1] or blocks.11.norm1"),
        ("", "unknown layer '': write it as"),
    ],
)
def test_what_names_no_module_is_refused_at_the_level_where_it_goes_wrong(written: str, words: str) -> None:
    with pytest.raises(UnknownLayer, match=re.escape(words)):
        module_path(Branches(), written)


def test_a_bracketed_layer_is_the_dotted_one() -> None:
    assert resolve_layer(vit(), (64, 96), "blocks[-1].norm1") == resolve_layer(vit(), (64, 96), "blocks.2.norm1")


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(LayerError, match="logits"):
        resolve_layer(frozen(nn.Sequential(nn.Conv2d(3, 4, 3))), (32, 32))


def test_a_named_layer_may_have_a_way_around_it() -> None:
    torch.manual_seed(0)
    stages = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
    module = frozen(torchvision.models.ConvNeXt(stages, num_classes=CLASSES))
    layer = resolve_layer(module, (96, 64), "features.3.0.block.5")
    assert layer.taps == (Tap("features.3.0.block.5", Layout("nhwc", (12, 8))),)


def test_a_module_that_is_called_twice_gives_its_last_call() -> None:
    torch.manual_seed(0)
    twice = nn.Conv2d(8, 8, 3, padding=1)
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, CLASSES))
    module = frozen(nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), twice, nn.GELU(), twice, nn.Tanh(), head))
    assert resolve_layer(module, (64, 64), "1").taps == (Tap("1", Layout("nchw", (8, 8)), call=1),)


def test_the_answer_is_the_same_every_time() -> None:
    module = vit()
    torch.manual_seed(1)
    first = resolve_layer(module, (64, 96))
    torch.manual_seed(2)
    assert resolve_layer(module, (64, 96)) == first


def state(module: nn.Module) -> list[Any]:
    """Everything that a search could disturb."""
    flags = [(child.training, len(child._forward_hooks)) for child in module.modules()]
    tensors = [
        (tensor.clone(), tensor.requires_grad) for tensor in itertools.chain(module.parameters(), module.buffers())
    ]
    return [flags, tensors, torch.get_rng_state(), torch.is_grad_enabled()]


@pytest.mark.parametrize("path", [None, "1.0.conv", "2.0", "nowhere"])
def test_the_module_is_left_as_it_was(path: str | None) -> None:
    module = cnn()
    module[1][0].conv.weight.requires_grad_(True)  # type: ignore[index]
    module[1][2].train()  # type: ignore[index]
    nn.init.zeros_(module[1][3].conv.weight)  # type: ignore[index]
    before = state(module)
    if path in (None, "1.0.conv"):
        resolve_layer(module, (64, 64), path)
    else:
        with pytest.raises(LayerError):
            resolve_layer(module, (64, 64), path)
    torch.testing.assert_close(state(module)[1:3], before[1:3], rtol=0, atol=0)
    assert state(module)[0] == before[0]
    assert state(module)[3] == before[3]


def test_zero_initialised_weights_do_not_hide_the_last_layer() -> None:
    module = vit(init_values=1e-6)
    for name, parameter in module.named_parameters():
        if name.endswith("ls1.gamma") or name == "head.weight":
            nn.init.zeros_(parameter)
    assert resolve_layer(module, (64, 96)).name == "blocks.2.norm1"


def trained() -> nn.Module:
    """With biases that are zero and batch norms that have seen images whose mean is zero."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.zeros_(module[0].bias)  # type: ignore[arg-type]
    module[1].running_var.fill_(0.5)  # type: ignore[operator]
    return frozen(module)


def test_a_trained_network_is_searched_as_it_is() -> None:
    module = trained()
    assert initialised(module, torch.zeros(1, 3, 8, 8)) is module


def test_a_fresh_batch_norm_takes_the_statistics_of_the_images_in_a_copy() -> None:
    module = trained()
    module[1].running_var.fill_(1)  # type: ignore[index]
    images = torch.randn(4, 3, 8, 8)
    copied = initialised(module, images)
    assert copied is not module
    assert not any(child.training for child in copied.modules())
    seen = module[0](images)  # type: ignore[index]
    torch.testing.assert_close(copied[1].running_mean, seen.mean((0, 2, 3)))  # type: ignore[index]
    torch.testing.assert_close(copied[1].running_var, seen.var((0, 2, 3)))  # type: ignore[index]
    assert not module[1].running_mean.any()  # type: ignore[index]


class Noisy(nn.Module):
    """Changes its input in place, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = cnn()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.mul_(1 + 1e-3 * torch.rand(())))
        return logits


@pytest.mark.parametrize("path", [None, "inner.0"])
def test_random_numbers_and_changes_in_place_are_the_model_s_own(path: str | None) -> None:
    module = frozen(Noisy())
    before = torch.get_rng_state()
    assert resolve_layer(module, (64, 64), path).name == (path or "inner.1")
    assert torch.equal(torch.get_rng_state(), before)


@torch.inference_mode()
def test_a_search_works_where_gradients_are_off() -> None:
    assert resolve_layer(cnn(), (64, 64)).name == "1"


def test_candidates_show_layout_cut_and_choice() -> None:
    rows = {row.path: row for row in list_candidates(cnn(), (64, 64))}
    assert [path for path, row in rows.items() if row.chosen] == ["1"]
    assert rows["1"].layout == Layout("nchw", (8, 8))
    assert rows["1"].is_cut
    assert rows["1"].live
    assert rows["1"].shape == (16, 8, 8)
    assert not rows["1.0.conv"].is_cut


def test_candidates_say_how_many_locations_get_a_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    module = frozen(ClassMaps())
    found = list_candidates(module, (64, 64))
    rows = {row.path: row for row in found}
    assert rows["body"].live_locations == pytest.approx(share_above_zero(module, (64, 64)))  # type: ignore[arg-type]
    assert (rows["body"].live, rows["rectify"].live, rows["rectify"].live_locations) == (False, True, 1.0)
    print_layers([asdict(row) for row in found])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "Conv2d" in line}
    assert f"gradient at {rows['maps'].live_locations:.0%} of the locations" in lines["maps"]


def test_candidates_mark_dead_locations() -> None:
    rows = {row.path: row for row in list_candidates(vit(), (64, 96))}
    assert rows["norm"].live is False
    assert rows["blocks.1"].live is True
    assert [row.path for row in rows.values() if row.chosen] == ["blocks.2.norm1"]


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((32, 7, 7), (224, 224), Layout("nchw", (7, 7))),
        ((7, 5, 32), (224, 160), Layout("nhwc", (7, 5))),
        ((197, 32), (224, 224), Layout("tokens", (14, 14), 1)),
        ((8, 10, 13), (299, 389), Layout("nchw", (10, 13))),
        ((197, 32), (224, 224), Layout("tokens", (14, 14), 0)),
        ((8, 2, 5), (100, 190), Layout("nchw", (2, 5))),  # a stride of 35 px, rounded down; up, there is none
        ((8, 2, 4), (100, 300), Layout("nchw", (2, 4))),  # a stride of 90 px, rounded up
    ],
)
def test_readings_hold_the_right_one(shape: tuple[int, ...], size: Size, expected: Layout) -> None:
    assert expected in readings(shape, size)


@pytest.mark.parametrize(
    ("shape", "size"), [((7, 9, 32), (224, 224)), ((32, 1, 1), (224, 224)), ((3, 8), (64, 64)), ((8, 64, 64), (32, 32))]
)
def test_readings_refuse_other_proportions(shape: tuple[int, ...], size: Size) -> None:
    assert readings(shape, size) == []


def test_what_all_locations_do_and_what_one_location_always_does_is_no_answer() -> None:
    touched = torch.tensor([3, 5, 9, 14])
    maps = torch.zeros(5, 2, 4, 4)
    locations = maps[1:].flatten(2)
    locations[:, 0] += 100
    locations[:, 1, 7] = 10
    locations[torch.arange(4), 0, touched] -= 1
    assert torch.equal(response(maps).flatten(1).argmax(1), touched)


def probed(**evidence: Evidence) -> Probe:
    """A probe that has found this for tokens that start after one, two and three others, of a place called `x`."""
    layouts = {name: Layout("tokens", (4, 4), 1 + index) for index, name in enumerate(("one", "two", "three"))}
    found = {layouts[name]: about for name, about in evidence.items()}
    return Probe(nn.Identity(), (64, 64), evidence={Place("x"): found})


NEAR, FAR = [0.1] * 8, [0.9] * 8


def test_a_reading_must_be_far_above_chance() -> None:
    assert probed(one=Evidence(NEAR, 3.9, 1.0)).verdict(Place("x")) is None
    assert probed(one=Evidence(NEAR, 4.1, 1.0)).verdict(Place("x")) == Layout("tokens", (4, 4), 1)


@pytest.mark.parametrize(
    ("rival", "wins"),
    [
        (Evidence(FAR, 4.9, 1.0), True),  # farther for every patch
        (Evidence(NEAR, 1.9, 1.0), True),  # as near, but far less often
        (Evidence(NEAR, 4.9, 1.0), False),
    ],
)
def test_a_reading_must_be_clearly_better_than_its_rivals(rival: Evidence, wins: bool) -> None:
    probe = probed(one=Evidence(NEAR, 5.0, 1.0), two=rival)
    assert (probe.verdict(Place("x")) is not None) == wins
    assert probe.verdict(Place("x"), strict=False) == Layout("tokens", (4, 4), 1)


def test_a_clear_case_costs_one_or_two_forwards() -> None:
    search = Search(cnn(), (64, 64))
    assert search.best()
    assert search.probe.rounds <= 2


@pytest.mark.parametrize("layout", [Layout("nchw", (2, 3)), Layout("nhwc", (2, 3)), Layout("tokens", (2, 3), 2)])
def test_layouts_read_the_same_maps(layout: Layout) -> None:
    maps = torch.arange(2 * 4 * 6.0).reshape(2, 4, 2, 3)
    stored = {
        "nchw": maps,
        "nhwc": maps.permute(0, 2, 3, 1),
        "tokens": torch.cat([torch.zeros(2, 2, 4), maps.flatten(2).transpose(1, 2), torch.ones(2, 1, 4)], 1),
    }[layout.kind]
    assert stored.shape[layout.channel_axis] == 4
    assert torch.equal(layout.to_maps(stored), maps)


def random_graph(seed: int) -> tuple[GradientEdge, GradientEdge, list[GradientEdge]]:
    """A loss made of a dozen sums of earlier tensors, its source, and the edges of the sums."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.ones(1, requires_grad=True)]
    for _ in range(12):
        near = tensors[-3:]
        picks = torch.randint(len(near), (2,), generator=generator).tolist()
        tensors.append(near[picks[0]] * 2 + near[picks[1]])
    return (
        get_gradient_edge(tensors[-1] * 1),
        get_gradient_edge(tensors[0]),
        [get_gradient_edge(t) for t in tensors[1:]],
    )


def connected(start: Node, end: Node, removed: set[Node]) -> bool:
    """Whether a walk leads from `start` to `end` around `removed`."""
    seen, stack = {start, *removed}, [start]
    while stack:
        below = [node for node, _ in stack.pop().next_functions if node is not None and node not in seen]
        if end in below:
            return True
        seen.update(below)
        stack += below
    return False


@pytest.mark.parametrize("seed", range(8))
def test_cut_points_are_those_whose_removal_disconnects(seed: int) -> None:
    loss, source, edges = random_graph(seed)
    cuts = cut_points(loss, source)
    for edge in edges:
        assert (vertex(edge) in cuts) != connected(loss.node, source.node, {edge.node})


@pytest.mark.parametrize("seed", range(8))
def test_smallest_cut_is_as_small_as_any(seed: int) -> None:
    loss, source, edges = random_graph(seed)
    allowed = [edge for edge in edges if vertex(edge) not in cut_points(loss, source)]
    found = smallest_cut(loss, source, [vertex(edge) for edge in allowed], limit=4)
    sizes = [
        count
        for count in range(1, 5)
        for chosen in itertools.combinations(allowed, count)
        if not connected(loss.node, source.node, {edge.node for edge in chosen})
    ]
    assert len(found) == min(sizes, default=0)
    assert not found or not connected(loss.node, source.node, {node for node, _ in found})


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_of_more_than_the_limit_is_none(seed: int) -> None:
    loss, source, edges = random_graph(seed)
    allowed = [vertex(edge) for edge in edges if vertex(edge) not in cut_points(loss, source)]
    size = len(smallest_cut(loss, source, allowed, limit=4))
    if size:
        assert len(smallest_cut(loss, source, allowed, limit=size)) == size
        assert smallest_cut(loss, source, allowed, limit=size - 1) == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "camcli" / "layers"


def unusable() -> nn.Module:
    """The layers of `cnn`, but a forward that fails: only a cached answer can serve it."""
    module = cnn()
    module.register_forward_pre_hook(lambda _m, _i: pytest.fail("the model ran"))
    return module


def test_a_cached_answer_needs_no_forward(cache: Path) -> None:
    first = resolve_cached("key", cnn(), (64, 64))
    assert resolve_cached("key", unusable(), (64, 64)) == first
    assert cache_directory() == cache
    assert [file.suffix for file in cache.iterdir()] == [".json"]


def stored(cache: Path) -> tuple[Path, TargetLayer]:
    """The one file of a cache that was asked `key`, and the answer in it."""
    first = resolve_cached("key", cnn(), (64, 64))
    (file,) = cache.iterdir()
    return file, first


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"{", b"[]", b"{}", b"5", b'"text"', b"null", b"\0", b"\xff\xfe{}", b"\xef\xbb\xbf{}"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"key": ' + b"9" * 10_000 + b"}"),
    ],
)
def test_a_damaged_entry_is_a_miss(cache: Path, damage: bytes) -> None:
    file, first = stored(cache)
    file.write_bytes(damage)
    assert resolve_cached("key", cnn(), (64, 64)) == first
    assert resolve_cached("key", unusable(), (64, 64)) == first


MODULE = cnn()
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value inside `value`."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places_in(inner, (*path, key))


def exchanged(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with `new` at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = exchanged(copy[path[0]], path[1:], new)
    return copy


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_the_cache_give_a_search_or_the_stored_answer(cache: Path, data: st.DataObject) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    fresh = TargetLayer((Tap("0", Layout("nchw", (16, 16))),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("camcli.engine.layers.cache.resolve_layer", lambda *_: fresh)
        assert resolve_cached("key", MODULE, (64, 64)) == fresh
        (file,) = cache.iterdir()
        entry = json.loads(file.read_bytes())
        path = data.draw(st.sampled_from(list(places_in(entry))))
        changed = data.draw(ODD.map(lambda new: json.dumps(exchanged(entry, path, new)).encode()) | st.binary())
        file.write_bytes(changed)
        assert resolve_cached("key", MODULE, (64, 64)) == fresh


def test_an_answer_that_was_altered_is_a_miss(cache: Path) -> None:
    file, first = stored(cache)
    file.write_bytes(file.read_bytes().replace(b'"grid":[8,8]', b'"grid":[4,16]'))
    assert resolve_cached("key", cnn(), (64, 64)) == first


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_what_is_no_file_is_a_miss(cache: Path, kind: str) -> None:
    file, first = stored(cache)
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(file if kind == "loop" else "/dev/zero")
    assert resolve_cached("key", cnn(), (64, 64)) == first
    assert len(list(cache.iterdir())) == 1


def test_an_entry_for_another_question_is_a_miss(cache: Path) -> None:
    other, _ = stored(cache)
    resolve_cached("named", cnn(), (64, 64), "1.0")
    (file,) = set(cache.iterdir()) - {other}
    shutil.copy(other, file)
    assert resolve_cached("named", cnn(), (64, 64), "1.0").name == "1.0"


def test_an_answer_by_other_rules_is_a_miss(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = stored(cache)
    monkeypatch.setattr("camcli.engine.layers.cache.RULES", 1)
    assert resolve_cached("key", cnn(), (64, 64)) == first
    assert len(list(cache.iterdir())) == 2


def test_a_note_is_kept(cache: Path) -> None:
    first = resolve_cached("key", frozen(ClassMaps()), (64, 64), "body")
    assert first.note
    assert resolve_cached("key", frozen(ClassMaps()), (64, 64), "body") == first


def test_an_entry_for_a_layer_that_is_gone_is_a_miss(cache: Path) -> None:
    resolve_cached("key", vit(), (64, 96))
    assert resolve_cached("key", cnn(), (64, 64)).name == "1"


def test_keys_do_not_meet(cache: Path) -> None:
    assert resolve_cached("auto", cnn(), (64, 64)).name == "1"
    assert resolve_cached("named", cnn(), (64, 64), "1.0").name == "1.0"
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("place", ["/dev/null", "/proc/nowhere", "/dev/full/x", "a" * 5000])
def test_a_cache_that_cannot_be_written_is_no_cache(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    assert resolve_cached("key", cnn(), (64, 64)).name == "1"


def test_a_disk_that_is_full_is_no_cache_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert resolve_cached("key", cnn(), (64, 64)).name == "1"
    assert list(cache.iterdir()) == []


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_directory() is None
    assert resolve_cached("key", cnn(), (64, 64)).name == "1"


def test_a_refusal_is_not_cached(cache: Path) -> None:
    with pytest.raises(LayerError):
        resolve_cached("key", cnn(), (64, 64), "2.0")
    assert not cache.exists()
