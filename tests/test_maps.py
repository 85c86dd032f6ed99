"""From what a method adds up to heat: scale, sign, range, and when there is nothing to show."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camcli.engine.engine import Engine, Explanation
from camcli.engine.layers import Layout, Tap, TargetLayer
from camcli.engine.methods import METHODS, Batch, LayerView
from camcli.engine.methods.factors import concepts_of
from camcli.engine.methods.maps import (
    NOTHING,
    ROUNDING,
    SAME,
    SHOWN,
    merge,
    principal,
    reason_of,
    rounding,
    scale,
    scale_signed,
)
from camcli.engine.targets import Target
from camcli.errors import ItemError
from camcli.models.loaded import LoadedModel
from camcli.pipeline.record import image_record
from camcli.records import Box, Heatmap, ImageResult, Precision, Prediction
from camcli.results import report
from tests import oracles, tuned
from tests.conftest import loaded
from tests.nets import inputs
from tests.test_engine import layer_of, pixels
from tests.test_methods import ATTENTION, CHEAP, CLASSES, NAMES, Small, engine_for, heatmaps, small

POSITIVE = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])


def test_a_map_without_a_rise_has_nothing_to_show() -> None:
    flat = torch.full((1, 3, 3), 7.0)
    for raw, reason in ((flat, SAME), (flat * (1 + 1e-7), SAME), (-flat, NOTHING), (0 * flat, NOTHING)):
        assert not scale(raw).any()
        assert reason_of(raw, signed=False) == reason
    assert reason_of(POSITIVE, signed=False) == SHOWN
    assert scale(POSITIVE - 1).tolist() == pytest.approx(np.array([[[0, 0], [1 / 3, 1]]]))
    assert scale(POSITIVE + 4).tolist() == pytest.approx(np.array([[[0, 0.25], [0.5, 1]]]))


def test_a_signed_map_is_empty_only_where_it_is_zero() -> None:
    assert reason_of(-POSITIVE, signed=True) == SHOWN
    assert reason_of(0 * POSITIVE, signed=True) == NOTHING
    assert scale_signed(-POSITIVE).tolist() == [[[0, -0.25], [-0.5, -1]]]
    assert not scale_signed(0 * POSITIVE).any()


def test_the_range_is_that_of_the_raw_maps_of_all_layers() -> None:
    fine = torch.linspace(-3, 1, 16).view(1, 4, 4)
    maps = merge([POSITIVE - 1, fine])
    assert (float(maps.low), float(maps.high)) == (-3, 3)
    assert (float(maps.heat.min()), float(maps.heat.max())) == (0, 1)
    only = merge([-POSITIVE, fine])
    assert (only.reason.tolist(), float(only.heat.argmax())) == ([SHOWN], 15)
    assert merge([-POSITIVE, POSITIVE * 0 + 1]).reason.tolist() == [NOTHING]


def given(raw: Tensor, name: str = "gradcam") -> Heatmap:
    """What the engine makes of raw maps that are given."""
    engine = engine_for(name)
    engine.methods = (replace(METHODS.get(name), compute=lambda batch, views: [raw]),)
    [[heatmap]] = heatmaps(engine, pixels(1), [1])
    return heatmap


def test_maps_of_evidence_against_are_empty_unless_their_method_is_signed() -> None:
    raw = -torch.rand(1, 8, 8) - 0.1
    against = given(raw)
    assert (against.empty, bool(against.heat.any())) == (True, False)
    assert against.raw_max == pytest.approx(float(raw.max()))
    assert against.reason == "no value of the map is above zero"
    signed = given(raw, "guided-backprop")
    assert (signed.empty, signed.reason) == (False, "")
    assert (float(signed.heat.min()), bool(signed.heat.max() < 0)) == (-1, True)


def test_the_record_says_why_a_map_is_empty() -> None:
    star = Prediction(0, "star", 0.5, 1.0)
    heat = np.zeros((2, 2), dtype=np.float32)
    found = Heatmap("gradcam", "last", star, heat, -1.0, 0.0, empty=True, reason="no value of the map is above zero")
    result = ImageResult("x.png", "x.png", (8, 8), Box(0, 0, 8, 8), (star,), (found,))
    model = report.ModelRecord(source="test", name="net", weights_sha256=None)
    [record] = image_record(result, model, "last", ["x.jpg"], [], []).heatmaps
    assert (record.empty, record.reason) == (True, "no value of the map is above zero")


class OneNan(Small):
    """One of the logits of the first image is not a number."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,CLASSES]."""
        logits = super().forward(x)
        logits[0, 3] = torch.nan
        return logits


def test_one_logit_that_is_not_a_number_fails_its_image_alone() -> None:
    engine = Engine(loaded(OneNan(), classes=CLASSES), [layer_of("last")], [METHODS.get("gradcam")])
    one, other = engine.explain(pixels(2), lambda _: [Target(1)])
    assert isinstance(one, ItemError)
    assert isinstance(other, Explanation)


class Stream(nn.Module):
    """A residual stream that only a layer norm reads: scaling a place of it changes nothing behind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.stream = nn.Conv2d(3, 96, 8, stride=8), nn.Identity()
        self.norm = nn.LayerNorm(96, eps=1e-12)
        self.mix, self.head = nn.Linear(96, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,CLASSES]."""
        x = self.stream(self.stem(x)).permute(0, 2, 3, 1)
        logits: Tensor = self.head(self.mix(self.norm(x)).relu().mean((1, 2)))
        return logits


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_map_that_drowns_in_the_rounding_of_its_summands_is_empty(precision: Precision) -> None:
    module = Stream().eval().requires_grad_(False)
    exact = copy.deepcopy(module).double()
    a, g = oracles.activation_and_gradient(exact, "stream", inputs(1, 64).double(), 1)
    assert ((g * a).sum(1).abs() < 1e-10 * (g * a).abs().sum(1)).all()
    methods = [METHODS.get(name) for name in ("hirescam", "gradcam", "layercam", "eigencam")]
    engine = Engine(loaded(module, classes=CLASSES), [layer_of("stream")], methods, "cpu", precision)
    [[drowned, *others]] = heatmaps(engine, pixels(1), [1])
    assert (drowned.empty, bool(drowned.heat.any()), drowned.raw_max > 0) == (True, False, True)
    assert "rounding" in drowned.reason
    assert [other.reason for other in others] == ["", "", ""]


def test_channel_weights_that_are_rounding_alone_make_an_empty_map() -> None:
    """An instance norm takes the mean of each channel away, and with it the mean of each channel's gradient."""

    class Centred(Stream):
        def forward(self, x: Tensor) -> Tensor:
            """[B,3,H,W] -> logits [B,CLASSES]."""
            x = nn.functional.instance_norm(self.stream(self.stem(x)), eps=1e-12).permute(0, 2, 3, 1)
            logits: Tensor = self.head(self.mix(x).relu().mean((1, 2)))
            return logits

    methods = [METHODS.get(name) for name in ("gradcam", "finercam", "shapleycam", "layercam")]
    engine = Engine(loaded(Centred(), classes=CLASSES), [layer_of("stream")], methods)
    [[*drowned, other]] = heatmaps(engine, pixels(1), [1])
    assert [(one.method, one.empty, "rounding" in one.reason) for one in drowned] == [
        (method.name, True, True) for method in methods[:3]
    ]
    assert not other.empty


def test_a_component_of_equal_locations_is_empty() -> None:
    torch.manual_seed(0)
    cells = torch.rand(1, 24, 1, 1).expand(1, 24, 8, 8) * (1 + 1e-7 * torch.rand(1, 1, 8, 8))
    engine = engine_for("eigencam")
    method = METHODS.get("eigencam")

    def given(batch: Batch, views: Sequence[LayerView]) -> list[LayerView]:
        return [replace(view, activations=cells, memo={}) for view in views]

    assert method.terms is not None
    terms = method.terms
    engine.methods = (
        replace(
            method,
            compute=lambda batch, views: method.compute(batch, given(batch, views)),
            terms=lambda batch, views, raws: terms(batch, given(batch, views), raws),
        ),
    )
    [[heatmap]] = heatmaps(engine, pixels(1), [1])
    assert "rounding" in heatmap.reason


@pytest.mark.parametrize("name", ["timm/resnet18d", "torchvision/shufflenet_v2_x0_5"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_map_that_is_right_is_called_rounding(name: str, precision: Precision) -> None:
    module, x = tuned.build(name, 64), inputs(1, 64)
    exact, right = copy.deepcopy(module).double(), 0
    for output in tuned.drawn(module, x, 3, 6):
        place, layout = output.place, Layout("nchw", (output.shape[1], output.shape[2]))
        expected = tuned.by_full_backward(exact, x.double(), place, 1)
        engine = tuned.engine_at(module, TargetLayer((Tap(place.path, layout, place.call, place.item),)), 64)
        engine.precision = precision
        done = engine.forward(x)
        target_weights = torch.zeros_like(done.logits.detach())
        target_weights[:, 1] = 1
        [found] = engine.maps(done, [target_weights])
        for maps, truth in zip(found, expected, strict=True):
            if oracles.correlation(maps.heat.numpy(), scale(truth).numpy()) > 0.95:
                right += 1
                assert maps.reason.tolist() == [SHOWN]
    assert right > 2


def test_the_bound_of_rounding_is_met_by_sums_that_are_zero() -> None:
    """Terms that add up to nothing, each rounded to 16 bits, or all moved by one rounding of float32."""
    terms = torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = terms - terms.mean(dim=1, keepdim=True)
    for number in (torch.bfloat16, torch.float16, torch.float32):
        moved = terms.to(number).double().sum(dim=1)
        bound = rounding(terms.float(), number)
        assert (moved.abs() <= bound).all()
        assert (terms.abs().sum(dim=1) > 50 * bound).all()
    assert reason_of(terms.to(torch.bfloat16).float().sum(dim=1), False, bound).tolist() == [SHOWN]
    assert reason_of(moved.float(), False, bound).tolist() == [ROUNDING]


class Times(nn.Module):
    """Multiplies."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x * self.factor


class Scaled(Small):
    """The same maps, multiplied by `inner` at the layer, and logits multiplied by `outer`."""

    def __init__(self, like: nn.Module, inner: float, outer: float) -> None:
        super().__init__()
        self.load_state_dict(like.state_dict())
        self.last = Times(inner)  # type: ignore[assignment]
        assert self.head.bias is not None
        self.head.weight.data *= outer / inner
        self.head.bias.data *= outer


INDEPENDENT = ("eigencam", "kpcacam", "fem", "ablationcam", "fullgrad")
"""Their raw values do not change with the scale of the logits."""
CURVED = ("gradcam++", "smooth-gradcam++", "finercam", "scorecam", "iscam", "sscam", "rise", "igos", "igos++")
"""Their formulas do not scale with the logits."""


LINEAR_IN_THE_LAYER = [n for n in NAMES if METHODS.get(n).resolution == "layer" and n not in ("kpcacam", *ATTENTION)]


@pytest.mark.parametrize("factor", [1e-8, 1e-4, 1e4])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*CURVED, *ATTENTION)])
def test_maps_do_not_depend_on_the_scale_of_the_logits(name: str, factor: float) -> None:
    plain, scaled = (first(name, Scaled(small().module, 1, outer)) for outer in (1, factor))
    assert np.abs(plain.heat - scaled.heat).max() < 1e-4
    assert scaled.raw_max == pytest.approx(plain.raw_max * (1 if name in INDEPENDENT else factor), rel=1e-3)
    assert (plain.empty, scaled.empty) == (False, False)


@pytest.mark.parametrize("factor", [1e-9, 1e5])
@pytest.mark.parametrize("name", LINEAR_IN_THE_LAYER)
def test_maps_do_not_depend_on_the_scale_of_the_activations(name: str, factor: float) -> None:
    plain, scaled = (first(name, Scaled(small().module, inner, 1)) for inner in (1, factor))
    assert np.abs(plain.heat - scaled.heat).max() < 1e-4


def first(name: str, module: nn.Module) -> Heatmap:
    """The map of one class of one image."""
    [[heatmap]] = heatmaps(engine_for(name, model=loaded(module, classes=CLASSES)), pixels(1), [1])
    return heatmap


def test_concepts_do_not_depend_on_the_scale_of_the_activations() -> None:
    cells = torch.rand(60, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(concepts_of(cells * 1e-9, 3), concepts_of(cells, 3), atol=1e-4)


def view_of(activations: Tensor, gradients: Tensor) -> LayerView:
    """A layer with one channel, without a model."""
    none = torch.zeros(1, 1)
    batch = Batch(none, none, none, nn.Identity(), lambda x: x)
    layout = Layout("nchw", (activations.shape[-2], activations.shape[-1]))
    unused = lambda *_: pytest.fail("not asked for")  # noqa: E731
    return LayerView(batch, activations, lambda weights: gradients, unused, unused, lambda i, maps: maps, layout, 1)


@pytest.mark.parametrize(
    ("gradient", "weight"),
    [
        ((1.0, 0.5), 0.5),  # the first cell stands at the pole; the second has a = 1 / (2 - 1)
        ((2.0, 0.5), 2.0 / (2 - 4) + 0.5),
        ((-1.0, 0.5), 0.5),
        ((0.0, 0.0), 0.0),
    ],
    ids=["at the pole", "beyond it", "negative", "zero"],
)
def test_grad_cam_plus_plus_at_its_pole(gradient: tuple[float, float], weight: float) -> None:
    a = torch.tensor([[[[-3.0, 1.0]]]])
    raw = METHODS.get("gradcam++").compute(*seen(view_of(a, torch.tensor([[[gradient]]]))))[0]
    assert torch.allclose(raw, weight * a)


def seen(view: LayerView) -> tuple[Batch, list[LayerView]]:
    """As a method is called."""
    return view.batch, [view]


def test_xgradcam_passes_over_channels_whose_activations_cancel() -> None:
    a = torch.tensor([[[[1.0, -1.0, 1e-8]], [[1.0, 2.0, 3.0]]]])
    g = torch.tensor([[[[1.0, -1.0, 0.0]], [[1.0, 0.0, 0.0]]]])
    [raw] = METHODS.get("xgradcam").compute(*seen(view_of(a, g)))
    assert torch.allclose(raw.sum(1), a[:, 1] / 6)


def test_a_component_rises_with_the_total_activation() -> None:
    """Where one quiet cell stands farther from the mean than any loud one, its sign was once the other."""
    quiet = torch.full((1, 4, 5, 5), 3.0) + torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(0)) / 10
    quiet[0, :, 2, 2] = 0
    assert int(principal(quiet).flatten().argmin()) == 12
    assert int(principal(-quiet).flatten().argmin()) == 12
    generator = torch.Generator().manual_seed(1)
    for shape in ((1, 3, 6, 6), (1, 60, 4, 4)):
        for _ in range(12):
            cells = torch.rand(shape, generator=generator) ** 4 * torch.randn(1, shape[1], 1, 1, generator=generator)
            assert oracles.correlation(principal(cells).numpy(), cells.abs().sum(1).numpy()) >= 0


def test_smoothed_heat_reaches_from_zero_to_one() -> None:
    for name in ("gradcam", "hirescam", "guided-backprop"):
        for heatmap in [h for [h] in heatmaps(engine_for(name, smoothing="aug"), pixels(2), [1])]:
            low = -1 if heatmap.signed else 0
            assert np.abs(heatmap.heat).max() == pytest.approx(1)
            assert low <= heatmap.heat.min() <= 0


def test_what_lifts_16_bit_gradients_is_taken_out_again() -> None:
    model: LoadedModel = small()
    full, half = (
        Engine(model, [layer_of("last")], [METHODS.get("gradcam")], "cpu", precision, CHEAP)
        for precision in ("fp32", "fp16")
    )
    [[one]], [[other]] = (heatmaps(engine, pixels(1), [1]) for engine in (full, half))
    assert other.raw_max == pytest.approx(one.raw_max, rel=0.02)
    assert other.raw_min == pytest.approx(one.raw_min, abs=0.02 * one.raw_max)
