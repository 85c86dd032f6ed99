"""Results are kept exactly when all that decides about them is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from camcli.config.schema import RunConfig
from camcli.models.loaded import LoadedModel
from camcli.models.source import load_model
from camcli.pipeline.prepare import resolve_layers
from camcli.results.fingerprint import fingerprint, identity, look_of, same_numbers, same_request
from tests.conftest import Ended, save_image
from tests.test_resume import SMALL, images
from tests.test_run import lines, manifest

Camcli = Callable[..., Ended]

# Every field of the config with another value than its default: those that decide about numbers, ...
DECIDES: dict[str, Any] = {
    "model.source": "timm",
    "model.name": "other",
    "model.kwargs": {"drop_rate": 0.1},
    "model.checkpoint_key": "state_dict_ema",
    "model.num_classes": 5,
    "model.preprocess": "preprocess",
    "model.output": "logits",
    "model.activation": "softmax",
    "methods": ["layercam"],
    "smoothing": "aug",
    "targets.top": 2,
    "targets.above": 0.5,
    "targets.classes": [1],
    "targets.contrast": [1, 2],
    "targets.else": "top1",
    "report": False,
    "maps": "npz",
    "runtime.precision": "bf16",
    "runtime.backend": "openvino",
}
# ... those that only say how fast or where, ...
SPEED: dict[str, Any] = {
    "runtime.device": "cuda:1",
    "runtime.batch_size": 3,
    "runtime.threads": 2,
    "runtime.memory": 0.5,
    "options.chunk": 4,
}
# ... and those whose effect is known only once the model is loaded, and counts in its place.
RESOLVED: dict[str, Any] = {
    "model.weights": "other.pth",
    "model.weights_sha256": "0" * 64,
    "model.labels": "labels.txt",
    "model.path": "my_model.py",
    "layer": ["layer3"],
    "input.size": [32, 32],
    "input.mean": [0.1, 0.1, 0.1],
    "input.std": [0.2, 0.2, 0.2],
    "input.interpolation": "nearest",
    "input.crop": "pad",
    "input.channels": 1,
    "input.range": [0.0, 1.0],
}
FOUND: dict[str, Any] = {
    "weights_sha256": "1" * 64,
    "labels": ["a", "c"],
    "layers": [[{"path": "b"}]],
    "preprocess": {"mean": [0.0]},
    "options": {"occlusion": {"patch": 8}},
    "schema_version": 2,
}
PLAIN: dict[str, Any] = {
    "config": RunConfig().model_dump(mode="json"),
    "weights_sha256": "0" * 64,
    "labels": ["a", "b"],
    "layers": [[{"path": "a"}]],
    "preprocess": {"mean": [0.5]},
    "options": {"occlusion": {"patch": 32}},
    "schema_version": 1,
}


def fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted names of all fields of a config, as they stand in a dumped one."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{above}{name}.")
        else:
            yield above + (field.alias or name)


# ... the whole section about how overlays look, ...
LOOKS = [path for path in fields(RunConfig) if path.startswith("overlay.")]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The dumped default config with another value at `path`."""
    section, _, name = path.rpartition(".")
    config = RunConfig().model_dump(mode="json")
    inside = config[section] if section else config
    assert inside[name] != value
    return {**config, **({section: {**inside, name: value}} if section else {name: value})}


def of(**other: Any) -> str:
    """The fingerprint of the default config and what was found for it, but for what is given."""
    return fingerprint(identity(**{**PLAIN, **other}))


def test_every_field_of_the_config_is_decided_upon() -> None:
    assert sorted(fields(RunConfig)) == sorted([*DECIDES, *LOOKS, *SPEED, *RESOLVED])


@pytest.mark.parametrize("path", DECIDES)
def test_what_decides_about_results_is_in_the_fingerprint(path: str) -> None:
    assert of(config=changed(path, DECIDES[path])) != of()
    assert not same_numbers(changed(path, DECIDES[path]), PLAIN["config"])
    assert not same_request(changed(path, DECIDES[path]), PLAIN["config"])


@pytest.mark.parametrize("path", LOOKS)
def test_what_decides_how_overlays_look_is_in_the_look_alone(path: str) -> None:
    other = changed(path, "another")
    assert of(config=other) == of()
    assert look_of(other["overlay"]) != look_of(PLAIN["config"]["overlay"])
    assert same_numbers(other, PLAIN["config"])
    assert not same_request(other, PLAIN["config"])


@pytest.mark.parametrize("path", SPEED)
def test_what_only_changes_speed_is_not(path: str) -> None:
    assert of(config=changed(path, SPEED[path])) == of()
    assert same_request(changed(path, SPEED[path]), PLAIN["config"])


@pytest.mark.parametrize("path", RESOLVED)
def test_what_a_model_resolves_counts_by_what_was_found(path: str) -> None:
    assert of(config=changed(path, RESOLVED[path])) == of()
    assert not same_request(changed(path, RESOLVED[path]), PLAIN["config"])


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_in_the_fingerprint(name: str) -> None:
    assert sorted(FOUND) == sorted(set(PLAIN) - {"config"})
    assert of(**{name: FOUND[name]}) != of()


def test_a_run_says_of_itself_and_of_each_record_which_part_of_a_config_differs(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 2), tmp_path / "out"
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    save_image(folder / "new.jpg", 40, 40)
    look = "-s", "overlay.alpha=0.25"
    assert camcli("run", folder, "--out", out, *SMALL, *look, "--keep-going").code == 0
    first, _, third = lines(out)
    told = manifest(out)
    assert first["fingerprint"] == third["fingerprint"] == told["fingerprint"][:16]
    assert first["look"] != third["look"] == told["look"][:16]
    assert told["looks"] == {first["look"]: 2, third["look"]: 1}
    assert told["fingerprints"] == {first["fingerprint"]: 3}


def renamed(model: LoadedModel) -> dict[str, Any]:
    """The same network with other labels, preprocessing, weights or activation."""
    preprocess = dataclasses.replace(model.preprocess, mean=(0.25, 0.25, 0.25))
    return {"labels": ("x", *model.labels[1:]), "preprocess": preprocess, "weights_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("labels", "model.labels_sha256: "),
        ("preprocess", "input.mean: "),
        ("weights_sha256", "model.weights_sha256: "),
        ("layer", "layer: "),
    ],
)
def test_a_run_does_not_mix_what_another_model_would_give(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, told: str
) -> None:
    """The config is the same to the letter, as after an upgrade of a library or another file at the same path."""
    folder, out = images(tmp_path / "in", 2), tmp_path / "out"
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    images(folder, 3)

    def load(*words: Any) -> LoadedModel:
        model = load_model(*words)
        return dataclasses.replace(model, **{field: renamed(model)[field]})

    def resolve(model: LoadedModel, config: RunConfig) -> Any:
        return resolve_layers(model, config.model_copy(update={"layer": ("layer3",)}))

    if field == "layer":
        monkeypatch.setattr("camcli.pipeline.prepare.resolve_layers", resolve)
    else:
        monkeypatch.setattr("camcli.pipeline.prepare.load_model", load)
    ended = camcli("run", folder, "--out", out, *SMALL)
    assert ended.code == 2, ended.err
    assert told in ended.err
