"""Model sources: what is built, how it is described, and what is said when it cannot be had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from pydantic import JsonValue

from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig
from camcli.errors import ConfigError
from camcli.models.source import load_model, model_from_module
from tests.conftest import SHAPES, Ended


def load(**fields: object) -> object:
    """A model with random weights."""
    return load_model(ModelConfig.model_validate({"weights": "none", **fields}), InputConfig())


def test_a_local_checkpoint_of_another_head_is_loaded_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = timm.create_model("resnet10t", num_classes=7).eval()
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    config = ModelConfig(source="timm", name="resnet10t", weights=str(tmp_path / "own.pth"), num_classes=7)
    model = load_model(config, InputConfig())
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(model.module(x), trained(x))
    assert model.labels == tuple(f"class_{i}" for i in range(7))
    assert "state_dict" not in dict(model.module.pretrained_cfg)  # type: ignore[arg-type]


def test_models_are_frozen_and_in_eval_mode() -> None:
    model = load_model(ModelConfig(source="torchvision", name="resnet18", weights="none"), InputConfig())
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    assert model.weights_sha256 is None
    assert (len(model.labels), model.labels[285]) == (1000, "Egyptian cat")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_heads_give_plain_logits(name: str) -> None:
    model = load_model(ModelConfig(source="torchvision", name=name, weights="none"), InputConfig())
    assert model.module(torch.zeros(1, 3, *model.preprocess.size)).shape == (1, 1000)


def test_published_weights_of_vision_transformers_get_their_input_size() -> None:
    from camcli.models import torchvision as source

    config = ModelConfig(source="torchvision", name="vit_b_16.IMAGENET1K_SWAG_E2E_V1")
    expected = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.meta["min_size"][0]
    assert (
        source.build(config, None).module.image_size
        == expected
        == source.preprocess(config, torch.nn.Identity()).size[0]
    )


@pytest.mark.parametrize(("kwargs", "side"), [({}, 518), ({"image_size": 224}, 224)])
def test_random_vision_transformers_fit_their_input_too(kwargs: dict[str, JsonValue], side: int) -> None:
    from camcli.models import torchvision as source

    config = ModelConfig(source="torchvision", name="vit_h_14", weights="none", kwargs=kwargs)
    with torch.device("meta"):
        module = source.build(config, None).module
    assert module.image_size == side == source.preprocess(config, module).size[0]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"source": "timm", "name": "resnet18", "kwargs": {"colour": 1}},
            "keyword argument 'colour'.*; check model.kwargs",
        ),
        ({"source": "torchvision", "name": "resnet18", "kwargs": {"colour": 1}}, "'colour'.*; check model.kwargs"),
        ({"source": "timm", "name": "resnet18", "kwargs": {"layers": [1]}}, "timm/resnet18 cannot be built"),
        ({"source": "timm", "name": "resnet18", "num_classes": 10**12}, "check model.kwargs and model.num_classes"),
        ({"source": "torchvision", "name": "resnet18", "num_classes": 10**12}, "torchvision/resnet18 cannot be built"),
        ({"source": "timm", "name": "resnet18.nope"}, "timm's resnet18 has no weights 'nope'"),
        ({"source": "torchvision", "name": "resnet18.nope"}, "torchvision's resnet18 has no weights 'nope'"),
        (
            {"source": "timm", "name": "resnet18", "weights": "pretrained", "num_classes": 5},
            "leave it out, or give your own weights file",
        ),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, object], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camcli.models.timm.pretrained_file", lambda config: Path("unused"))
    with pytest.raises(ConfigError, match=sentence):
        load(**fields)


def test_an_input_size_that_a_model_cannot_take_is_named() -> None:
    config = ModelConfig(source="timm", name="vit_tiny_patch16_224", weights="none")
    with pytest.raises(ConfigError, match=r"does not take an input of 100x100 px .* set input.size"):
        load_model(config, InputConfig(size=(100, 100)))


def test_labels_must_be_as_many_as_classes(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="has 2 labels, the model 3 classes"):
        load(source="timm", name="test_resnet", num_classes=3, labels=str(tmp_path / "l.txt"))


def test_models_lists_what_is_cached(
    camcli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]).touch()
    found = json.loads(camcli("models", "torchvision/resnet[13]*", "--json").out)
    assert {entry["name"]: entry["cached"] for entry in found} == {
        "resnet18": True, "resnet34": False, "resnet101": False, "resnet152": False,
    }  # fmt: skip
    assert found[0]["parameters"] == sum(p.numel() for p in torchvision.models.get_model(found[0]["name"]).parameters())
    assert (
        camcli("models", "fetch", "torchvision/resnet18").out
        == f"torchvision/resnet18\t{tmp_path}/hub/checkpoints/{url.rsplit('/', 1)[1]}\n"
    )
    ended = camcli("models", "fetch", "torchvision/resnet34", "--offline")
    assert ended.code == 3
    assert "resnet34" in ended.err


def test_models_without_pattern_lists_every_source(camcli: Callable[..., Ended]) -> None:
    names = {f"{e['source']}/{e['name']}" for e in json.loads(camcli("models", "--json").out)}
    assert {"demo/demo", "timm/resnet50", "torchvision/resnet50"} <= names
    assert len(names) > 1000
    assert "timm/convnext_atto" in camcli("models", "convnext_atto").out


def test_a_model_whose_parameters_cannot_be_counted_is_listed(
    camcli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(name: str) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr("timm.create_model", unable)
    ended = camcli("models", "timm/resnet50", "--json")
    assert ended.code == 0, ended.err
    [entry] = json.loads(ended.out)
    assert (entry["name"], entry["parameters"]) == ("resnet50", None)


def test_the_demo_needs_no_network_and_no_cache(
    camcli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    assert camcli("run", SHAPES, "--out", tmp_path / "out", "--limit", "1", "--offline").code == 0


def test_the_activation_is_the_users_or_that_of_the_source() -> None:
    assert load_model(ModelConfig(), InputConfig()).activation == "sigmoid"
    assert load_model(ModelConfig(activation="softmax"), InputConfig()).activation == "softmax"
    random = ModelConfig(source="timm", name="test_resnet", weights="none")
    assert load_model(random, InputConfig()).activation == "softmax"


def test_random_weights_are_the_same_each_time_and_leave_the_callers_numbers_alone() -> None:
    config = ModelConfig(source="timm", name="test_resnet", weights="none")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = load_model(config, InputConfig()).module.state_dict()
    assert torch.equal(torch.rand(3), expected)
    two = load_model(config, InputConfig()).module.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_labels_of_another_head_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camcli.models.timm.labels", lambda config, module: ("ant", "bee"))
    config = {"source": "timm", "name": "test_resnet", "weights": "none"}
    for classes, expected in ((2, ("ant", "bee")), (3, ("class_0", "class_1", "class_2"))):
        model = load_model(ModelConfig.model_validate({**config, "num_classes": classes}), InputConfig())
        assert model.labels == expected


@pytest.mark.parametrize(("crop", "expected"), [("center", "center"), ("squash", "squash"), ("border", "pad")])
def test_the_preprocessing_of_timm_is_that_of_its_data_config(
    monkeypatch: pytest.MonkeyPatch, crop: str, expected: str
) -> None:
    from camcli.models import timm as source

    data = {"input_size": (3, 128, 256), "crop_pct": 0.8, "crop_mode": crop, "interpolation": "random"}
    monkeypatch.setattr(source, "resolve_data_config", lambda model: {**data, "mean": (0.1,) * 3, "std": (0.2,) * 3})
    found = source.preprocess(ModelConfig(source="timm", name="test_resnet"), torch.nn.Identity())
    assert (found.size, found.resize) == ((128, 256), (160, 320))
    assert (found.crop, found.interpolation, found.mean, found.std) == (expected, "bilinear", (0.1,) * 3, (0.2,) * 3)


def test_another_input_size_of_torchvision_keeps_the_share_that_is_cut_away() -> None:
    from camcli.models import torchvision as source

    config = ModelConfig(source="torchvision", name="vit_b_16.IMAGENET1K_V1", kwargs={"image_size": 112})
    found = source.preprocess(config, torch.nn.Identity())
    assert (found.size, found.resize) == ((112, 112), (128, 128))


def test_weights_of_torchvisions_inceptions_meet_the_input_that_they_were_trained_on() -> None:
    from camcli.models import torchvision as source

    with torch.device("meta"):
        for weights, transformed in (("x.pth", True), ("none", False)):
            config = ModelConfig(source="torchvision", name="inception_v3", weights=weights)
            assert bool(source.build(config, None).module.transform_input) == transformed


@pytest.mark.parametrize("fields", [{"num_classes": 5}, {"kwargs": {"in_chans": 1}}])
def test_the_demo_model_takes_no_other_head_or_arguments(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the demo model has 12 classes and takes no kwargs"):
        load_model(ModelConfig.model_validate({"source": "demo", "weights": "none", **fields}), InputConfig())


def test_the_classes_of_a_module_are_counted_where_its_weights_are() -> None:
    """No CPU tensor enters a network on another device, of which `meta` is one that every machine has."""
    module = timm.create_model("test_resnet", num_classes=5).to("meta")
    assert len(model_from_module(module, {"size": 64}, None).labels) == 5
