"""Hugging Face's image classifiers: layers and layouts are found, heat is right, preprocessing is the processor's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import camcli
from camcli.config.file import load_config
from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig
from camcli.errors import ConfigError, ModelError
from camcli.images.preprocess import model_input
from camcli.models.source import load_model
from camcli.models.transformers import preprocess_of
from tests.conftest import Ended, save_image
from tests.test_run import lines

transformers: Any = pytest.importorskip("transformers")
Camcli = Callable[..., Ended]
LABELS = ("heart", "ring", "star")
NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
TOKENS = {"image_size": 64, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# family: config, and where the last grid of the network is: path, grid, tokens before it (None: [B,C,h,w]).
FAMILIES: dict[str, tuple[dict[str, Any], str, tuple[int, int], int | None]] = {
    "vit": ({**TOKENS, "intermediate_size": 64}, "vit.layers.1.layernorm_before", (8, 8), 1),
    "dinov2": ({**TOKENS, "mlp_ratio": 2}, "dinov2.layernorm", (8, 8), 1),
    "swin": (
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        "swin.layernorm", (8, 8), 0,
    ),
    "convnext": (
        {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        "convnext.encoder.stages.3", (2, 2), None,
    ),
    "resnet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"},
        "resnet.encoder.stages.3", (2, 2), None,
    ),
    "mobilevit": (
        {"image_size": 128, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 24, 24, 24, 48],
         "num_attention_heads": 2},
        "mobilevit.conv_1x1_exp", (4, 4), None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """The library's own progress bars are no part of any test."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def side_of(family: str) -> int:
    """Height and width of the input in pixels."""
    return int(FAMILIES[family][0].get("image_size", 64))


def saved(folder: Path, family: str) -> nn.Module:
    """A tiny classifier with random weights, as save_pretrained leaves it, with an image processor beside it."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family][0], **NAMED)
    module: Any = transformers.AutoModelForImageClassification.from_config(config).eval()
    for parameter in module.parameters():  # the library starts classifiers so small that all classes are alike
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    module.save_pretrained(folder)
    side = {"height": side_of(family), "width": side_of(family)}
    told = {"size": side, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, "do_normalize": True, "do_resize": True}))
    whole: nn.Module = module
    return whole


def gradcam(module: nn.Module, path: str, x: Tensor, grid: tuple[int, int], prefix: int | None) -> NDArray[np.float32]:
    """Grad-CAM of the likeliest class by its formula, with nothing of camcli's, from its minimum to its maximum."""
    kept: list[Tensor] = []
    place = module.get_submodule(path)
    handle = place.register_forward_hook(lambda m, a, out: kept.append(out if isinstance(out, Tensor) else out[0]))
    logits = module(x).logits
    handle.remove()
    [gradient] = torch.autograd.grad(logits.max(), kept)
    activation = kept[0]
    if prefix is not None:
        activation, gradient = (t[:, prefix:].transpose(1, 2).reshape(1, -1, *grid) for t in (activation, gradient))
    heat = (gradient.mean((2, 3), keepdim=True) * activation).sum(1)[0].relu().detach()
    found: NDArray[np.float32] = ((heat - heat.min()) / (heat.max() - heat.min())).numpy()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_classifier_is_explained_where_its_grid_is(tmp_path: Path, family: str) -> None:
    module = saved(tmp_path, family)
    _, path, grid, prefix = FAMILIES[family]
    image = Image.open(save_image(tmp_path / "x.png", side_of(family), side_of(family), seed=4))
    config = load_config(None, [f"model={{source: transformers, path: {tmp_path}}}"]).config
    explainer = camcli.Explainer(config, targets="top1")
    [found] = explainer([image])
    x = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25
    scores = module(x).logits[0].softmax(0).detach()
    assert explainer.labels == LABELS
    assert found.predictions[0].label == LABELS[int(scores.argmax())]
    assert found.predictions[0].probability == pytest.approx(scores.max().item(), abs=1e-5)
    heat = found.heatmaps[0].heat
    expected = gradcam(module, path, x, grid, prefix)
    assert heat.shape == grid
    assert expected.any()
    assert np.allclose(heat, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViTImageProcessor", {}),
        ("BitImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        ("BeitImageProcessor", {"do_center_crop": True, "size": {"height": 72, "width": 72},
                                "crop_size": {"height": 64, "width": 64}}),
        ("EfficientNetImageProcessor", {"size": {"height": 60, "width": 60}, "rescale_offset": True,
                                        "rescale_factor": 1 / 127.5}),
    ],
    ids=str,
)  # fmt: skip
def test_the_preprocessing_is_that_of_the_processor(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    processor = getattr(transformers, kind)(**settings)
    image = Image.open(save_image(tmp_path / "x.png", 148, 120))
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    preprocess = preprocess_of(json.loads(processor.to_json_string()))
    pixels, _ = model_input(image, preprocess)
    ours = (pixels / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    assert ours.shape == (*theirs.shape[1:], 3)
    grey_levels = np.abs(ours.transpose(2, 0, 1) - theirs).max() * min(preprocess.std) * 255
    assert grey_levels <= 4


def test_channels_are_flipped_where_the_processor_flips_them(tmp_path: Path) -> None:
    module = saved(tmp_path, "resnet")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_flip_channel_order": True}))
    loaded = load_model(ModelConfig(source="transformers", path=str(tmp_path), name="r"), InputConfig())
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(loaded.module(x), module(x.flip(1)).logits)


def test_one_line_explains_a_folder_and_weights_of_one_s_own(camcli: Camcli, tmp_path: Path) -> None:
    module = saved(tmp_path / "net", "vit")
    image = save_image(tmp_path / "x.png", 64, 64)
    ended = camcli("run", image, "--out", tmp_path / "out", "-m", f"transformers/{tmp_path / 'net'}")
    assert ended.code == 0, ended.err
    [first] = lines(tmp_path / "out")
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"model": state, "classes": ["a", "b", "c"]}, tmp_path / "w.pth")
    words = ("-s", f"model={{source: transformers, path: {tmp_path / 'net'}, weights: {tmp_path / 'w.pth'}}}")
    assert camcli("run", image, "--out", tmp_path / "own", *words).code == 0
    [second] = lines(tmp_path / "own")
    assert [p["logit"] for p in first["predictions"]] == [p["logit"] for p in second["predictions"]]
    assert {p["label"] for p in second["predictions"]} == {"a", "b", "c"}


def test_what_is_no_folder_of_the_library_is_named(tmp_path: Path) -> None:
    def error_of(**fields: Any) -> str:
        with pytest.raises((ConfigError, ModelError)) as caught:
            load_model(ModelConfig.model_validate({"source": "transformers", **fields}), InputConfig(), offline=True)
        return str(caught.value)

    assert "holds no config.json; a folder that save_pretrained has written" in error_of(path=str(tmp_path))
    assert "--offline forbids a download" in error_of(name="nobody/nothing")
    assert "is no folder here and no name of the hub" in error_of(name="no/such/thing")
    saved(tmp_path, "resnet")
    state = load_file(tmp_path / "model.safetensors")
    save_file({n: t for n, t in state.items() if "classifier" not in n}, tmp_path / "model.safetensors")
    assert "it holds nothing for classifier.1.weight, classifier.1.bias" in error_of(path=str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    assert "holds no weights (looked for model.safetensors, " in error_of(path=str(tmp_path))


def cached_repo(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """The folder of `somebody/tiny` in a cache of the hub."""
    hub: Any = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(cache))
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = cache / "models--somebody--tiny" / "snapshots" / commit
    (cache / "models--somebody--tiny" / "refs").mkdir(parents=True)
    (cache / "models--somebody--tiny" / "refs" / "main").write_text(commit)
    saved(folder, "resnet")
    return folder


@pytest.mark.parametrize("reached", [False, True])
def test_what_a_cached_folder_lacks_is_fetched_or_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reached: bool
) -> None:
    settings = cached_repo(monkeypatch, tmp_path) / "preprocessor_config.json"
    text = settings.read_text()
    settings.unlink()

    def download(repo: str, file: str, revision: str | None) -> str:
        settings.write_text(text)
        return str(settings)

    if reached:
        monkeypatch.setattr("camcli.models.weights._unreachable", lambda url: None)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    config = ModelConfig.model_validate({"source": "transformers", "name": "somebody/tiny"})
    found = load_model(config, InputConfig(size=(64, 64)), offline=not reached)
    assert found.preprocess.mean == ((0.5,) * 3 if reached else (0.485, 0.456, 0.406))
    said = "somebody/tiny: no preprocessor_config.json says how images are prepared; mean and std are ImageNet's"
    assert any(note.startswith(said) for note in found.notes) is not reached


@pytest.mark.parametrize("source", ["transformers", "timm"])
@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_damaged_config_is_named(camcli: Camcli, tmp_path: Path, source: str, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    ended = camcli("labels", "--offline", "-s", f"model={{source: {source}, path: {tmp_path}}}")
    assert ended.code == 2, ended.err
    assert f"{tmp_path / 'config.json'}: " in ended.err


@pytest.mark.parametrize("family", ["own", "resnet"])
@pytest.mark.parametrize(
    "kwargs", ["{}", "{trust_remote_code: true}", "{code_revision: main}", "{attn_implementation: owner/kernel}"]
)
def test_code_beside_a_model_never_runs_and_is_never_asked_about(
    camcli: Camcli, tmp_path: Path, family: str, kwargs: str
) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    saved(folder, "resnet")
    told = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**told, "model_type": family, "auto_map": names}))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    model = f"model={{source: transformers, path: {folder}, kwargs: {kwargs}}}"
    ended = camcli("labels", "-s", model, stdin="y\ny\ny\n")
    ended = camcli("layers", "-s", model, stdin="y\ny\ny\n") if ended.code == 0 else ended
    assert not ran.exists()
    assert "[y/N]" not in ended.out + ended.err
    if kwargs != "{}":
        assert f"model.kwargs.{kwargs[1:].partition(':')[0]}: camcli runs no Python" in ended.err
    elif family == "own":
        assert f"{folder}: its network is built by code beside it: camcli runs no Python" in ended.err
    assert ended.code == (0 if (family, kwargs) == ("resnet", "{}") else 2), ended.err
