"""Configs: defaults, places of mistakes, overrides, variables, and the shipped files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from camcli.config.file import load_config
from camcli.config.schema import RunConfig, json_schema
from camcli.errors import ConfigError
from tests.conftest import REPO, Ended

SHIPPED = sorted((REPO / "configs").glob("*.yaml"))


def config_of(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    """The config that `text` in a file and the overrides give."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, overrides).config


def error_of(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message about a bad config, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_no_config_is_that_of_the_demo() -> None:
    assert load_config(None).config == load_config(REPO / "configs" / "demo.yaml").config


def test_a_model_without_a_config_has_all_defaults() -> None:
    config = load_config(None, ["model=timm/resnet50"]).config
    assert config == RunConfig(model=config.model)
    assert config.targets.top == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  sorce: timm\n  name: x\n", "c.yaml:2:3: model.sorce: unknown key, did you mean 'source'?"),
        ("\ntargts: top1\n", "c.yaml:2:1: targts: unknown key, did you mean 'targets'?"),
        ("a: 1\na: 2\n", "c.yaml:2:1: a: given twice"),
        ("a: &x 1\nb: *x\n", "c.yaml:2:4: aliases (*x) are not read; repeat the value"),
        ("targets: {top: 0}\n", "c.yaml:1:11: targets.top: input should be greater than or equal to 1 (got 0)"),
        ("targets: {top: 1, above: 0.5}\n", "c.yaml:1:1: targets: give exactly one of `top`, `above`, `classes`"),
        ("targets: {top: 1, else: top1}\n", "c.yaml:1:1: targets: `else` goes with `above`"),
        ("targets: {above: 0.5, else: top9}\n", "c.yaml:1:23: targets.else: input should be 'top1'"),
        ("targets: {above: 0.5, els: top1}\n", "c.yaml:1:23: targets.els: unknown key, did you mean 'else'?"),
        ("overlay:\n  colormap: turboo\n", "unknown matplotlib colour map 'turboo', did you mean 'turbo'"),
        ("model: [1\n", "c.yaml:2:1: expected ',' or ']'"),
        ("- 1\n", "c.yaml:1:1: a config is a mapping"),
        ("model: timm\nlayer: 3\n", "c.yaml:2:1: layer: a string or a list of strings is wanted (got 3)"),
        ("model: {source: timm}\n", "c.yaml:1:1: model: source timm needs a name"),
        ("model: ${UNSET_VARIABLE}\n", "c.yaml:1:8: ${UNSET_VARIABLE} is not set"),
        ("model: \x07\n", "not valid YAML"),
        ("overlay:\n\talpha: 1\n", "c.yaml:2:1: found character '\\t' that cannot start any token; YAML wants spaces"),
        ("overlay: {alpha: true}\n", "c.yaml:1:11: overlay.alpha: a number is wanted, not true or false (got True)"),
        ("runtime: {batch_size: yes}\n", "c.yaml:1:11: runtime.batch_size: a number is wanted"),
        ("input: {size: [true, 8]}\n", "c.yaml:1:16: input.size.0: a number is wanted"),
        ("input: {size: true}\n", "c.yaml:1:9: input.size: a number is wanted, not true or false (got True)"),
        ("overlay: {grid: 1}\n", "c.yaml:1:11: overlay.grid: true or false is wanted (got 1)"),
        ("report: 'on'\n", "c.yaml:1:1: report: true or false is wanted (got 'on')"),
        ("runtime: {threads: 010}\n", "c.yaml:1:20: 010 is 8 in YAML; write 8, or '010' for text"),
        ("runtime: {threads: 1:30}\n", "c.yaml:1:20: 1:30 is 90 in YAML; write 90, or '1:30' for text"),
        ("overlay: {alpha: -0:0.5}\n", "c.yaml:1:18: -0:0.5 is -0.5 in YAML"),
        ("model: {source: timm, name: x, kwargs: {a: [.nan]}}\n", "c.yaml:1:45: .nan is not a number that a config"),
        ("overlay: {alpha: -.inf}\n", "c.yaml:1:18: -.inf is not a number"),
        ("overlay: {alpha: nan}\n", "c.yaml:1:11: overlay.alpha: input should be a finite number (got 'nan')"),
        ("input: {std: [1, 1e999, 1]}\n", "c.yaml:1:18: input.std.1: input should be a finite number"),
        ("input: {mean: [.nan, 0, 0]}\n", "c.yaml:1:16: .nan is not a number"),
        ("input: {mean: [123.7, 116.3, 103.5]}\n", "input.mean.0: input should be less than or equal to 1 (got 123.7)"),
        ("input: {std: [0, 1, 1]}\n", "c.yaml:1:15: input.std.0: input should be greater than 0 (got 0)"),
        (
            "runtime: {device: meta}\n",
            "c.yaml:1:11: runtime.device: 'meta' is no device; write auto, all, cpu, cuda, cuda:1",
        ),
        ("runtime: {device: 'cpu,privateuseone'}\n", "c.yaml:1:11: runtime.device: 'privateuseone' is no device"),
        ("runtime: {device: 'cuda:'}\n", "'cuda:' is no device"),
        ("a: !!bool x\n", "c.yaml:1:4: 'x' is no bool"),
        ("a: !!timestamp x\n", "c.yaml:1:4: 'x' is no timestamp"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert message in error_of(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    assert len(error_of(tmp_path, "overlay: {alpha: 2, quality: 0}\nmaps: yes\n").splitlines()) == 3


def test_an_override_is_named_when_it_is_wrong(tmp_path: Path) -> None:
    assert error_of(tmp_path, "", "overlay.alpha=3").startswith("--set overlay.alpha: overlay.alpha: input should be")
    assert "write it as field=value" in error_of(tmp_path, "", "overlay.alpha")


def test_overrides_win_and_reach_into_the_short_form_of_a_model(tmp_path: Path) -> None:
    config = config_of(tmp_path, "model: timm/resnet50\n", "model.name=resnet18", "input.size=[64,96]")
    assert (config.model.source, config.model.name, config.input.size) == ("timm", "resnet18", (64, 96))


def test_variables_take_their_default_and_their_yaml_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "runtime:\n  batch_size: ${TEST_BATCH:-12}\nreport: ${TEST_REPORT:-true}\n"
    assert config_of(tmp_path, text).runtime.batch_size == 12
    monkeypatch.setenv("TEST_BATCH", "7")
    monkeypatch.setenv("TEST_REPORT", "false")
    assert config_of(tmp_path, text).runtime.batch_size == 7
    assert config_of(tmp_path, text).report is False


@pytest.mark.parametrize(
    ("text", "alpha"),
    [
        ("overlay: {alpha: ${TEST_ALPHA:-0.3}}", 0.3),
        ("overlay: {alpha: ${TEST_ALPHA:-0.3}, quality: 5}", 0.3),
        ('overlay: {alpha: "${TEST_ALPHA:-0.3}"}', 0.3),
        ("overlay:\n  alpha: ${TEST_ALPHA}\n", 0.7),
        ("overlay: {alpha: ${TEST_ALPHA}}", 0.7),
        ("overlay: {alpha: 0.${TEST_DIGIT:-4}}", 0.4),
    ],
)
def test_variables_work_inside_braces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, alpha: float) -> None:
    if alpha == 0.7:
        monkeypatch.setenv("TEST_ALPHA", "0.7")
    assert config_of(tmp_path, text).overlay.alpha == alpha


def test_variables_are_as_strict_as_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "runtime:\n  threads: ${TEST_THREADS}\n"
    for value, sentence in (("010", "c.yaml:2:12: 010 is 8 in YAML"), ("true", "a number is wanted"), ("x", "integer")):
        monkeypatch.setenv("TEST_THREADS", value)
        assert sentence in error_of(tmp_path, text)
    monkeypatch.setenv("TEST_THREADS", "")
    assert "${TEST_THREADS} is not set" in error_of(tmp_path, text)
    assert config_of(tmp_path, "model: {source: timm, name: '${TEST_NAME:-010}'}\n").model.name == "010"


def test_an_empty_variable_takes_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_MAPS", "")
    assert config_of(tmp_path, "maps: ${TEST_MAPS:-npz}\n").maps == "npz"


def test_a_users_folder_is_expanded_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    model = config_of(
        tmp_path, "model: {source: timm, name: x, weights: ~/w.pth, labels: ~nobody-at-all/l.txt}\n"
    ).model
    assert model.weights == "/home/somebody/w.pth"
    assert model.labels == str(tmp_path / "~nobody-at-all" / "l.txt")


def test_yaml_traps_are_closed(tmp_path: Path) -> None:
    assert config_of(tmp_path, "input: {std: [1e-3, 1, 1]}\n").input.std == (0.001, 1.0, 1.0)
    assert "overlay.colormap" in error_of(tmp_path, "overlay: {colormap: no}\n")
    assert "targets" in error_of(tmp_path, "targets: [yes]\n")


def test_files_are_relative_to_the_config(tmp_path: Path) -> None:
    text = "model: {source: timm, name: resnet18, weights: w.pth, labels: l.txt}\n"
    model = config_of(tmp_path, text).model
    assert (model.weights, model.labels) == (str(tmp_path / "w.pth"), str(tmp_path / "l.txt"))


@pytest.mark.parametrize(
    ("short", "field", "value"),
    [
        ("top1", "top", 1),
        ('["Egyptian cat", 761]', "classes", ("Egyptian cat", 761)),
        ("Egyptian cat", "classes", ("Egyptian cat",)),
        ("{above: 0.5}", "above", 0.5),
        ("{above: 0.5, else: top1}", "otherwise", "top1"),
    ],
)
def test_short_forms_of_targets(tmp_path: Path, short: str, field: str, value: object) -> None:
    assert getattr(config_of(tmp_path, f"targets: {short}\n").targets, field) == value


def test_giant_and_binary_files_are_refused(tmp_path: Path) -> None:
    assert "hardly a config" in error_of(tmp_path, "a: 1\n" * 100_000)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "b.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_are_valid_and_name_the_schema(path: Path) -> None:
    load_config(path)
    assert path.read_text().startswith("# yaml-language-server: $schema=./schema.json\n")
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


def test_the_shipped_schema_is_the_current_one() -> None:
    assert json.loads((REPO / "configs" / "schema.json").read_text()) == json.loads(json.dumps(json_schema()))


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    for wrong in ({"modle": "demo"}, {"targets": {"top": 0}}, {"overlay": {"alpha": 2}}, {"layer": 3}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, json_schema())


def test_show_names_the_origin_of_each_value(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: timm/resnet50\noverlay:\n  alpha: 0.3\n")
    shown = camcli("config", "show", "-c", path, "-s", "maps=npz")
    assert shown.code == 0
    for line in (
        'name: "resnet50"  # ',
        f"alpha: 0.3  # {path}:3:3",
        'maps: "npz"  # --set maps',
        "quality: 90  # default",
    ):
        assert line in shown.out
    assert RunConfig.model_validate(yaml.safe_load(shown.out)) == load_config(path, ["maps=npz"]).config


def checked(camcli: Callable[..., Ended], path: Path, text: str, *more: str) -> Ended:
    """`config check` of a file with this text."""
    path.write_text(text)
    return camcli("config", "check", path, *more)


def test_check_finds_what_a_run_would_find_before_it_loads_weights(
    camcli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*words: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("camcli.models.source._built", load)
    path = tmp_path / "c.yaml"
    page = tmp_path / "page.pth"
    page.write_text("<html>")
    (tmp_path / "l.txt").write_text("ant\nbee\n")
    text = (
        "model:\n  source: timm\n  name: resnet5\n  weights: gone.pth\n  labels: gone.txt\nmethods: [gradcam, grdcam]\n"
    )
    ended = checked(camcli, path, text)
    assert ended.code == 2
    said = ended.err.removeprefix("camcli: ").splitlines()
    assert [line[: line.index(": ")] for line in said] == [f"{path}:{place}" for place in ("6:20", "3:3", "4:3", "5:3")]
    for line, sentence in zip(
        said,
        (
            "methods.1: unknown method 'grdcam', did you mean 'gradcam'",
            "model.name: unknown timm model 'resnet5', did you mean",
            "model.weights: {0}/gone.pth: no such weights file",
            "model.labels: model.labels: {0}/gone.txt: cannot be read: No such file",
        ),
        strict=True,
    ):
        assert sentence.format(tmp_path) in line
    for text, sentence in (
        ("methods: gradcm\n", f"{path}:1:1: methods.0: unknown method 'gradcm'"),
        ("model: torchvision/resnet5\n", f"{path}:1:1: model.name: unknown torchvision model"),
        ("model: torchvision/resnet18.NOPE\n", "has no weights 'NOPE'"),
        ("model: timm/resnet18.nope\n", "has no weights 'nope'"),
        ("model: timm/resnet18d_nope\n", "unknown timm model"),
        ("model: {source: timm, name: resnet18, num_classes: 5}\n", "leave it out, or give your own weights file"),
        ("model: {source: timm, name: resnet18, weights: page.pth}\n", "a web page (HTML)"),
        ("model: {source: timm, name: resnet18, weights: none, labels: l.txt, num_classes: 3}\n", "l.txt has 2 labels"),
    ):
        ended = checked(camcli, path, text)
        assert (ended.code, ended.out) == (2, "")
        assert sentence in ended.err
    for text in (
        "model: timm/resnet18.a1_in1k\n",
        "model: torchvision/resnet18\n",
        "model: {source: timm, name: resnet18, weights: none, labels: l.txt, num_classes: 2}\n",
    ):
        assert checked(camcli, path, text).code == 0


def test_check_with_load_finds_the_rest(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    model = "model: {source: timm, name: test_resnet, weights: none, num_classes: 4}\ninput: {size: 64}\n"
    path = tmp_path / "c.yaml"
    for text, sentence in (
        ("targets: [dog]\n", "the model has no class 'dog'"),
        ("layer: layer5\n", "layer5"),
        ("runtime: {device: 'cuda:99'}\n", "runtime.device: 'cuda:99' is not available here"),
        ("targets: {contrast: [1, 1]}\n", "twice the same class"),
    ):
        assert checked(camcli, path, model + text).code == 0
        ended = checked(camcli, path, model + text, "--load")
        assert ended.code == 2
        assert sentence in ended.err
    assert checked(camcli, path, model, "--load").code == 0
    assert checked(camcli, path, model, "--load", "-s", "layer=layer5").code == 2


def test_check_exits_0_or_2(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("model: demo\n")
    bad.write_text("modle: demo\n")
    assert camcli("config", "check", good).code == 0
    ended = camcli("config", "check", bad)
    assert (ended.code, ended.out) == (2, "")
    assert f"{bad}:1:1: modle: unknown key, did you mean 'model'?" in ended.err


def test_else_is_called_else_wherever_a_config_is_written(camcli: Callable[..., Ended]) -> None:
    shown = camcli("config", "show", "-s", "targets={above: 0.25, else: top1}")
    assert '  else: "top1"  # --set targets' in shown.out
    assert yaml.safe_load(shown.out)["targets"]["else"] == "top1"
    config = load_config(None, ["targets={above: 0.25, else: top1}"]).config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    jsonschema.validate({"targets": {"above": 0.25, "else": "top1"}}, json_schema())


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("options: {chunk: 1}", True),
        ("options: {chunk: 0}", False),
        ("overlay: {alpha: 0}", True),
        ("overlay: {alpha: 1.0}", True),
        ("overlay: {quality: 101}", False),
        ("runtime: {threads: 0}", False),
        ("targets: yes", False),
        ("targets: 0", True),
        ("model: {source: timm, name: x, kwargs: {a: {b: {c: {d: {e: [1]}}}}}}", True),
    ],
)
def test_limits_are_where_they_are_said_to_be(tmp_path: Path, text: str, ok: bool) -> None:
    if ok:
        config_of(tmp_path, text)
    else:
        assert error_of(tmp_path, text)


def test_words_in_place_of_weights_are_no_files(tmp_path: Path) -> None:
    for word in ("pretrained", "none"):
        assert config_of(tmp_path, f"model: {{source: timm, name: x, weights: {word}}}\n").model.weights == word


def test_an_override_of_a_section_takes_the_places_of_its_fields(tmp_path: Path) -> None:
    said = error_of(tmp_path, "overlay:\n  alpha: 0.3\n", "overlay={alpha: 2}")
    assert said.startswith("--set overlay: overlay.alpha: ")


def test_an_override_that_chooses_no_model_keeps_the_demo() -> None:
    assert load_config(None, ["maps=npz"]).config.targets == load_config(None).config.targets


def test_an_override_of_a_list_takes_the_places_of_its_items(tmp_path: Path) -> None:
    said = error_of(tmp_path, "input:\n  size: [64, 64]\n", "input.size=[0, 64]")
    assert said.startswith("--set input.size: input.size.0: ")
