"""Any bytes in a file that camcli reads give an error that names it, or are passed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from camcli.config.file import load_config
from camcli.errors import CamcliError, ConfigError
from camcli.images.find import discover
from camcli.models.labels import read_labels

fuzzed = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

VOCABULARY = """
model source name weights kwargs num_classes labels targets top above classes contrast input size mean std crop overlay
alpha quality grid options chunk runtime device batch_size threads report maps methods layer timm demo timm/resnet18
top1 auto cpu 1 0 -1 1e999 .nan .inf 010 1:30 true no null ~ !!int !!bool !!timestamp !!binary !!float !!null !!set
!!python/name:os.system ${X} ${X:-1} ${ &a *a << ? | > ' " # --- ... %YAML \\x00 2001-01-01 = 0x1F 1_000 ~nobody
"""
WORDS = st.sampled_from([*VOCABULARY.split(), "\ufeff", "\ue000", "\u2028"])
MARKS = st.sampled_from([": ", "\n", "\n  ", "\n    ", "- ", "{", "}", "[", "]", ", ", " ", ":", "\t", '"', "'"])
YAML = st.lists(WORDS | MARKS, max_size=24).map("".join)


def refusal(call: Callable[[], object]) -> str | None:
    """What the error says, if there is one."""
    try:
        call()
    except CamcliError as error:
        return str(error)
    return None


@fuzzed
@given(data=st.binary(max_size=60) | YAML.map(str.encode))
@example(b"model: !!int")
@example(b"model: &a !!null x")
@example(b"? {a: 1}\n: 2")
@example(b"{model: {kwargs: !!set {a, b}, source: timm, name: x}}")
@example(b"runtime: {threads: " + b"9" * 5000 + b"}")
@example(b'model: {labels: "a\\0b", weights: "\\0", source: timm, name: x}')
@example(b"model: {source: timm, name: x, kwargs: {a: 2001-01-01, b: !!binary aGk=}}")
def test_any_config_is_read_or_refused_with_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(data)
    said = refusal(lambda: load_config(path))
    assert said is None or said.startswith(str(path))


@fuzzed
@given(field=WORDS | st.text(max_size=8), value=YAML | st.text(max_size=20))
def test_any_override_is_read_or_refused_with_its_name(field: str, value: str) -> None:
    said = refusal(lambda: load_config(None, [f"{field}={value}"]))
    assert said is None or said.startswith("--set")


@fuzzed
@given(data=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_labels_are_read_or_refused_with_their_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    said = refusal(lambda: read_labels(path))
    assert said is None or str(path) in said


def test_labels_are_lines_whatever_wrote_them(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes("\ufeffant\r\n\r\nb\u2028e\x0be \n\ncat".encode())
    assert read_labels(tmp_path / "l.txt") == ("ant", "b\u2028e\x0be", "cat")
    for name in ("gone", "a\0b", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"model\.labels: .*cannot be read"):
            read_labels(Path(name))


@fuzzed
@given(data=st.binary(max_size=60).filter(lambda data: not set(data) & set(b"./")))
def test_any_list_is_read_or_refused_with_its_name(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_bytes(data)
    said = refusal(lambda: discover(["@list"]))
    assert said is None or "@list" in said
