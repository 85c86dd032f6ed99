"""What methods are told: each declares its options, a config gives them, and they count where the method runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from camcli.config.schema import OptionsConfig, RunConfig
from camcli.engine.methods import METHODS, methods_of
from camcli.engine.methods.options import faults, options_of
from camcli.errors import ConfigError
from camcli.results.fingerprint import same_request
from tests.conftest import REPO, SHAPES, Ended
from tests.test_resume import images
from tests.test_run import TINY, manifest

Camcli = Callable[..., Ended]


def told(options: dict[str, Any], *names: str) -> dict[str, dict[str, Any]]:
    """What the methods of these names are told."""
    found = options_of(methods_of(names), OptionsConfig.model_validate(options))
    return {name: model.model_dump() for name, model in found.items()}


def test_the_readme_has_every_option_with_its_default() -> None:
    [text] = re.findall(r"```yaml\n(options:\n.*?)```", (REPO / "configs" / "README.md").read_text(), re.DOTALL)
    documented = yaml.safe_load(text)["options"]
    assert documented == {"chunk": OptionsConfig().chunk, **told({}, *METHODS, "dff")}


def test_an_option_beside_the_sections_is_for_every_method_that_has_it() -> None:
    found = told({"max_channels": 7, "patch": 20}, "gradcam", "scorecam", "ablationcam", "occlusion")
    assert found == {
        "scorecam": {"max_channels": 7},
        "ablationcam": {"max_channels": 7},
        "occlusion": {"patch": 20, "stride": 16},
    }


def test_a_methods_own_section_comes_first() -> None:
    found = told({"max_channels": 7, "scorecam": {"max_channels": 3}}, "scorecam", "ablationcam")
    assert found == {"scorecam": {"max_channels": 3}, "ablationcam": {"max_channels": 7}}


@pytest.mark.parametrize(
    ("options", "ok"),
    [
        ({"occlusion": {"patch": 16, "stride": 16}}, True),
        ({"occlusion": {"patch": 16, "stride": 17}}, False),
        ({"patch": 16, "stride": 17}, False),
        ({"patch": 8, "occlusion": {"stride": 8}}, True),
        ({"smoothgrad": {"noise": 1.0}}, True),
        ({"smoothgrad": {"noise": 1.1}}, False),
        ({"smoothgrad": {"samples": True}}, False),
        ({"scorecam": {}}, True),
        ({"gradcam": {}}, True),
        ({"scorecam": None}, False),
    ],
)
def test_options_are_checked_also_for_methods_that_nobody_runs(options: dict[str, Any], ok: bool) -> None:
    if ok:
        told(options, "gradcam")
    else:
        with pytest.raises(ConfigError, match=r"^options\."):
            told(options, "gradcam")


def test_a_wrong_option_that_several_methods_share_is_named_once() -> None:
    found = faults(OptionsConfig.model_validate({"steps": 0, "iscam": {"steps": -1}}))
    assert sorted(found) == [
        ("options.iscam.steps", "input should be greater than or equal to 1 (got -1)"),
        ("options.steps", "input should be greater than or equal to 1 (got 0)"),
    ]


def test_check_names_the_place_of_each_wrong_option(camcli: Camcli, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "options:\n"
        "  occlusion: {patch: 16, stride: 17}\n"
        "  scorecam: {max_chanels: 3, max_channels: 0}\n"
        "  gradcam: {steps: 1}\n"
        "  smoothgrad: 3\n"
        "  oclusion: {patch: 1}\n"
        "  stps: 3\n"
    )
    ended = camcli("config", "check", path, "-s", "options.noise=2")
    assert ended.code == 2
    for line in (
        f"{path}:2:3: options.occlusion: stride is larger than patch, which leaves pixels unseen between squares",
        f"{path}:3:14: options.scorecam.max_chanels: unknown option of scorecam, did you mean 'max_channels'?",
        f"{path}:3:30: options.scorecam.max_channels: input should be greater than or equal to 1 (got 0)",
        f"{path}:4:13: options.gradcam.steps: unknown option of gradcam, which has none",
        f"{path}:5:3: options.smoothgrad: a mapping of options to values is wanted (got 3)",
        f"{path}:6:3: options.oclusion: unknown method, did you mean 'occlusion'?",
        f"{path}:7:3: options.stps: no method has such an option, did you mean 'steps'?",
        "--set options.noise: options.noise: input should be less than or equal to 1 (got 2)",
    ):
        assert line in ended.err


def test_a_run_names_the_place_of_a_wrong_option(camcli: Camcli, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("options:\n  scorecam: {max_channels: 0}\n")
    ended = camcli("run", SHAPES, "-c", path, "--out", tmp_path / "out")
    assert ended.code == 2
    assert f"{path}:2:14: options.scorecam.max_channels: input should be greater than or equal to 1" in ended.err


def test_a_run_refuses_a_wrong_option_before_weights_are_loaded(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camcli.pipeline.prepare.load_model", lambda *_: pytest.fail("weights were loaded"))
    ended = camcli(
        "run", images(tmp_path / "in", 1), "--out", tmp_path / "out", *TINY, "-s", "options.occlusion.patch=0"
    )
    assert ended.code == 2
    assert "options.occlusion.patch: input should be greater than or equal to 1" in ended.err


def test_show_prints_sections_and_reads_them_again(camcli: Camcli) -> None:
    shown = camcli("config", "show", "-s", "options.occlusion.patch=40", "-s", "options.steps=2")
    assert '  occlusion: {"patch": 40}  # --set options.occlusion' in shown.out
    assert yaml.safe_load(shown.out)["options"] == {"chunk": 16, "occlusion": {"patch": 40}, "steps": 2}


def test_only_options_of_the_methods_that_run_are_in_the_fingerprint(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 1), tmp_path / "out"

    def fingerprint(*more: str) -> str:
        words = [word for one in ("methods=occlusion", "input.size=32", *more) for word in ("-s", one)]
        ended = camcli("run", folder, "--out", out, *TINY, *words)
        assert ended.code == 0, ended.err
        return str(manifest(out)["fingerprint"])

    first = fingerprint("options.patch=16")
    assert manifest(out)["identity"]["options"] == {"occlusion": {"patch": 16, "stride": 16}}
    for same in (
        ["options.occlusion.patch=16"],
        ["options={occlusion: {patch: 16, stride: 16}, chunk: 3}"],
        ["options.patch=16", "options.smoothgrad.samples=3", "options.steps=4"],
    ):
        assert fingerprint(*same) == first
    ended = camcli("run", folder, "--out", out, *TINY, *("-s", "methods=occlusion", "-s", "input.size=32"))
    assert ended.code == 2
    assert "options.occlusion.patch: 16 -> 32" in ended.err


def test_sections_of_other_methods_are_no_other_request() -> None:
    def config(**options: Any) -> dict[str, Any]:
        return RunConfig.model_validate({"methods": "occlusion", "options": options}).model_dump(mode="json")

    assert same_request(config(), config(smoothgrad={"samples": 2}))
    assert not same_request(config(), config(occlusion={"patch": 20}))
    assert not same_request(config(), config(patch=20))


def test_a_method_from_outside_declares_options_as_the_readme_has_it() -> None:
    [code] = re.findall(r"<!-- method -->\n```python\n(.*?)```", (REPO / "camcli" / "README.md").read_text(), re.DOTALL)
    code += (
        "[plain] = camcli.explain(star, methods=['power'])\n"
        "heat, squared = plain.heatmaps[0], found.heatmaps[0]\n"
        "assert heat.method == squared.method == 'power' and heat.heat.max() == 1\n"
        "assert abs(heat.heat - squared.heat).max() > 0.01\n"
        "try: camcli.explain(star, methods=['power'], options={'power': {'exponent': 0}})\n"
        "except camcli.ConfigError as error: assert 'options.power.exponent: ' in str(error), error\n"
        "else: raise AssertionError('accepted')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=REPO)
