"""Maps against the reference packages; `python -m tests.parity` prints the whole matrix."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camcli.config.schema import Smoothing
from camcli.engine.engine import Explanation
from camcli.engine.methods import METHODS
from camcli.engine.targets import Target
from tests import oracles, peers
from tests.nets import Net, inputs
from tests.parity import Case, agreement

NAIVE = {
    "squeezenet1_0": ("fem", "gradcam++", "smooth-gradcam++"),
    "swin_t": ("fem", "gradcam++", "smooth-gradcam++", "shapleycam"),
    "vit_b_16": ("fem", "gradcam++", "smooth-gradcam++", "shapleycam"),
}
FROM_BACKWARDS = [
    name for name, method in METHODS.items() if "gradients" in method.needs and method.resolution == "layer"
]

case_of = cache(Case.of)


class TinyNet(nn.Module):
    """The target layer is `act`, and a convolution follows; two logits are positive, two negative."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5, stride=2), nn.Conv2d(6, 12, 3, stride=2)
        self.relu1, self.act = nn.ReLU(), act
        self.conv3, self.head = nn.Conv2d(12, 8, 3), nn.Linear(8, 4)
        self.head.bias.data = torch.tensor([2.0, -2.0, 2.0, -2.0])

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,4]."""
        late = self.conv3(self.act(self.conv2(self.relu1(self.conv1(x)))))
        logits: Tensor = self.head(F.gelu(late).mean((2, 3)))
        return logits


def late_logits(module: TinyNet, maps: Tensor) -> Tensor:
    """What the network makes of the outputs of `act`."""
    logits: Tensor = module.head(F.gelu(module.conv3(maps)).mean((2, 3)))
    return logits


def tiny(act: nn.Module) -> Case:
    """A case with 7 x 7 cells."""
    module = TinyNet(act).eval().requires_grad_(False)
    x = inputs(2, 32)
    return Case(Net("tiny", 32, "act"), module, x, 7, int(module(x).amin(0).argmax()))


@pytest.mark.parametrize("method", [*FROM_BACKWARDS, "eigencam", "kpcacam", "fem"])
@pytest.mark.parametrize("net", ["squeezenet1_0", "swin_t", "vit_b_16"])
def test_maps_are_those_of_the_reference_package(net: str, method: str) -> None:
    figure, mark = agreement(case_of(net), method)
    assert figure > 0.9999
    assert mark == ("=" if method in NAIVE[net] else "")


def test_the_package_weighs_activations_by_shares_where_fem_adds_up_means_of_strong_channels() -> None:
    case = case_of("squeezenet1_0")
    [maps] = oracles.outputs(case.module, case.net.path, case.x)
    theirs = peers.grad_cam("fem", case.module, case.net.path, case.x, case.target)
    paper = oracles.shown(oracles.strong_features(maps), case.net.side)
    means, deviations = maps.mean((2, 3), keepdim=True), maps.std((2, 3), correction=0, keepdim=True)
    shares = (maps > means + 2 * deviations).float().mean((2, 3), keepdim=True)
    weighed = oracles.shown((shares * maps).sum(1), case.net.side)
    assert min(oracles.correlation(a, b) for a, b in zip(weighed, theirs, strict=True)) > 0.9999
    assert max(oracles.correlation(a, b) for a, b in zip(paper, theirs, strict=True)) < 0.99


@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU()])
def test_shapley_values_of_channels_are_those_of_the_reference_package(act: nn.Module) -> None:
    """Behind the layer stands a GELU, whose second derivative counts: plain Grad-CAM is another map."""
    case = tiny(act)
    ours, plain = (oracles.shown(case.raw(name), 32) for name in ("shapleycam", "gradcam"))
    theirs = peers.grad_cam("shapleycam", case.module, "act", case.x, case.target)
    assert min(oracles.correlation(a, b) for a, b in zip(ours, theirs, strict=True)) > 0.9999
    assert min(oracles.correlation(a, b) for a, b in zip(plain, theirs, strict=True)) < 0.9998


@pytest.mark.parametrize("net", ["resnet18", "mobilenet_v3_large"])
@pytest.mark.parametrize("method", ["gradcam++", "xgradcam"])
def test_layouts_and_activations_of_all_kinds_agree(net: str, method: str) -> None:
    figure, _ = agreement(case_of(net), method)
    assert figure > 0.9999


@pytest.mark.parametrize("net", ["squeezenet1_0", "vit_b_16"])
def test_a_constant_is_all_that_the_package_has_beside_the_paper_in_grad_cam_plus_plus(net: str) -> None:
    case = case_of(net)
    about = case.module, case.net.path, case.maps_of, case.x, case.target
    paper, constant = (oracles.shown(oracles.plus_plus(*about, constant=c), case.net.side) for c in (0.0, 1e-6))
    theirs = peers.grad_cam("gradcam++", case.module, case.net.path, case.x, case.target, case.reshape)
    assert min(oracles.correlation(a, b) for a, b in zip(constant, theirs, strict=True)) > 0.9999
    assert min(oracles.correlation(a, b) for a, b in zip(paper, theirs, strict=True)) < 0.9999


@pytest.mark.parametrize("method", ["guided-backprop", "deconvnet", "integrated-gradients", "occlusion", "fullgrad"])
def test_pixel_maps_are_those_of_the_reference_packages(method: str) -> None:
    figure, _ = agreement(case_of("resnet18"), method)
    assert figure > 0.9999


@pytest.mark.parametrize("method", ["guided-backprop", "deconvnet"])
def test_rectifier_rules_reach_hardswish(method: str) -> None:
    """The package finds no nn.ReLU to exchange here, and returns plain gradients without a word."""
    figure, mark = agreement(case_of("mobilenet_v3_large"), method)
    assert figure > 0.9999
    assert mark == "="


@pytest.mark.parametrize("net", ["vit_b_16", "swin_t"])
def test_full_gradient_counts_the_biases_of_transformers(net: str) -> None:
    figure, mark = agreement(case_of(net), "fullgrad")
    assert figure > 0.9999
    assert mark == "="


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_rescoring_is_that_of_the_reference_package(method: str) -> None:
    case = tiny(nn.ReLU())
    theirs = peers.grad_cam(method, case.module, "act", case.x, case.target)
    ours = oracles.shown(case.raw(method), 32)
    assert min(oracles.correlation(a, b) for a, b in zip(ours, theirs, strict=True)) > 0.9999


def test_ablation_sets_channels_to_zero_where_the_package_does_not() -> None:
    """Where activations go negative, the package writes -1e7 into a channel instead of taking it out."""
    case = tiny(nn.SiLU())
    naive = oracles.shown(oracles.ablation(case.module, "act", lambda t: t, case.x, case.target), 32)
    theirs = peers.grad_cam("ablationcam", case.module, "act", case.x, case.target)
    ours = oracles.shown(case.raw("ablationcam"), 32)
    assert min(oracles.correlation(a, b) for a, b in zip(ours, naive, strict=True)) > 0.9999
    assert min(oracles.correlation(a, b) for a, b in zip(theirs, naive, strict=True)) < 0.99


def test_ablation_of_a_negative_logit_keeps_its_sign() -> None:
    """Divided by y < 0, as in the paper and the package, channels that hold the logit up count against it."""
    case = tiny(nn.ReLU())
    module = case.module
    assert isinstance(module, TinyNet)
    maps = module.act(module.conv2(module.relu1(module.conv1(case.x))))
    logits = late_logits(module, maps)
    target = int(logits.amax(0).argmin())
    assert logits[:, target].max() < 0
    channel = int(maps[0].sum((1, 2)).argmax())
    without = maps.clone()
    without[0, channel] = 0
    fall = (logits - late_logits(module, without))[0, target]
    weight = case.parts("ablationcam", target)[0, channel].sum() / maps[0, channel].sum()
    assert float(weight) == pytest.approx(float(fall / logits[0, target].abs()), rel=1e-4)
    naive = oracles.shown(oracles.ablation(module, "act", lambda t: t, case.x, target), 32)
    theirs = peers.grad_cam("ablationcam", module, "act", case.x, target)
    assert max(oracles.correlation(a, b) for a, b in zip(theirs, naive, strict=True)) < 0


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_smoothing_by_copies_is_that_of_the_reference_package(method: str) -> None:
    case = case_of("resnet18")
    ours = smoothed(case, method, "aug")
    theirs = peers.grad_cam(method, case.module, case.net.path, case.x, case.target, aug_smooth=True)
    assert min(oracles.correlation(a, b) for a, b in zip(ours, theirs, strict=True)) > 0.9999


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_smoothing_by_the_first_component_is_a_singular_vector(method: str) -> None:
    case = case_of("resnet18")
    component = oracles.first_component(case.parts(method, case.target))
    both = [oracles.shown(sign * component, case.net.side) for sign in (1, -1)]
    for i, ours in enumerate(smoothed(case, method, "eigen")):
        assert max(oracles.correlation(ours, turned[i]) for turned in both) > 0.9999


def smoothed(case: Case, method: str, smoothing: Smoothing) -> oracles.Array:
    """Our heat at the input's size."""
    engine = case.engine(method)
    engine.smoothing = smoothing
    done = engine.forward(case.x)
    target_weights = torch.zeros_like(done.logits.detach())
    target_weights[:, case.target] = 1
    [[maps]] = engine.maps(done, [target_weights])
    return F.interpolate(maps.heat[:, None], (case.net.side,) * 2, mode="bilinear")[:, 0].numpy()


def test_explanations_pass_through_the_same_maps() -> None:
    case = case_of("resnet18")
    engine = case.engine("gradcam")
    pixels = torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    [answer] = engine.explain(pixels, lambda _: [Target(case.target)])
    assert isinstance(answer, Explanation)
    theirs = peers.grad_cam("gradcam", case.module, case.net.path, engine.normalise(pixels), case.target)
    heat = torch.from_numpy(answer.heatmaps[0].heat)[None, None]
    ours = F.interpolate(heat, (128, 128), mode="bilinear")[0, 0].numpy()
    assert oracles.correlation(ours, theirs[0]) > 0.9999
