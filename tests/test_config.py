"""Configs: defaults, places of mistakes, overrides, variables, and the shipped files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from camcli.config import RunConfig, json_schema
from camcli.configfile import load_config
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
        ("overlay:\n  colormap: turboo\n", "unknown matplotlib colour map 'turboo', did you mean 'turbo'"),
        ("model: [1\n", "c.yaml:2:1: expected ',' or ']'"),
        ("- 1\n", "c.yaml:1:1: a config is a mapping"),
        ("model: timm\nlayer: 3\n", "c.yaml:2:1: layer: a string or a list of strings is wanted (got 3)"),
        ("model: {source: timm}\n", "c.yaml:1:1: model: source timm needs a name"),
        ("model: ${UNSET_VARIABLE}\n", "c.yaml:1:8: ${UNSET_VARIABLE} is not set"),
        ("model: \x07\n", "not valid YAML"),
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


def test_check_exits_0_or_2(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("model: demo\n")
    bad.write_text("modle: demo\n")
    assert camcli("config", "check", good).code == 0
    ended = camcli("config", "check", bad)
    assert (ended.code, ended.out) == (2, "")
    assert f"{bad}:1:1: modle: unknown key, did you mean 'model'?" in ended.err
