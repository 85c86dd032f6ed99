"""Weights: what is no trained model's is refused by name, and nothing but the named file is ever taken."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig
from camcli.errors import ModelError, OfflineError
from camcli.models import hub
from camcli.models.checkpoint import read_checkpoint
from camcli.models.offline import no_network
from camcli.models.source import load_model
from tests.conftest import Ended, save_image
from tests.test_run import lines

Camcli = Callable[..., Ended]
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Weights that fit test_resnet with four classes."""
    torch.manual_seed(1)
    found: State = timm.create_model("test_resnet", num_classes=4).state_dict()
    return found


def load(file: Path, **fields: object) -> object:
    """test_resnet with four classes and the weights of `file`."""
    config = {"source": "timm", "name": "test_resnet", "num_classes": 4, "weights": str(file), **fields}
    return load_model(ModelConfig.model_validate(config), InputConfig())


def message_of(file: Path, **fields: object) -> str:
    """What is said of a bad file."""
    with pytest.raises(ModelError) as caught:
        load(file, **fields)
    assert caught.value.exit_code == 3
    assert str(file) in str(caught.value)
    return str(caught.value)


def changed(state: State, **other: Tensor) -> State:
    """`state` with other tensors, __ for a dot."""
    return {**state, **{name.replace("__", "."): tensor.contiguous() for name, tensor in other.items()}}


def spoilt(state: State, value: float) -> Tensor:
    """The head's weight with one other number."""
    weight = state["fc.weight"].clone()
    weight[2, 3] = value
    return weight


USELESS: Mapping[str, tuple[Callable[[State], State], str]] = {
    "empty": (lambda state: {}, "holds no tensor of weights"),
    "steps only": (lambda state: {"bn1.num_batches_tracked": torch.tensor(3)}, "holds no tensor of weights"),
    "zeros": (lambda state: {name: torch.zeros_like(t) for name, t in state.items()}, "holds only zeros"),
    "NaN": (lambda state: changed(state, fc__weight=spoilt(state, torch.nan)), "fc.weight holds NaN or infinite"),
    "infinity": (lambda state: changed(state, fc__weight=spoilt(state, -torch.inf)), "fc.weight holds NaN or infinite"),
    "double": (lambda state: changed(state, fc__weight=spoilt(state, 0).double() + 1e300), "fc.weight holds NaN or"),
    "integers": (lambda state: changed(state, fc__weight=torch.ones(4, 384).int()), "fc.weight holds int32"),
    "integer bias": (lambda state: changed(state, fc__bias=torch.ones(4).long()), "fc.bias holds int64"),
    "complex": (lambda state: changed(state, fc__weight=state["fc.weight"] * 1j), "fc.weight holds complex numbers"),
    "another model": (lambda state: {"x.weight": torch.ones(3)}, "does not fit timm's test_resnet"),
    "one missing": (lambda state: {n: t for n, t in state.items() if n != "fc.bias"}, "does not fit timm's"),
    "another shape": (lambda state: changed(state, fc__bias=torch.ones(5)), "check model.name, model.num_classes and"),
}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("case", USELESS)
def test_useless_weights_are_refused_by_name(tmp_path: Path, state: State, case: str, suffix: str) -> None:
    spoil, sentence = USELESS[case]
    file = tmp_path / f"w.{suffix}"
    save_file(spoil(state), file) if suffix == "safetensors" else torch.save(spoil(state), file)
    assert sentence in message_of(file)


@pytest.mark.parametrize("tensor", [torch.ones(4, 4).to_sparse(), torch.ones(4, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_numbers_are_refused(tmp_path: Path, state: State, tensor: Tensor) -> None:
    torch.save({**state, "fc.bias": tensor}, tmp_path / "w.pth")
    assert "fc.bias is not stored as plain numbers" in message_of(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_weights_of_any_precision_are_read(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    save_file(
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "w.safetensors"
    )
    assert read_checkpoint(tmp_path / "w.safetensors").tensors["fc.weight"].dtype == dtype
    load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["dla46_c", "test_vit"])
def test_weights_of_another_architecture_are_refused_even_where_timm_is_lenient(
    tmp_path: Path, state: State, name: str
) -> None:
    save_file(state, tmp_path / "w.safetensors")
    assert f"does not fit timm's {name}" in message_of(tmp_path / "w.safetensors", name=name)


def test_weights_that_lack_a_part_are_refused_even_where_timm_is_lenient(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = timm.create_model("dla46_c", num_classes=4).state_dict()
    save_file(whole, tmp_path / "whole.safetensors")
    load(tmp_path / "whole.safetensors", name="dla46_c")
    save_file({n: t for n, t in whole.items() if n != "base_layer.0.weight"}, tmp_path / "w.safetensors")
    assert "it holds nothing for base_layer.0.weight" in message_of(tmp_path / "w.safetensors", name="dla46_c")


@pytest.mark.parametrize("source", ["torchvision", "demo"])
def test_every_source_names_weights_that_do_not_fit(tmp_path: Path, state: State, source: str) -> None:
    save_file(state, tmp_path / "w.safetensors")
    name = "resnet18" if source == "torchvision" else "demo"
    assert "does not fit" in message_of(tmp_path / "w.safetensors", source=source, name=name, num_classes=None)


IMPOSTORS = {
    "page.pth": (b"<!DOCTYPE html>\n<html>", "a web page (HTML)"),
    "page.safetensors": (b"\n  <HTML><body>", "a web page (HTML)"),
    "page.npz": (b"<?xml version='1.0'?>", "a web page (HTML)"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
    "nothing.pth": (b"", "it is empty"),
    "noise.pth": (bytes(range(1, 200)), "not a readable weights file"),
    "noise.npz": (bytes(range(1, 200)), "does not fit timm's test_resnet"),
    "list.pth": (pickle.dumps([1, 2]), "could run code"),
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_what_is_no_weights_file_is_said_to_be_what_it_is(camcli: Camcli, tmp_path: Path, name: str) -> None:
    data, sentence = IMPOSTORS[name]
    (tmp_path / name).write_bytes(data)
    image = save_image(tmp_path / "a.jpg", 64, 64)
    model = f"model={{source: timm, name: test_resnet, weights: {tmp_path / name}}}"
    ended = camcli("run", image, "--out", tmp_path / "out", "-s", model)
    assert ended.code == 3
    assert sentence in ended.err
    assert not any(word in ended.err for word in ("`weights_only`", "\x1b", "\\x1b", "Traceback"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["zip", "legacy", "inside", "script"])
def test_the_two_lines_turn_a_whole_model_into_a_state_dict(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    model = torchvision.models.squeezenet1_1(num_classes=4).eval()
    file = tmp_path / "whole.pth"
    if kind == "script":
        torch.jit.save(torch.jit.script(model.classifier), file)
    else:
        torch.save(
            {"model": model} if kind == "inside" else model, file, _use_new_zipfile_serialization=kind != "legacy"
        )
    said = message_of(file, source="torchvision", name="squeezenet1_1")
    assert "\x1b" not in said
    sentence, *code = said.splitlines()
    assert kind == "script" or "could run code (torchvision.models.squeezenet.SqueezeNet)" in sentence
    if kind in ("zip", "legacy"):
        exec("\n".join(line.strip() for line in code), {"torch": torch})
        again: Any = load(tmp_path / "whole-state.pth", source="torchvision", name="squeezenet1_1")
        x = torch.rand(1, 3, 64, 64)
        assert torch.equal(again.module(x), model(x))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.one_of(st.binary(max_size=80), st.text(max_size=40).map(str.encode)), size=st.integers(0, 2**64 - 1))
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_any_bytes_under_the_name_of_weights_are_an_error_of_ours(
    tmp_path: Path, suffix: str, header: bytes, size: int
) -> None:
    for data in (header, len(header).to_bytes(8, "little") + header, size.to_bytes(8, "little") + header):
        (tmp_path / f"w.{suffix}").write_bytes(data)
        with pytest.raises(ModelError):
            read_checkpoint(tmp_path / f"w.{suffix}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=JSON, rest=st.binary(max_size=16))
def test_any_header_of_safetensors_is_an_error_of_ours(tmp_path: Path, header: object, rest: bytes) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + rest)
    with pytest.raises(ModelError):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.fixture
def no_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """Whoever asks for the network is listed and fails the command; caches are empty."""
    asked: list[object] = []

    def refuse(*words: object, **more: object) -> None:
        asked.append(words)
        raise AssertionError(f"the network was asked for {words}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return asked


@pytest.mark.parametrize("offline", [("--offline",), ()], ids=["offline", "online"])
@pytest.mark.parametrize("name", ["timm/resnet18.a1_in1k", "torchvision/resnet18", "demo"])
def test_a_file_of_weights_is_never_replaced_by_the_published_ones(
    camcli: Camcli, tmp_path: Path, no_way_out: list[object], name: str, offline: tuple[str, ...]
) -> None:
    save_file({}, tmp_path / "w.safetensors")
    words = ("-m", name, "-s", f"model.weights={tmp_path / 'w.safetensors'}", *offline)
    ended = camcli("run", save_image(tmp_path / "a.jpg", 64, 64), "--out", tmp_path / "out", *words)
    assert ended.code == 3
    assert "w.safetensors: holds no tensor of weights" in ended.err
    assert no_way_out == []


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine: its address, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()
        thread.join()


def test_offline_closes_the_network_below_all_libraries(server: tuple[str, list[str]]) -> None:
    address, asked = server
    port = int(address.rpartition(":")[2])

    def datagram() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", ("127.0.0.1", port))

    ways: list[Callable[[], object]] = [
        lambda: urllib.request.urlopen(address),
        lambda: socket.create_connection(("127.0.0.1", port)),
        lambda: socket.getaddrinfo("localhost", port),
        lambda: socket.gethostbyname("localhost"),
        datagram,
    ]
    before = os.environ.get("HF_HUB_OFFLINE")
    with no_network(True):
        for way in ways:
            with pytest.raises(OfflineError, match=r"--offline forbids to reach (127\.0\.0\.1|localhost)"):
                way()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        one, other = socket.socketpair()
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        one.close()
        other.close()
    assert asked == []
    assert os.environ.get("HF_HUB_OFFLINE") == before
    with no_network(False), urllib.request.urlopen(f"{address}/after"):
        assert asked == ["/after"]


@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/resnet18"])
def test_a_library_that_reaches_out_in_spite_of_offline_is_stopped(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[str]], name: str
) -> None:
    address, asked = server

    def reach_out(*words: object, **more: object) -> nn.Module:
        with urllib.request.urlopen(address):
            return nn.Identity()

    monkeypatch.setattr(timm, "create_model", reach_out)
    monkeypatch.setattr(torchvision.models, "get_model", reach_out)
    image = save_image(tmp_path / "a.jpg", 64, 64)
    for words in (("run", image, "--out", tmp_path / "out"), ("layers",), ("dff", image, "--out", tmp_path / "d")):
        ended = camcli(*words, "-m", name, "-s", "model.weights=none", "--offline")
        assert ended.code == 3, ended.err
        assert "--offline forbids to reach 127.0.0.1" in ended.err
    assert asked == []


def test_a_file_with_weights_works_offline(
    camcli: Camcli, tmp_path: Path, state: State, no_way_out: list[object]
) -> None:
    save_file(state, tmp_path / "w.safetensors")
    model = f"model={{source: timm, name: test_resnet, num_classes: 4, weights: {tmp_path / 'w.safetensors'}}}"
    words = ("run", save_image(tmp_path / "a.jpg", 64, 64), "--out", tmp_path / "out", "-s", model, "--offline")
    assert camcli(*words).code == 0
    assert [record["status"] for record in lines(tmp_path / "out")] == ["done"]
    assert no_way_out == []


def test_a_tensor_of_zeros_is_no_fault(tmp_path: Path, state: State) -> None:
    trained = {name: torch.zeros_like(t) if name == "fc.bias" else t for name, t in state.items()}
    save_file(trained, tmp_path / "w.safetensors")
    load(tmp_path / "w.safetensors")


def test_the_head_of_a_file_keeps_the_order_of_its_classes(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "w.safetensors")
    model: Any = load(tmp_path / "w.safetensors")
    assert all(torch.equal(model.module.state_dict()[name], state[name]) for name in state)


def test_offline_holds_for_the_whole_command(
    camcli: Camcli, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[str]]
) -> None:
    monkeypatch.setattr("camcli.pipeline.prepare.candidates", lambda config, offline: urllib.request.urlopen(server[0]))
    assert camcli("layers", "--offline").code == 3
    assert server[1] == []


def test_offline_is_known_by_whoever_would_download(capfd: pytest.CaptureFixture[str]) -> None:
    with no_network(True), pytest.raises(ModelError, match="--offline forbids a download"):
        hub.folder_of("nobody/nothing", with_weights=False)
    assert capfd.readouterr().err == ""
