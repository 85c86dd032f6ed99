"""Networks of one's own: saved in the ways that people save them, each is explained by one line."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from torch import nn

import camcli as camcli_package
from camcli.config.file import load_config
from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig, RunConfig
from camcli.errors import ConfigError, ModelError
from camcli.models.checkpoint import read_checkpoint
from camcli.models.code import code_allowed
from camcli.models.demo import ARCH, KWARGS
from camcli.models.labels import read_labels
from camcli.models.source import load_model
from tests import own
from tests.conftest import SHAPES, Ended
from tests.test_run import lines

Camcli = Callable[..., Ended]
STAR = SHAPES / "12-star.png"
IN_FULL = ("nested with labels", "averaged, as asked", "shards")


@pytest.fixture(scope="module")
def module() -> nn.Module:
    """The fine-tuned network."""
    return own.fine_tuned()


def explained(camcli: Camcli, out: Path, *words: object) -> dict[str, Any]:
    """The record of the star, which every way of saving has to know by its name and its place."""
    ended = camcli("run", STAR, "--out", out, *words)
    assert ended.code == 0, ended.err
    [record] = lines(out)
    [heatmap] = record["heatmaps"]
    assert heatmap["target"]["label"] == "star"
    return {**record, "said": ended.err, "manifest": json.loads((out / "run.json").read_text())}


def test_the_fine_tuned_network_knows_its_shapes(module: nn.Module) -> None:
    images, wanted = own.drawn(own.SEED + 1, 30)
    assert (module(images).argmax(1) == wanted).float().mean() > 0.9


@pytest.mark.parametrize("name", own.CHECKPOINTS)
def test_a_checkpoint_is_explained_by_one_line_as_it_is_saved(
    camcli: Camcli, tmp_path: Path, module: nn.Module, name: str
) -> None:
    way = own.CHECKPOINTS[name]
    way.write(module, tmp_path)
    words = own.command(way, tmp_path)
    config = config_of(way, tmp_path)
    loaded = load_model(config.model, config.input)
    images, _ = own.drawn(own.SEED + 2, 2)
    assert torch.equal(loaded.module(images), module(images))
    assert loaded.labels == own.SHAPES
    [note] = loaded.notes
    assert way.said in note
    if name in IN_FULL:
        found = explained(camcli, tmp_path / "out", *words)
        assert found["said"].count(f"note: {note}\n") == 1
        assert found["manifest"]["notes"] == [note]


WRONG: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str, str]] = {
    "another head": (
        lambda s: {n.replace("fc.", "fc.1."): t for n, t in s.items()},
        "",
        "90 of 92 tensors match; it holds nothing for fc.weight, fc.bias; it has too many: fc.1.weight, fc.1.bias. "
        "The head is fc.1 there (fc.1.weight [3, 96]) and fc here: replace it as in training with source: python",
    ),
    "another class count": (
        lambda s: s,
        ", num_classes: 4",
        "other shapes: fc.weight [3, 96] instead of [4, 96], fc.bias [3] instead of [4]. model.num_classes is 4, but "
        "its head has 3 rows: set it to 3, or leave it out",
    ),
    "another architecture": (
        lambda s: {f"blocks.{n}": t for n, t in s.items()} | {"more": torch.ones(2)},
        ", name: vit_tiny_patch16_224, kwargs: {}",
        "It looks like another architecture: check model.name, model.num_classes and model.kwargs",
    ),
    "another number of channels": (
        lambda s: {n: t[:, :1] if n == "conv1.0.weight" else t for n, t in s.items()},
        "",
        "It takes images of 1 channels: set model.kwargs.in_chans and input.channels to 1",
    ),
    "two networks": (
        lambda s: {"student": s, "teacher": s},
        "",
        "holds tensors under student, teacher: set model.checkpoint_key to one of them",
    ),
    "two networks in one dictionary": (
        lambda s: {f"{who}.{n}": t for n, t in s.items() for who in ("student", "teacher")},
        "",
        "holds several sets of weights: set model.checkpoint_key to one of student, teacher",
    ),
    "another key": (
        lambda s: {"state_dict": s},
        ", checkpoint_key: ema",
        "holds no tensors under 'ema' (there: state_dict)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_checkpoint_that_does_not_fit_says_what_to_set(tmp_path: Path, module: nn.Module, name: str) -> None:
    change, more, sentence = WRONG[name]
    torch.save(change(module.state_dict()), tmp_path / "w.pth")
    base = {"source": "timm", "name": ARCH, "kwargs": KWARGS, "weights": str(tmp_path / "w.pth")}
    fields = {**base, **yaml.safe_load("{" + more.removeprefix(", ") + "}")}
    with pytest.raises((ModelError, ConfigError)) as caught:
        load_model(ModelConfig.model_validate(fields), InputConfig())
    assert sentence in str(caught.value)


def test_one_of_two_networks_in_a_dictionary_is_taken_by_its_name(tmp_path: Path, module: nn.Module) -> None:
    state = module.state_dict()
    torch.save(
        {f"{who}.{n}": t * (who == "teacher") for n, t in state.items() for who in ("a", "teacher")}, tmp_path / "w"
    )
    found = read_checkpoint(tmp_path / "w", "teacher")
    assert found.steps == ("took `teacher.`",)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "text",
    [
        ("l.json", '["ant", "bee", "cat"]'),
        ("l.json", '{"2": "cat", "0": "ant", "1": "bee"}'),
        ("l.json", '{"cat": 2, "ant": 0, "bee": 1}'),
        ("l.json", '{"0": ["n01", "ant"], "1": ["n02", "bee"], "2": ["n03", "cat"]}'),
        ("l.json", '{"model_type": "vit", "id2label": {"0": "ant", "1": "bee", "2": "cat"}}'),
        ("l.csv", "index,name\n1,bee\n0,ant\n2,cat\n"),
        ("l.csv", "cat,2\nant,0\nbee,1\n"),
        ("l.csv", "label\nant\nbee\ncat\n"),
        ("l.tsv", "wnid\tlabel\nn1\tant\nn2\tbee\nn3\tcat\n"),
        ("l.names", "ant\nbee\n\ncat\n"),
    ],
    ids=str,
)
def test_labels_are_read_from_text_tables_and_json(tmp_path: Path, text: tuple[str, str]) -> None:
    (tmp_path / text[0]).write_text(text[1])
    assert read_labels(tmp_path / text[0]) == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("l.json", '{"0": "ant", "2": "cat"}', "holds no labels: a list, an object from or to 0, 1, 2 …"),
        ("l.json", "{", "not valid JSON"),
        ("l.csv", "index,label\n0,ant\n0,bee\n", "its indices are not 0, 1, 2 …, each once"),
        ("l.csv", "index,label\n0,ant\n1\n", "rows of different lengths"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"model\.labels: .*" + name) as caught:
        read_labels(tmp_path / name)
    assert sentence in str(caught.value)


def test_an_index_names_files_beside_it_alone(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    index = tmp_path / "w.safetensors.index.json"
    for names, sentence in (
        ('{"weight_map": {"a": "../a.safetensors"}}', "names of files beside it are wanted"),
        (
            '{"weight_map": {"a": "a.safetensors", "b": "gone.safetensors"}}',
            "gone.safetensors is not beside it (1 of 2",
        ),
        ("[]", "not a readable index of weights"),
    ):
        index.write_text(names)
        with pytest.raises(ModelError) as caught:
            read_checkpoint(index)
        assert sentence in str(caught.value)


def test_labels_of_another_count_are_told_and_not_taken(tmp_path: Path, module: nn.Module) -> None:
    torch.save({"state_dict": module.state_dict(), "classes": ["a", "b"]}, tmp_path / "w.pth")
    fields = {"source": "timm", "name": ARCH, "kwargs": KWARGS, "weights": str(tmp_path / "w.pth")}
    loaded = load_model(ModelConfig.model_validate(fields), InputConfig())
    assert loaded.labels == ("class_0", "class_1", "class_2")
    assert loaded.notes[1:] == ("its 2 labels are not taken, because the model has 3 classes",)


def test_the_old_names_in_torchvisions_densenets_are_known(tmp_path: Path) -> None:
    whole = torchvision.models.densenet121(num_classes=2).eval()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", n): t for n, t in whole.state_dict().items()}
    assert old.keys() != whole.state_dict().keys()
    torch.save(old, tmp_path / "w.pth")
    fields = {"source": "torchvision", "name": "densenet121", "weights": str(tmp_path / "w.pth")}
    x = torch.rand(1, 3, 32, 32)
    loaded = load_model(ModelConfig.model_validate(fields), InputConfig(size=(32, 32)))
    assert torch.equal(loaded.module(x), whole(x))


def config_of(way: own.Way, folder: Path) -> RunConfig:
    """The config that a way's options describe."""
    return load_config(None, [word for word in own.command(way, folder) if "=" in word]).config


@pytest.mark.parametrize("name", own.CODE)
def test_a_function_of_one_s_own_is_explained_by_one_line(
    camcli: Camcli, tmp_path: Path, module: nn.Module, name: str
) -> None:
    way = own.CODE[name]
    way.write(module, tmp_path)
    config = config_of(way, tmp_path)
    with code_allowed(True):
        loaded = load_model(config.model, config.input)
    images, _ = own.drawn(own.SEED + 2, 2)
    assert torch.equal(loaded.module(images), module(images))
    assert (loaded.labels, loaded.preprocess.size, loaded.preprocess.mean) == (own.SHAPES, (128, 128), (0.5, 0.5, 0.5))
    assert loaded.code_sha256 == hashlib.sha256((tmp_path / "my_model.py").read_bytes()).hexdigest()
    if name == "a dictionary of outputs":
        explained(camcli, tmp_path / "out", *own.command(way, tmp_path))


def test_code_runs_only_where_it_is_allowed_and_its_change_is_another_run(
    camcli: Camcli, tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = own.CODE["a file"]
    way.write(module, tmp_path)
    file = tmp_path / "my_model.py"
    file.write_text(file.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    words = own.command(way, tmp_path)
    ended = camcli("run", STAR, "--out", tmp_path / "out", *words[:-1])
    assert (ended.code, f"{file} is Python code, which runs only with --allow-code" in ended.err) == (2, True)
    assert not (tmp_path / "ran").exists()
    first = explained(camcli, tmp_path / "out", *words)["manifest"]
    assert (tmp_path / "ran").exists()
    assert first["model"]["code"] == str(file)
    assert first["model"]["code_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(file.read_text() + "\n")
    ended = camcli("run", STAR, "--out", tmp_path / "out", *words)
    assert (ended.code, "model.code_sha256: " in ended.err) == (2, True)


def test_a_module_by_its_name_is_found_in_the_current_folder(
    tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    own._my_model(module, tmp_path, "own_package/models.py")
    monkeypatch.chdir(tmp_path)
    torch.save(module.state_dict(), tmp_path / "own_package" / "w.pth")
    given = {"source": "python", "name": "own_package.models:build", "preprocess": "own_package.models:preprocess"}
    with code_allowed(True):
        loaded = load_model(ModelConfig.model_validate(given), InputConfig())
        [found] = camcli_package.explain(STAR, RunConfig.model_validate({"model": given}), layer="layer4")
    assert loaded.weights_sha256 is not None
    assert found.predictions[0].label == "class_2"


def test_a_file_that_changes_is_run_anew(tmp_path: Path) -> None:
    file = tmp_path / "my_model.py"
    given = ModelConfig.model_validate({"source": "python", "path": str(file)})
    for classes in (3, 4, 3):
        file.write_text(
            f"from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, {classes}))\n"
        )
        with code_allowed(True):
            loaded = load_model(given, InputConfig(size=(2, 2)))
        assert len(loaded.labels) == classes
        assert loaded.code_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_weights_for_another_head_than_a_function_builds_say_so(tmp_path: Path) -> None:
    code = "from torch import nn\ndef build(**given):\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    (tmp_path / "my_model.py").write_text(code)
    save_file({"1.weight": torch.ones(5, 12), "1.bias": torch.ones(5)}, tmp_path / "w.safetensors")
    told = []
    for more in ({}, {"num_classes": 3}):
        fields = {"source": "python", "path": str(tmp_path / "my_model.py"), "weights": str(tmp_path / "w.safetensors")}
        with code_allowed(True), pytest.raises(ModelError) as caught:
            load_model(ModelConfig.model_validate({**fields, **more}), InputConfig(size=(2, 2)))
        told.append(str(caught.value))
    assert "Its head has 5 rows, so it goes with a model of as many classes" in told[0]
    assert "model.num_classes is 3, but its head has 5 rows" in told[1]


@pytest.mark.parametrize("where", ["broken_package.models", "broken_package.inner"])
def test_a_module_by_its_name_that_fails_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file = tmp_path / "broken_package" / ("models.py" if where.endswith("models") else "inner/__init__.py")
    file.parent.mkdir(parents=True)
    file.write_text("import torch\n\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with code_allowed(True), pytest.raises(ConfigError) as caught:
        load_model(ModelConfig.model_validate(f"python/{where}:build"), InputConfig())
    assert str(caught.value).startswith(f"{file}:3: {where} cannot be imported (ZeroDivisionError")


BROKEN: dict[str, tuple[str, str, str]] = {
    "no such file": ("path: gone.py", "", "gone.py: no such file; model.path is a Python file"),
    "no such function": ("name: biuld", "", "my_model.py: has no function 'biuld', did you mean 'build'"),
    "a failing import": ("", "\n1 / 0\n", "my_model.py cannot be imported (ZeroDivisionError: division by zero)"),
    "a failing function": (
        "name: fails", "\ndef fails():\n    raise ValueError('no luck')\n", "fails() failed (ValueError: no luck)",
    ),
    "no module": ("name: number", "\ndef number():\n    return 3\n", "number() returned a int, but an nn.Module"),
    "outputs": ("name: named", "", "gives a dict with features, logits, no logits of shape [batch, classes], so there"),
    "another output": ("name: named, output: logit", "", "model.output: 'logit' is not in a dict with features, logi"),
    "no size": ("name: bare, preprocess: null", "def bare():\n    return torch.nn.Flatten()\n", "bare: set input.size"),
    "a wrong preprocessing": (
        "preprocess: sizes", "\ndef sizes():\n    return {'sise': 3}\n", "sizes() returned sise: Extra inputs are not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_code_that_does_not_serve_is_named_with_its_line(tmp_path: Path, module: nn.Module, name: str) -> None:
    fields, code, sentence = BROKEN[name]
    own._my_model(module, tmp_path)
    file = tmp_path / "my_model.py"
    file.write_text(file.read_text() + code)
    given = {"source": "python", "path": str(file), "preprocess": "preprocess", **yaml.safe_load("{" + fields + "}")}
    with code_allowed(True), pytest.raises(ConfigError) as caught:
        load_model(ModelConfig.model_validate(given), InputConfig())
    assert sentence in str(caught.value)
    if code and "failing" in name:
        line = next(
            i for i, text in enumerate(file.read_text().splitlines(), 1) if "1 / 0" in text or "no luck" in text
        )
        assert f"{file}:{line}: " in str(caught.value)


@pytest.mark.parametrize("name", own.FOLDERS)
def test_a_folder_that_timm_has_saved_is_explained_by_one_line(
    camcli: Camcli, tmp_path: Path, module: nn.Module, name: str
) -> None:
    way = own.FOLDERS[name]
    way.write(copy.deepcopy(module), tmp_path)
    explained(camcli, tmp_path / "out", *own.command(way, tmp_path))
    found = json.loads(camcli("labels", *own.command(way, tmp_path), "--json").out)
    assert [one["label"] for one in found] == list(own.SHAPES)
    loaded = load_model(ModelConfig(source="timm", path=str(tmp_path / "saved"), name="x"), InputConfig())
    images, _ = own.drawn(own.SEED + 2, 2)
    assert torch.equal(loaded.module(images), module(images))
    assert (loaded.preprocess.size, loaded.preprocess.crop) == ((128, 128), "squash")


def test_folders_and_names_of_the_hub_that_are_not_there_are_named(tmp_path: Path) -> None:
    for fields, sentence in (
        ({"path": str(tmp_path)}, "holds no config.json"),
        ({"name": "local-dir:gone"}, "gone: holds no config.json"),
        ({"name": "hf-hub:nobody/nothing"}, "--offline forbids a download"),
        ({"name": "hf_hub:nobody/nothing"}, "--offline forbids a download"),
    ):
        with pytest.raises((ConfigError, ModelError)) as caught:
            load_model(ModelConfig.model_validate({"source": "timm", **fields}), InputConfig(), offline=True)
        assert sentence in str(caught.value)


def test_torchvisions_names_of_weights_are_tags(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {source: torchvision, name: resnet50, weights: IMAGENET1K_V1}\n")
    for loaded in (
        load_config(tmp_path / "c.yaml"),
        load_config(None, ["model={source: torchvision, name: resnet50, weights: ResNet50_Weights.IMAGENET1K_V1}"]),
    ):
        assert (loaded.config.model.name, loaded.config.model.weights) == ("resnet50.IMAGENET1K_V1", "pretrained")
    assert (
        load_config(None, ["model={source: torchvision, name: vgg11, weights: DEFAULT}"]).config.model.name == "vgg11"
    )
    with pytest.raises(ConfigError, match="weights are named twice"):
        load_config(None, ["model={source: torchvision, name: vgg11.IMAGENET1K_V1, weights: IMAGENET1K_V2}"])


def test_an_exported_program_is_explained_by_one_line(camcli: Camcli, tmp_path: Path, module: nn.Module) -> None:
    way = own.EXPORTED["exported"]
    way.write(copy.deepcopy(module), tmp_path)
    found = explained(camcli, tmp_path / "out", *own.command(way, tmp_path))
    plain = own.CHECKPOINTS["plain"]
    plain.write(module, tmp_path)
    same = explained(camcli, tmp_path / "plain", *own.command(plain, tmp_path))
    assert found["heatmaps"][0]["peak"] == same["heatmaps"][0]["peak"]
    for one, other in zip(found["predictions"], same["predictions"], strict=True):
        assert one["logit"] == pytest.approx(other["logit"], abs=1e-3)
    ended = camcli("run", STAR, "--out", tmp_path / "out", *own.command(way, tmp_path)[:-1], "--fresh")
    assert (ended.code, "may hold pickled Python code, which runs only with --allow-code" in ended.err) == (2, True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_graphs_without_gradients_or_layers_are_refused_with_what_to_do(
    camcli: Camcli, tmp_path: Path, module: nn.Module
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08")
    example = torch.zeros(2, 3, 64, 64)
    frozen = torch.jit.freeze(torch.jit.trace(module.eval(), example))  # type: ignore[no-untyped-call]
    torch.jit.save(frozen, tmp_path / "net.pt")
    torch.export.save(
        torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (torch.zeros(3, 3, 2, 2),)),
        tmp_path / "three.pt2",
    )
    (tmp_path / "noise.pt2").write_bytes(b"noise")
    (tmp_path / "torn.pt2").write_bytes((tmp_path / "three.pt2").read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))
    for model, code, sentence in (
        ("source: exported, path: net.onnx", 3, "an ONNX graph, through which no gradient flows"),
        ("source: timm, name: resnet18, weights: net.onnx", 3, "an ONNX graph, through which no gradient flows"),
        ("source: exported, path: net.pt", 3, "a TorchScript archive, whose modules run where no layer can be looked"),
        ("source: exported, path: three.pt2", 2, "takes batches of 3 alone; export it for any number of images"),
        ("source: exported, path: noise.pt2", 3, "not a file that torch.export.save has written"),
        ("source: exported, path: torn.pt2", 3, "not a file that torch.export.save has written, or damaged"),
        ("source: exported, path: gone.pt2", 2, "no such file; model.path is a file that torch.export.save"),
    ):
        config = tmp_path / "c.yaml"
        config.write_text(f"model: {{{model}}}\n")
        ended = camcli("run", STAR, "--out", tmp_path / "out", "-c", config, "--allow-code")
        assert (ended.code, sentence in ended.err) == (code, True), ended.err
        if code == 3 and "noise" not in model and "torn" not in model:
            assert "Methods that need no gradient (cam, eigencam, " in ended.err
            assert "source: python" in ended.err
