"""What holds for every method, whatever it computes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig, OptionsConfig
from camcli.demo.scenes import scene
from camcli.engine.engine import Engine, Explanation
from camcli.engine.layers import Layout, Tap, TargetLayer, resolve_layer
from camcli.engine.methods import METHODS, Batch, LayerView
from camcli.engine.methods.gradient import Similar, finer_weights
from camcli.engine.methods.options import options_of
from camcli.engine.methods.table import listed, markdown
from camcli.engine.targets import Target, likeliest
from camcli.errors import ItemError, MethodError
from camcli.images.preprocess import Preprocess
from camcli.models.loaded import LoadedModel
from camcli.models.source import load_model
from camcli.records import Heatmap
from camcli.results.report import json_schema
from tests.conftest import REPO, Ended, loaded
from tests.nets import calibrated, inputs
from tests.oracles import correlation
from tests.test_engine import layer_of, pixels

SIDE = 64
CHEAP = OptionsConfig(
    chunk=8, max_channels=6, patch=32, stride=32, steps=3, samples=2, masks=8, iterations=4, side=7, tv=0.1, l1=0.001
)
OTHER = OptionsConfig.model_validate(
    {"max_channels": 3, "patch": 16, "stride": 16, "steps": 2, "samples": 1, "masks": 4, "iterations": 2, "side": 8}
    | {"similar": 1, "gaussian": True, "deviations": 0.5, "gamma": 0.7}
)
"""Unlike `CHEAP` in an option of every method."""
NAMES = list(METHODS)
BEFORE_HEAD = ("cam", "gradcam", "hirescam", "xgradcam")
SEARCHED = ("igos", "igos++")
"""A search goes on from its own rounding, which depends on the size of the batch."""
CLASSES = 5


class Small(nn.Module):
    """Convolutions with batch norm, ReLUs as module, function and in place, then pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Identity()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,CLASSES]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = self.last(nn.functional.relu(self.conv3(x) + x, inplace=True))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def small() -> LoadedModel:
    """With random weights that keep the signal alive."""
    return loaded(calibrated(Small(), inputs(8, SIDE)), classes=CLASSES)


def small_vit() -> LoadedModel:
    """A transformer with a class token and 4 x 4 patches."""
    torch.manual_seed(0)
    return loaded(
        calibrated(timm.create_model("test_vit", img_size=SIDE, num_classes=CLASSES), inputs(8, SIDE)), classes=CLASSES
    )


LAST = layer_of("last")
TOKENS = TargetLayer((Tap("blocks.5.norm1", Layout("tokens", (4, 4), 1)),))
ATTENTION = ("attention-rollout", "attention-gradient")
"""Methods that need a class token."""
COMPONENTS = ("eigencam", "eigengradcam")
"""Methods whose map is the first component already."""
PIXEL = [name for name in NAMES if METHODS.get(name).resolution == "pixel"]
WITHOUT_CONTRIBUTIONS = ("reciprocam", "kpcacam", *ATTENTION, *PIXEL)
SHAPES = dict.fromkeys(ATTENTION, (4, 4))


def heatmaps(
    engine: Engine, batch: Tensor, classes: list[int], against: int | None = None
) -> list[tuple[Heatmap, ...]]:
    """Of each image; all must succeed."""
    answers = engine.explain(batch, lambda probabilities: [Target(index, against) for index in classes])
    assert all(isinstance(answer, Explanation) for answer in answers)
    return [answer.heatmaps for answer in answers if isinstance(answer, Explanation)]


def engine_for(*names: str, model: LoadedModel | None = None, **kwargs: object) -> Engine:
    """On the last maps of the small network, or of a small transformer for methods that follow attention."""
    methods = [METHODS.get(name) for name in names]
    if set(names) <= set(ATTENTION):
        return Engine(model or small_vit(), [TOKENS], methods, options=CHEAP, **kwargs)  # type: ignore[arg-type]
    return Engine(model or small(), [LAST], methods, options=CHEAP, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_heat_is_finite_scaled_and_of_the_right_shape(name: str) -> None:
    method = METHODS.get(name)
    for [heatmap] in heatmaps(engine_for(name), pixels(3), [1]):
        assert heatmap.heat.shape == ((SIDE, SIDE) if method.resolution == "pixel" else SHAPES.get(name, (8, 8)))
        assert heatmap.heat.dtype == np.float32
        assert heatmap.signed == method.signed
        assert np.abs(heatmap.heat).max() == pytest.approx(0 if heatmap.empty else 1)
        assert heatmap.heat.min() >= (-1 if method.signed else 0)
        assert heatmap.raw_min <= heatmap.raw_max


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_its_images_give_one_by_one(name: str) -> None:
    engine = engine_for(name)
    together = heatmaps(engine, pixels(3), [2])
    for i, [whole] in enumerate(together):
        [[alone]] = heatmaps(engine, pixels(3)[i : i + 1], [2])
        assert np.abs(whole.heat - alone.heat).max() < (1e-3 if name in SEARCHED else 1e-5)
        assert whole.raw_max == pytest.approx(alone.raw_max, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if {"tail", "scores", "pixels"} & {*METHODS.get(n).needs}])
def test_a_chunk_changes_speed_and_memory_alone(name: str) -> None:
    def explained(chunk: int) -> list[tuple[Heatmap, ...]]:
        engine = engine_for(name)
        engine.chunk = chunk
        return heatmaps(engine, pixels(2), [1])

    for [a], [b] in zip(explained(3), explained(4), strict=True):
        assert np.abs(a.heat - b.heat).max() < (1e-3 if name in SEARCHED else 1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS.get(n).options])
def test_other_options_for_the_same_pass_give_a_map_of_their_own(name: str) -> None:
    engine = Engine(small(), [layer_of("conv2")], [METHODS.get(name)], options=CHEAP)
    other = engine.running(engine.methods)
    other.options = options_of(engine.methods, OTHER)
    inputs = engine.normalise(pixels(1))
    done, asked = engine.forward(inputs), target_weights(1)
    before, after, alone = (
        one.methods[0].compute(*one.views(seen, asked))[0]
        for one, seen in ((engine, done), (other, done), (other, engine.forward(inputs)))
    )
    assert torch.equal(after, alone)
    assert not torch.allclose(before, after, rtol=1e-4, atol=1e-7)


def test_target_weights_of_no_round_are_refused() -> None:
    asked, none = target_weights(0), nn.Identity()
    batch = Batch(torch.zeros(1, 3, 1, 1), asked, target_weights(1), none, none, rounds=(asked,))
    assert replace(batch, target_weights=asked).turn == 0
    with pytest.raises(ValueError, match="none of its rounds"):
        _ = batch.turn


@pytest.mark.parametrize("name", NAMES)
def test_the_map_of_a_target_does_not_change_with_the_others_asked(name: str) -> None:
    engine = engine_for(name)
    several = heatmaps(engine, pixels(2), [0, 3, 1])
    for whole, [alone] in zip(several, heatmaps(engine, pixels(2), [3]), strict=True):
        [same] = [heatmap for heatmap in whole if heatmap.target == alone.target]
        assert np.abs(same.heat - alone.heat).max() < 1e-6


@pytest.mark.parametrize("smoothing", ["none", "aug"])
def test_a_map_of_no_class_is_made_once_for_each_image(smoothing: str) -> None:
    engine = engine_for("gradcam", "eigencam", smoothing=smoothing)
    wanted = iter([[Target(0, 4), Target(2, 4)], [], [Target(1, 4)], [], []])
    answers = [*engine.explain(pixels(3), lambda _: next(wanted)), *engine.explain(pixels(2), lambda _: next(wanted))]
    found = [answer.heatmaps for answer in answers if isinstance(answer, Explanation)]
    asked = [[(h.method, h.target and h.target.index, h.against and h.against.index) for h in maps] for maps in found]
    once = ("eigencam", None, None)
    assert asked == [
        [("gradcam", 0, 4), once, ("gradcam", 2, 4)],
        [once],
        [("gradcam", 1, 4), once],
        [once],
        [once],
    ]
    for i, maps in enumerate(found):
        [[alone]] = heatmaps(engine_for("eigencam", smoothing=smoothing), pixels(3)[i % 3 : i % 3 + 1], [3])
        assert np.abs(next(h.heat for h in maps if h.target is None) - alone.heat).max() < 1e-4


def test_the_methods_of_no_class_are_those_whose_map_is_the_same_for_all() -> None:
    for name in NAMES:
        batch, views = (engine := engine_for(name)).views(
            engine.forward(engine.normalise(pixels(1))), target_weights(0)
        )
        other = engine.views(engine.forward(engine.normalise(pixels(1))), target_weights(3))
        one, two = METHODS.get(name).compute(batch, views), METHODS.get(name).compute(*other)
        same = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, two, strict=True))
        assert same != METHODS.get(name).class_specific, name


def target_weights(target: int) -> Tensor:
    """[1,CLASSES] that asks for one class."""
    return torch.eye(CLASSES)[target : target + 1]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind(name: str) -> None:
    model = small_vit() if name in ATTENTION else small()
    before = state(model.module)
    heatmaps(engine_for(name, model=model), pixels(1), [1])
    assert state(model.module) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ATTENTION])
def test_nothing_is_left_behind_by_an_error(name: str, error: type[BaseException]) -> None:
    model = small()
    before, calls, head = state(model.module), 0, model.module.get_submodule("head")
    assert isinstance(head, nn.Linear)

    def fail(self: object, x: Tensor, *args: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > (1 if {"tail", "scores", "pixels"} & set(METHODS.get(name).needs) else 0):
            raise error
        return x @ head.weight.T + head.bias

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", fail)
        with pytest.raises((error, MethodError)):
            engine_for(name, model=model).explain(pixels(1), lambda _: [Target(1)])
    assert state(model.module) == before


def state(module: nn.Module) -> list[object]:
    """Hooks, flags, own attributes and parameters of all submodules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found: list[object] = []
    for child in module.modules():
        found.append([len(getattr(child, name)) for name in hooks])
        found.append((child.training, sorted(vars(child)), sorted(child._modules)))
    tensors = [(p.requires_grad, p.grad is None, float(p.double().sum())) for p in module.parameters()]
    return [*found, *tensors]


@pytest.mark.parametrize("name", BEFORE_HEAD)
def test_before_pooling_and_a_linear_head_four_methods_are_one(name: str) -> None:
    ours, plain = (heatmaps(engine_for(n), pixels(2), [4]) for n in (name, "gradcam"))
    for [a], [b] in zip(ours, plain, strict=True):
        assert np.abs(a.heat - b.heat).max() < 5e-6
    assert not plain[0][0].empty


def test_cam_makes_no_graph_and_refuses_where_it_does_not_hold() -> None:
    engine = engine_for("cam")
    assert not engine.forward(engine.normalise(pixels(1))).logits.requires_grad
    refusing = Engine(small(), [layer_of("conv2")], [METHODS.get("cam")])
    with pytest.raises(MethodError, match="global average pooling"):
        refusing.explain(pixels(1), lambda _: [Target(0)])


def test_cam_finds_a_head_that_is_a_convolution() -> None:
    torch.manual_seed(0)
    module = calibrated(torchvision.models.squeezenet1_0(weights=None, num_classes=7), inputs(2, SIDE))
    engine = Engine(loaded(module, classes=7), [layer_of("classifier.2")], [METHODS.get(n) for n in ("cam", "gradcam")])
    [[cam, gradcam]] = heatmaps(engine, pixels(1), [2])
    assert np.abs(cam.heat - gradcam.heat).max() < 1e-5


def test_three_methods_cost_one_forward_and_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_for("gradcam", "layercam", "eigencam")
    forwards: list[int] = []
    backwards: list[int] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or grad(*a, **k))  # type: ignore[func-returns-value]
    engine.module.register_forward_hook(lambda *_: forwards.append(1))
    [three] = heatmaps(engine, pixels(1), [1])
    assert (len(three), len(forwards), len(backwards)) == (3, 1, 1)


@pytest.mark.parametrize(
    ("name", "passes"),
    [("finercam", (1, 1)), ("smooth-gradcam++", (3, 2))],
)
def test_several_layers_share_every_pass(name: str, passes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, counted, grad = small(), Counter[str](), torch.autograd.grad
    layers = [LAST, layer_of("conv2")]
    merged, *alone = [Engine(model, where, [METHODS.get(name)], options=CHEAP) for where in (layers, *zip(layers))]
    raws = [
        engine.methods[0].compute(*engine.views(engine.forward(engine.normalise(pixels(1))), target_weights(1)))
        for engine in alone
    ]
    model.module.register_forward_hook(lambda *_: counted.update(forward=1))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: counted.update(backward=1) or grad(*a, **k))
    heatmaps(merged, pixels(1), [1])
    assert (counted["forward"], counted["backward"]) == passes
    done = merged.forward(merged.normalise(pixels(1)))
    found = merged.methods[0].compute(*merged.views(done, target_weights(1)))
    for together, [one] in zip(found, raws, strict=True):
        assert torch.allclose(together, one, atol=1e-6)


def test_several_layers_are_cut_at_the_earliest() -> None:
    model = small()
    both = Engine(model, [LAST, layer_of("conv2")], [METHODS.get("gradcam")])
    done = both.forward(both.normalise(pixels(1)))
    early, late = (done.kept[layer.taps[0]] for layer in (layer_of("conv2"), LAST))
    assert early.is_leaf
    assert not late.is_leaf
    [[merged]] = heatmaps(both, pixels(1), [1])
    singles = [heatmaps(Engine(model, [one], both.methods), pixels(1), [1])[0][0] for one in (LAST, layer_of("conv2"))]
    mean = (singles[0].heat + singles[1].heat) / 2
    assert np.abs(merged.heat - (mean - mean.min()) / (mean.max() - mean.min())).max() < 1e-5


@pytest.mark.parametrize("name", ["gradcam", "ablationcam", "guided-backprop", "occlusion", "cam"])
def test_contrast_explains_the_difference_of_two_logits(name: str) -> None:
    """Both logits come from one head, so a head that gives their difference must give the same map."""
    model, difference = small(), small()
    head = difference.module.head
    assert isinstance(head, nn.Linear)
    head.weight[1] -= head.weight[3].clone()
    assert head.bias is not None
    head.bias[1] -= head.bias[3].clone()
    [[contrast]] = heatmaps(engine_for(name, model=model), pixels(1), [1], against=3)
    [[direct]] = heatmaps(engine_for(name, model=difference), pixels(1), [1])
    assert contrast.against is not None
    assert contrast.against.label == "class_3"
    assert np.abs(contrast.heat - direct.heat).max() < 1e-4


@pytest.mark.parametrize(
    ("asked", "rivals"),
    [([1.0, -1], []), ([1.0, 0], [1]), ([1.0, -1, 0], [2]), ([1.0, 0, 0], [1, 2]), ([1.0, 0, 0, 0, 0], [1, 2, 4])],
    ids=["all of two classes", "one of two", "two of three", "one of three", "one of five"],
)
def test_finer_cam_tells_the_asked_classes_from_others_alone(asked: list[float], rivals: list[int]) -> None:
    """The score is y - sum_k q_k y_k over the rivals k alone, whatever the batch asks beside it."""
    logits = torch.tensor([[2.0, 1.5, 0.5, -9.0, 1.0][: len(asked)]]).requires_grad_()
    others = logits[0, rivals]
    wanted = torch.tensor(asked) - torch.autograd.grad((others.softmax(0) * others).sum() + 0 * logits.sum(), logits)[0]
    for beside in ([0.0] * len(asked), [0.0, 1] + [0.0] * (len(asked) - 2), [-1.0, 1] + [0.0] * (len(asked) - 2)):
        about = logits.detach().expand(2, -1), torch.tensor([asked, beside]), nn.Identity(), nn.Identity()
        found = finer_weights(Batch(torch.zeros(2, 3, 1, 1), *about), Similar(strength=1))
        assert torch.allclose(found[:1], wanted, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_smoothing_gives_heat_or_refuses(name: str) -> None:
    for smoothing in ("aug", "eigen"):
        if smoothing == "eigen" and name in WITHOUT_CONTRIBUTIONS:
            with pytest.raises(MethodError, match=name):
                engine_for(name, smoothing=smoothing)
            continue
        [[plain]] = heatmaps(engine_for(name), pixels(1), [1])
        [[heatmap]] = heatmaps(engine_for(name, smoothing=smoothing), pixels(1), [1])
        assert np.abs(heatmap.heat).max() == pytest.approx(1)
        assert heatmap.heat.min() >= (-1 if heatmap.signed else 0)
        assert heatmap.heat.shape == plain.heat.shape


def test_smoothing_by_copies_looks_at_mirrored_images_the_right_way_round() -> None:
    engine = engine_for("gradcam", smoothing="aug")
    [[one]], [[mirrored]] = (heatmaps(engine, batch, [1]) for batch in (pixels(1), pixels(1).flip(2)))
    assert np.abs(one.heat - mirrored.heat[:, ::-1]).max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_map_that_is_not_finite_is_an_error_of_that_image(name: str) -> None:
    method = METHODS.get(name)
    engine = engine_for(name)

    def spoilt(batch: Batch, views: Sequence[LayerView]) -> list[Tensor]:
        raws = [raw.clone() for raw in method.compute(batch, views)]
        raws[0][1, ..., 3] = torch.nan
        return raws

    engine.methods = (replace(method, compute=spoilt),)
    first, second = engine.explain(pixels(2), lambda _: [Target(1)])
    assert isinstance(first, Explanation)
    assert isinstance(second, ItemError)
    assert (second.stage, second.kind) == ("forward", "NotFinite")


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_all_methods_serve_other_architectures(name: str) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=CLASSES)
    side = module.default_cfg["input_size"][-1]
    preprocess = Preprocess((side, side), (side, side), (0, 0, 0), (1, 1, 1), "bilinear", "center")
    layers = {
        "test_vit": Tap("blocks.5.norm1", Layout("tokens", (10, 10), 1)),
        "test_convnext": Tap("stages.3", Layout("nchw", (5, 5))),
        "test_efficientnet": Tap("bn2", Layout("nchw", (5, 5))),
    }
    names = [n for n in METHODS if n != "cam" and (n not in ATTENTION or name == "test_vit")]
    model = loaded(calibrated(module, inputs(4, side)), preprocess, CLASSES)
    engine = Engine(model, [TargetLayer((layers[name],))], [METHODS.get(n) for n in names], options=CHEAP)
    [found] = heatmaps(engine, pixels(1, side), [2])
    assert [heatmap.method for heatmap in found] == names
    for heatmap in found:
        assert np.abs(heatmap.heat).max() == pytest.approx(0 if heatmap.empty else 1)
    assert sum(heatmap.empty for heatmap in found) < len(found) / 3


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS.get(n).resolution == "layer" and n not in ATTENTION])
def test_half_precision_gives_the_maps_of_full_precision_on_trained_weights(name: str) -> None:
    model = load_model(ModelConfig(), InputConfig())
    layer = resolve_layer(model.module, model.preprocess.size)
    batch = torch.from_numpy(np.stack([scene(1, index).image for index in range(4)]))
    full, half = (Engine(model, [layer], [METHODS.get(name)], "cpu", p, CHEAP) for p in ("fp32", "bf16"))
    for a, b in zip(full.explain(batch, likeliest), half.explain(batch, likeliest), strict=True):
        assert isinstance(a, Explanation)
        assert isinstance(b, Explanation)
        assert correlation(a.heatmaps[0].heat, b.heatmaps[0].heat) > 0.98


def test_the_table_in_the_readme_is_that_of_the_registry() -> None:
    text = (REPO / "camcli" / "engine" / "methods" / "README.md").read_text(encoding="utf-8")
    assert text.partition("<!-- methods -->")[2].partition("<!-- /methods -->")[0].strip() == markdown()


def test_the_command_lists_every_method(camcli: Callable[..., Ended]) -> None:
    ended = camcli("methods", "--json")
    rows = json.loads(ended.out)
    assert [row["name"] for row in rows] == [method.name for method in listed()]
    assert all(row["needs"] and row["cost"] and row["paper"].startswith("https://") for row in rows)
    assert all(1 <= len(row["good_for"].split()) <= 5 for row in rows)
    assert len({row["good_for"] for row in rows}) == len(rows)
    patch = next(row for row in rows if row["name"] == "occlusion")["options"]["patch"]
    assert (patch["default"], patch["type"]) == (32, "integer")
    table = camcli("methods").out
    assert all(row["good_for"] in table for row in rows)
    assert all(method.name in table and method.paper in table for method in listed())


def test_one_overlay_per_method_and_target_and_a_grid(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = ["methods=[gradcam, guided-backprop]", "targets={top: 2}", "overlay.grid=true", "maps=png16"]
    words = [word for setting in settings for word in ("-s", setting)]
    ended = camcli("run", REPO / "sample_images" / "shapes", "--limit", 1, "--out", out, *words)
    assert ended.code == 0, ended.err
    [line] = (out / "results.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert [h["signed"] for h in record["heatmaps"]] == [False, True, False, True]
    files = [h["overlay"] for h in record["heatmaps"]] + record["grids"] + record["maps"]
    assert len(record["grids"]) == 1
    assert len(set(files)) == 9
    for name in files:
        with Image.open(out / name) as image:
            image.load()


def test_files_of_a_map_of_no_class_bear_no_class(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    shapes, ran = REPO / "sample_images" / "shapes", {}
    for kind in ("npz", "png16"):
        settings = ["methods=[eigencam, gradcam]", "targets={top: 2}", "overlay.grid=true", f"maps={kind}"]
        words = [word for setting in settings for word in ("-s", setting)]
        assert camcli("run", shapes, "--limit", 1, "--out", tmp_path / kind, *words).code == 0
        [line] = (tmp_path / kind / "results.jsonl").read_text().splitlines()
        ran[kind] = json.loads(line)
        jsonschema.validate(ran[kind], json_schema())
    record = ran["npz"]
    first, second = (h["target"] for h in record["heatmaps"] if h["method"] == "gradcam")
    assert [(h["method"], h["target"]) for h in record["heatmaps"]] == [
        ("eigencam", None),
        ("gradcam", first),
        ("gradcam", second),
    ]
    at, names = record["id"], [f"{target['index']}-{target['label']}" for target in (first, second)]
    assert [h["overlay"] for h in record["heatmaps"]] == [
        f"overlays/{at}.eigencam.jpg",
        *(f"overlays/{at}.gradcam.{name}.jpg" for name in names),
    ]
    assert record["grids"] == [f"overlays/{at}.grid.jpg"]
    keys = ["eigencam", *(f"gradcam.{target['index']}" for target in (first, second))]
    assert ran["png16"]["maps"] == [f"maps/{at}.{key}.png" for key in keys]
    with np.load(tmp_path / "npz" / record["maps"][0]) as arrays:
        assert list(arrays) == keys
    assert all((tmp_path / "npz" / name).is_file() for name in record["files"])


def test_a_contrast_of_two_classes_runs(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    shapes = REPO / "sample_images" / "shapes"
    ended = camcli("run", shapes, "--limit", 1, "--out", tmp_path / "out", "-s", "targets={contrast: [star, circle]}")
    assert ended.code == 0, ended.err
    [heatmap] = json.loads((tmp_path / "out" / "results.jsonl").read_text())["heatmaps"]
    assert (heatmap["target"]["label"], heatmap["against"]["label"]) == ("star", "circle")
    assert "star-not-0-circle" in heatmap["overlay"]
    same = camcli("run", shapes, "--out", tmp_path / "same", "-s", "targets={contrast: [star, 3]}")
    assert (same.code, "same class" in same.err) == (2, True)
