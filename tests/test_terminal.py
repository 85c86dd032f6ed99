"""What a person types and reads: short options, labels, model names, the summary, help and completion."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from typer.main import get_command

from camcli.cli import progress, summary
from camcli.cli.app import app
from camcli.cli.options import ConfigOptions
from camcli.config.file import load_config
from camcli.config.model import ModelConfig
from camcli.config.schema import RunConfig, TargetsConfig
from camcli.errors import ConfigError
from camcli.images.find import discover
from camcli.pipeline.estimate import Estimate
from camcli.pipeline.job import Job
from camcli.pipeline.run import perform
from camcli.records import RunReport
from camcli.results.doubts import Doubt
from tests.conftest import Ended, save_image
from tests.test_run import TINY, lines

Camcli = Callable[..., Ended]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("star",), [{"index": 3, "label": "star", "wordnet": None}]),
        (("n02123045", "-m", "timm/resnet50"), [{"index": 281, "label": "tabby, tabby cat", "wordnet": "n02123045"}]),
        (("tabby", "-m", "torchvision/vgg11"), [{"index": 281, "label": "tabby", "wordnet": "n02123045"}]),
        (
            ("class_1", "-m", "timm/test_resnet", "-s", "model.num_classes=3"),
            [{"index": 1, "label": "class_1", "wordnet": None}],
        ),
        (
            ("class_2", "-m", "torchvision/squeezenet1_1", "-s", "model.num_classes=3"),
            [{"index": 2, "label": "class_2", "wordnet": None}],
        ),
    ],
)
def test_labels_are_listed_without_weights(camcli: Camcli, words: tuple[str, ...], rows: list[object]) -> None:
    ended = camcli("labels", *words, "--json")
    assert (ended.code, json.loads(ended.out)) == (0, rows)


def test_a_word_that_no_label_has_is_said(camcli: Camcli) -> None:
    assert camcli("labels").out.splitlines()[3] == " 3  star"
    ended = camcli("labels", "dog")
    assert (ended.code, ended.out) == (2, "")
    assert "none of the 12 labels has 'dog' in it" in ended.err


def test_a_short_option_is_the_field_that_it_stands_for() -> None:
    short = ConfigOptions(
        model="timm/resnet18",
        method=["gradcam,layercam", "eigencam"],
        layer=["layer4[-1]", "layer3"],
        target=["tench, Tinca tinca,7", "crane"],
        weights="w.pth",
        labels="l.txt",
        size="model",
        alpha="0.3",
        overrides=["overlay.alpha=0.9"],
    )
    written = {
        "model": {"source": "timm", "name": "resnet18", "weights": "w.pth", "labels": "l.txt"},
        "methods": ["gradcam", "layercam", "eigencam"],
        "layer": ["layer4[-1]", "layer3"],
        "targets": ["tench, Tinca tinca", 7, "crane"],
        "overlay": {"size": "model", "alpha": 0.9},
    }
    assert short.load().config == RunConfig.model_validate(written)
    assert short.load().place("methods") == "--method"
    assert ConfigOptions(target=["top3"]).load().config.targets == TargetsConfig(top=3)
    assert ConfigOptions(target=["top1", "7"]).load().config.targets == TargetsConfig(classes=("top1", 7))


def test_a_wrong_value_is_called_by_the_option_that_gave_it(camcli: Camcli) -> None:
    ended = camcli("config", "show", "--alpha", "2")
    assert (ended.code, ended.err) == (
        2,
        "camcli: --alpha: overlay.alpha: input should be less than or equal to 1 (got 2)\n",
    )


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("batch_size=8", "'runtime.batch_size'"),
        ("size=8", "'input.size' or 'overlay.size'"),
        ("model.targets=cat", "'targets'"),
        ("overlay.else=top1", "'targets.else'"),
        ("overlay.alpa=1", "'alpha'"),
    ],
)
def test_a_field_without_its_section_is_found(override: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key, did you mean {re.escape(meant)}\?"):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "'resnet18' is a model of 2 libraries: write timm/resnet18 or torchvision/resnet18"),
        ("resnet99", "no library has a model 'resnet99', did you mean 'resnet"),
        ("resnet18.IMAGENET1K_V7", "no library has a model 'resnet18.IMAGENET1K_V7'"),
        ("timm/squeezenet1_0", "unknown timm model 'squeezenet1_0', did you mean 'torchvision/squeezenet1_0'?"),
        ("torchvision/resnet18d", "unknown torchvision model 'resnet18d', did you mean 'timm/resnet18d'?"),
    ],
)
def test_a_model_of_no_library_or_another_is_told_where_it_is(camcli: Camcli, name: str, words: str) -> None:
    ended = camcli("labels", "-m", name)
    assert (ended.code, words in ended.err) == (2, True), ended.err


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("squeezenet1_0", "torchvision/squeezenet1_0"),
        ("resnet18d", "timm/resnet18d"),
        ("resnet18.IMAGENET1K_V1", "torchvision/resnet18.IMAGENET1K_V1"),
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("demo", "demo"),
    ],
)
def test_a_model_of_one_library_alone_needs_no_library(name: str, full: str) -> None:
    assert ConfigOptions(model=name).load().config.model == ModelConfig.model_validate(full)


def test_a_config_names_the_library(camcli: Camcli, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: resnet18")
    ended = camcli("config", "check", tmp_path / "c.yaml")
    words = (
        "c.yaml:1:1: model: 'resnet18' names no library: write timm/resnet18 or torchvision/resnet18; `camcli models "
    )
    assert (ended.code, words in ended.err) == (2, True), ended.err
    assert "write timm/resnet18 or torchvision/resnet18" in camcli("models", "fetch", "resnet18").err


def test_models_are_found_by_a_part_of_their_name_with_their_weights(camcli: Camcli) -> None:
    found = {f"{e['source']}/{e['name']}": e["tags"] for e in json.loads(camcli("models", "squeezenet", "--json").out)}
    assert found == {f"torchvision/squeezenet1_{i}": ["IMAGENET1K_V1"] for i in (0, 1)}
    [row] = [line for line in camcli("models", "ResNeXt26ts".lower()).out.splitlines() if "seresnext26ts" in line]
    assert row.split()[-1] == "ch_in1k"
    ended = camcli("models", "squeezenett")
    assert (ended.code, "no model fits 'squeezenett', did you mean 'squeezenet" in ended.err) == (2, True)


def report(**changes: Any) -> RunReport:
    """How a run of 12 images may end."""
    return replace(RunReport(done=11, failed=1, skipped=0, seconds=2.0, out="out", exit_code=1), **changes)


def told(capfd: pytest.CaptureFixture[str], *args: Any) -> str:
    """What the summary says."""
    capfd.readouterr()
    summary.print_summary(*args)
    return capfd.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_summary_is_aligned_in_any_width(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    kinds = {"UnidentifiedImageError": 700, "FileNotFoundError": 40, "DecompressionBombError": 1, "NotFinite": 12}
    unsure = [Doubt(name, "tabby, tabby cat", p) for name, p in (("photograph-" * 8 + ".jpg", 0.07), ("b.jpg", 0.41))]
    counts = report(done=123456, failed=753, kept=7, skipped=3, redone=5, failures=kinds, explained=1000)
    table = told(capfd, counts, False, None, unsure).splitlines()
    rows = table[: next(i for i, line in enumerate(table) if line.startswith("worth"))]
    assert all(len(line) <= columns for line in table)
    named = [re.match(r"\S.*?  +([\d.]+)(?=  |$)", line.rstrip()) for line in rows if line[0] != " "]
    [edge] = {match.end(1) if match else -1 for match in named}
    words = [line[edge:].rstrip() for line in rows]
    assert all(re.match(r"  \S|$", text) for text in words)
    assert all(kind in " ".join(words) for kind in kinds)
    assert "7%" in "".join(table)


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in told(capfd, report(), False, None)
    assert "\x1b" in on_a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_a_terminal(monkeypatch)
    assert ("\x1b" in plain, "explained" in plain) == (False, True)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the summary writes where standard error is a terminal."""
    ours, theirs = os.openpty()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as stream:
        patch.setattr(sys, "stderr", stream)
        summary.print_summary(report(), False, None)
        summary.print_next("camcli status out")
        stream.flush()
        text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return text


def test_one_is_not_many(capfd: pytest.CaptureFixture[str]) -> None:
    settled = told(capfd, report(done=1, failed=0, kept=1, vanished=1), True, None)
    assert "nothing to do: the only image is recorded" in settled
    assert "1 image of an earlier run is gone" in settled
    assert "3 images of an earlier run are gone" in told(capfd, report(vanished=3), True, None)


def test_the_rate_is_of_what_this_run_explained(capfd: pytest.CaptureFixture[str]) -> None:
    assert "1.5 images/s" in told(capfd, report(kept=8, explained=3), False, None)
    assert "images/s" not in told(capfd, report(kept=11, explained=0), False, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images, and two files that are none."""
    for i in range(7):
        save_image(tmp_path / "in" / f"a{i}.jpg", 90, 80, i)
    for i in range(2):
        (tmp_path / "in" / f"b{i}.jpg").write_text("no image")
    return tmp_path / "in"


def test_the_five_images_that_the_model_is_least_sure_of_are_named(
    camcli: Camcli, folder: Path, tmp_path: Path
) -> None:
    ended = camcli("run", folder, "--out", tmp_path / "out", *TINY)
    done = [record for record in lines(tmp_path / "out") if record["status"] == "done"]
    worst = sorted(done, key=lambda record: record["predictions"][0]["probability"])[:5]
    assert max(record["predictions"][0]["probability"] for record in worst) < 0.5
    said = ended.err.splitlines()
    start = said.index("worth a look, for the model was unsure:") + 1
    assert [line.split()[0] for line in said[start : start + 5]] == [record["id"] for record in worst]
    assert said[-1] == f"next: camcli run {folder} --out {tmp_path}/out {shlex.join(TINY)} --retry-failed"


def test_failures_may_be_allowed_or_known(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    words = ("run", folder, "--out", tmp_path / "out", *TINY)
    known = tmp_path / "known.txt"
    known.write_text("# seen in March\n\nb0.jpg\na3.jpg\n")
    assert camcli(*words, "--allow-errors", "2").code == 0
    # From here on nothing is left to do, and only the exit code is at stake.
    for allowed, code in (("1", 1), ("2", 0), ("22%", 1), ("23%", 0), ("0", 1)):
        ended = camcli(*words, "--allow-errors", allowed, "--json")
        assert (ended.code, json.loads(ended.out)["exit_code"]) == (code, code), allowed
    assert camcli(*words, "--known-failures", known).code == 1
    ended = camcli(*words, "--known-failures", known, "--allow-errors", "1")
    assert ended.code == 0
    assert "no longer failing, though --known-failures lists them: a3.jpg\n" in ended.err
    known.write_text("b0.jpg\nb1.jpg\n")
    # A known failure counts as little for --max-errors.
    ended = camcli(*words, "--fresh", "--known-failures", known, "--fail-fast")
    assert (ended.code, "not reached" in ended.err) == (0, False)
    assert "2 UnidentifiedImageError; 2 known" in ended.err
    assert camcli(*words, "--known-failures", tmp_path / "none.txt").code == 2
    assert "--allow-errors few: write it as a number" in camcli(*words, "--allow-errors", "few").err


def test_a_run_that_stopped_early_is_no_success(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    for i in range(30):
        (folder / f"0{i:02}.jpg").write_text("no image")
    ended = camcli("run", folder, "--out", tmp_path / "out", *TINY, "--max-errors", "3", "--allow-errors", "100%")
    assert (ended.code, "not reached" in ended.err) == (1, True)
    assert "--retry-failed" not in ended.err.splitlines()[-1]


def test_who_chose_no_model_is_told_what_the_embedded_one_knows(camcli: Camcli, tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "a.jpg", 90, 80)
    words = ("run", tmp_path / "in", "--out", tmp_path / "out")
    told = ["knows only twelve drawn shapes; for photographs name one" in camcli(*words).err for _ in range(2)]
    assert told == [True, False]
    assert "drawn shapes" not in camcli("run", tmp_path / "in", "--out", tmp_path / "named", "-m", "demo").err
    (tmp_path / "l.txt").write_text("\n".join("abcdefghijkl"))
    said = camcli("run", tmp_path / "in", "--out", tmp_path / "labels", "--labels", tmp_path / "l.txt")
    assert (said.code, "drawn shapes" in said.err) == (0, False)


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, with the words that lead to it."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


@pytest.mark.parametrize(
    ("words", "command"), [*commands(get_command(app))], ids=lambda x: " ".join(x) if isinstance(x, tuple) else ""
)
def test_help_ends_with_an_example_that_can_be_typed(
    camcli: Camcli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], command: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = camcli(*words, "--help").out.rstrip().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in said)
    example = shlex.split(said[-1])
    assert example[0] == "camcli"
    assert example[1 : 1 + len(words)] == list(words) or words == ("models", "list")
    inner, rest = get_command(app), example[1:]
    while hasattr(inner, "commands"):
        name = rest.pop(0) if rest[0] in inner.commands else "list"
        inner = inner.commands[name]
    inner.make_context(name, rest)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("camcli merg", {"merge"}),
        ("camcli run --method gradcam,score", {"gradcam,scorecam"}),
        ("camcli run --set overlay.al", {"overlay.alpha="}),
        ("camcli run -m torchvision/squeezenet1_", {"torchvision/squeezenet1_0", "torchvision/squeezenet1_1"}),
        ("camcli layers -m torchvision/squeezenet1_0.", {"torchvision/squeezenet1_0.IMAGENET1K_V1"}),
    ],
)
def test_the_shell_completes_names(
    camcli: Camcli, monkeypatch: pytest.MonkeyPatch, typed: str, offered: set[str]
) -> None:
    monkeypatch.setenv("_CAMCLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert set(camcli().out.split()) == offered


def test_a_dry_run_tells_how_long_a_run_would_take(camcli: Camcli, folder: Path, tmp_path: Path) -> None:
    words = ("run", folder, "--out", tmp_path / "out", "--dry-run")
    (folder / "a0.jpg").write_text("no image")
    planned = json.loads(camcli(*words, *TINY, "--json").out)
    assert len(planned["images"]) == 9
    assert planned["seconds"] > planned["seconds_per_image"] * 9 / 8 > 0
    assert re.search(
        r"^9 images would .*, in about \d+ s \(.* s for a1.jpg, \d+ images? at a time\)$",
        camcli(*words, *TINY).err,
        re.M,
    )
    assert "cannot be told: its weights are not at hand" in camcli(*words, "-m", "torchvision/vgg11", "--offline").err
    assert camcli(*words, *TINY, "--target", "dog").code == 2
    assert not (tmp_path / "out").exists()


def test_how_long_a_run_takes_is_shared_by_engines() -> None:
    measured = Estimate("a.jpg", start=5.0, each=2.0, at_once=4)
    assert [measured.seconds(images) for images in (0, 1, 3, 4, 400)] == [5.0, 7.0, 7.0, 7.0, 205.0]
    assert [summary.lasting(s) for s in (0.2, 89, 91, 3600, 11100)] == ["1 s", "89 s", "2 min", "60 min", "3 h 5 min"]


def test_work_within_a_batch_is_shown(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    methods = ["methods=occlusion", "options={chunk: 1, occlusion: {patch: 32, stride: 32}}"]
    config = load_config(None, [*TINY[1::2], *methods]).config
    shown = {}
    for as_json in (True, False):
        stream = io.StringIO()
        with progress.Progress(stream, as_json) as told:
            perform(Job(config, discover([str(folder / "a1.jpg")]), tmp_path / f"{as_json}"), told)
        shown[as_json] = stream.getvalue().splitlines()
    # One pass of the image itself, and one for each of the four patches of 64x64 pixels.
    assert [json.loads(line)["passes"] for line in shown[True]] == [1, 2, 3, 4, 5, 0]
    assert [line.endswith("images/s") for line in shown[False]] == [False] * 5 + [True]
    assert shown[False][4].endswith(", 5 forward passes since the last")


def test_the_bar_shows_passes_of_a_long_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_SECONDS", 0.0)
    told = progress.Progress(None)
    told._bar = bar = Mock()
    seen: list[object] = []
    for step in "ppprppppp":
        told.passed() if step == "p" else told.advance(None)
        seen.append(bar.set_postfix.call_args[0][0].get("passes"))
    assert seen == ["1", "2", "3", None, "1/3", "2/3", "3/3", "4", "5"]
