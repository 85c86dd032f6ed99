"""Nobody is let in: weights run no code, configs are bounded, nothing is written outside, terminals stay calm."""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camcli.config.file import load_config
from camcli.errors import ConfigError, ItemError, OutputError
from camcli.results.rundir import RunDir
from camcli.results.storage import remove
from tests.conftest import REPO, Ended
from tests.test_resume import images
from tests.test_run import TINY, lines

Camcli = Callable[..., Ended]

DEMO_WEIGHTS = REPO / "camcli" / "models" / "demo.safetensors"


class Trap:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_weights_that_run_code_are_refused_by_name(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "torch":
        torch.save({"weight": Trap()}, "trap.pth")
    else:
        Path("trap.pth").write_bytes(pickle.dumps(Trap()))
    model = "model={source: timm, name: test_resnet, weights: trap.pth}"
    ended = camcli("run", images(tmp_path / "in", 1), "--out", "out", "-s", model)
    assert ended.code == 3
    assert "trap.pth: refused, it holds more than tensors and could run code" in ended.err
    assert not Path("pwned").exists()


def test_weights_that_are_not_the_expected_ones_are_refused(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 1)
    wrong = "0" * 64
    ended = camcli("run", folder, "--out", tmp_path / "out", "-s", f"model.weights_sha256={wrong!r}")
    assert ended.code == 3
    assert wrong in ended.err
    actual = ended.err.split("has SHA-256 ")[1][:64]
    assert camcli("run", folder, "--out", tmp_path / "out", "-s", f"model.weights_sha256={actual.upper()}").code == 0
    assert camcli("run", folder, "--out", tmp_path / "out", "-s", "model.weights_sha256=abc").code == 2


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "model: " + "[" * 5000,
        "model: " + "{a: " * 3000 + "1" + "}" * 3000,
        "model: {source: timm, name: x, kwargs: " + "{a: " * 900 + "1" + "}" * 900 + "}",
        "x" * 300_000,
        "!!python/object/apply:os.system ['touch pwned']",
        "a: !!binary '???'",
        "a: 2001-99-99",
        "a: !!int x",
        "? [1, 2]\n: 3",
        "\N{BYTE ORDER MARK}modle: demo",
    ],
    ids=lambda text: text[:24],
)
def test_hostile_configs_are_config_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/x.jpg", "overlays/../../x.jpg", "reports/link/x.jpg", "overlays/..", ""]
)
def test_nothing_outside_the_run_folder_is_written_or_deleted(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with RunDir(tmp_path / "out") as folder:
        (tmp_path / "out" / "reports").mkdir()
        (tmp_path / "out" / "reports" / "link").symlink_to(outside)
        with pytest.raises(ItemError, match="leads out of the run folder"):
            folder.write(name, b"x")
    (outside / "x.jpg").write_text("mine")
    (tmp_path / "x.jpg").write_text("mine")
    remove(tmp_path / "out", [name])
    assert (outside / "x.jpg").exists()
    assert (tmp_path / "x.jpg").exists()


def test_links_planted_in_the_run_folder_are_not_followed(camcli: Camcli, tmp_path: Path) -> None:
    folder, out, victim = images(tmp_path / "in", 1), tmp_path / "out", tmp_path / "victim"
    victim.mkdir()
    out.mkdir()
    (out / "overlays").symlink_to(victim)
    assert camcli("run", folder, "--out", out, *TINY).code == 1
    assert [(r["stage"], r["kind"]) for r in lines(out)] == [("write", "OutsideRunFolder")]
    assert list(victim.iterdir()) == []
    for name in (".lock", "results.jsonl"):
        (out / name).unlink()
        (out / name).symlink_to(victim / "x")
        again = ("--fresh",) if name == ".lock" else ()
        assert camcli("run", folder, "--out", out, *TINY, *again).code == 3
        (out / name).unlink()
    assert list(victim.iterdir()) == []


def test_records_cannot_make_fresh_delete_what_is_not_camclis(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 1), tmp_path / "out"
    assert camcli("run", folder, "--out", out, *TINY).code == 0
    record = lines(out)[0]
    precious = [tmp_path / "precious.txt", out / "notes.txt"]
    for path in precious:
        path.write_text("mine")
    record["files"] = {"../precious.txt": 4, "notes.txt": 4, str(precious[0]): 4, "overlays/../notes.txt": 4}
    (out / "results.jsonl").write_text(json.dumps(record) + "\n")
    assert camcli("run", folder, "--out", out, *TINY, "--fresh").code == 0
    assert [path.exists() for path in precious] == [True, True]


def test_names_cannot_command_the_terminal(camcli: Camcli, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    images(folder, 1)
    for name in ("\x1b]0;title\x07.jpg", "\x9b31m.jpg", "\u202egpj.exe", "a\nb.jpg", "\udcff.jpg", "\r.jpg"):
        (folder / name).write_text("no image")
    told = [
        camcli("run", folder, "--out", tmp_path / "\x1b[31mout", *TINY, "--json"),
        camcli("run", folder, "--out", tmp_path / "\x1b[31mout", *TINY, "--retry-failed", "--log-format", "json"),
        camcli("run", folder, "--out", tmp_path / "x", "--dry-run"),
        camcli("status", tmp_path / "\x1b[31mout"),
        camcli("run", folder / "\x1b[31mmissing", "--out", tmp_path / "x"),
    ]
    for ended in told:
        for hidden in ("\x1b", "\x07", "\x9b", "\u202e", "\r"):
            assert hidden not in ended.out + ended.err
    assert "a\\nb.jpg" in told[2].err


def test_offline_is_absolute(camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise AssertionError(f"the network was asked for {words}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = images(tmp_path / "in", 1)
    for name in ("timm/resnet18.a1_in1k", "torchvision/resnet18"):
        assert camcli("run", folder, "--out", tmp_path / "out", "-m", name, "--offline").code == 3
        assert camcli("models", "fetch", name, "--offline").code == 3
    assert camcli("run", folder, "--out", tmp_path / "demo").code == 0


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="is a link"), RunDir(tmp_path):
        pass
    assert not (tmp_path / "victim").exists()


def test_embedded_weights_are_what_the_manifest_says(camcli: Camcli, tmp_path: Path) -> None:
    import hashlib

    assert camcli("run", images(tmp_path / "in", 1), "--out", tmp_path / "out").code == 0
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["model"]["weights_sha256"] == hashlib.sha256(DEMO_WEIGHTS.read_bytes()).hexdigest()
