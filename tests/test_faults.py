"""Disks that fill up or vanish, models that run out of memory or answer NaN: recorded or stopped, never lost."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from camcli.config.file import load_config
from camcli.engine.batch_size import even_batches
from camcli.engine.engine import Engine
from camcli.errors import ConfigError
from camcli.images.decode import load_image
from camcli.images.find import Item
from camcli.models.source import load_model
from camcli.pipeline.files import Files
from camcli.results import storage
from tests.conftest import Ended, save_image
from tests.test_resume import SMALL, contents, images
from tests.test_run import TINY, lines, manifest

Camcli = Callable[..., Ended]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is refused here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_stops_the_run_and_the_next_one_completes_it(
    camcli: Camcli, small_disk: Path, tmp_path: Path
) -> None:
    folder, out = images(tmp_path / "in", 40), small_disk / "out"
    words = ("run", folder, *SMALL, "--out")
    ended = camcli(*words, out)
    assert ended.code == 3
    assert "No space left on device" in ended.err
    assert "the same command goes on from there" in ended.err
    assert "Traceback" not in ended.err
    found = lines(out)
    assert 0 < len(found) < 40
    for record in found:
        assert all((out / name).stat().st_size == size for name, size in record["files"].items())
    assert not [p for p in out.rglob(".camcli*") if p.stat().st_size]
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert camcli(*words, out).code == 0
    assert manifest(out)["resumed"]["kept"] == len(found)
    assert camcli(*words, tmp_path / "once").code == 0
    assert contents(out) == contents(tmp_path / "once")


def test_a_read_only_disk_is_fatal(camcli: Camcli, small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    ended = camcli("run", images(tmp_path / "in", 1), "--out", small_disk / "out", *TINY)
    assert ended.code == 3
    assert "Read-only file system" in ended.err


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_disk_that_fails_midway_stops_the_run(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder, out = images(tmp_path / "in", 12), tmp_path / "out"
    real = storage.write_atomic

    def failing(path: Path, *words: Any, **more: Any) -> None:
        if path.name.startswith("07"):
            raise OSError(number, os.strerror(number))
        real(path, *words, **more)

    monkeypatch.setattr(storage, "write_atomic", failing)
    ended = camcli("run", folder, "--out", out, *SMALL)
    assert ended.code == 3
    assert os.strerror(number) in ended.err
    assert manifest(out)["status"] == "running"
    monkeypatch.undo()
    assert camcli("run", folder, "--out", out, *SMALL).code == 0
    assert len(lines(out)) == 12


def test_records_stay_whole_when_their_disk_fails(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = images(tmp_path / "in", 6), tmp_path / "out"

    def torn(number: int, data: bytes) -> None:
        os.write(number, data[:100])
        if b'"03.jpg"' in data:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.write(number, data[100:])

    monkeypatch.setattr(storage, "write_all", torn)
    assert camcli("run", folder, "--out", out, *SMALL).code == 3
    assert len(lines(out)) == 3


def refuse_to_sync_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """`os.fsync` fails for a folder with the error `number`; the descriptors that it was asked for, as it goes."""
    asked: list[int] = []
    fsync = os.fsync

    def refusing(descriptor: int) -> None:
        asked.append(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    return asked


def test_a_file_system_that_cannot_sync_a_folder_is_written_to(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse_to_sync_folders(monkeypatch, errno.EINVAL)
    storage.write_atomic(tmp_path / "file", b"whole", sync=True)
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert len(asked) == 2  # the file and its folder
    assert camcli("run", images(tmp_path / "in", 2), *SMALL, "--out", tmp_path / "out").code == 0
    assert len(lines(tmp_path / "out")) == 2


def test_a_folder_that_fails_to_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_sync_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        storage.write_atomic(tmp_path / "file", b"whole", sync=True)


def test_one_file_that_cannot_be_written_is_one_failure(camcli: Camcli, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 3), tmp_path / "out"
    (out / "reports" / "01.png.json").mkdir(parents=True)
    assert camcli("run", folder, "--out", out, *TINY).code == 1
    assert {r["id"]: r.get("kind") for r in lines(out)} == {
        "00.jpg": None,
        "01.png": "IsADirectoryError",
        "02.png": None,
    }


def test_output_inside_input_is_never_input(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 3)
    for out in (folder / "out", folder):
        words = ("run", folder, "--out", out, *TINY)
        assert camcli(*words).code == 0
        assert "nothing to do: all 3 images" in camcli(*words).err
    for named, out in ((folder, tmp_path / "other"), (f"{folder}/*.*g", folder)):
        assert camcli("run", named, "--out", out, "--dry-run").err.splitlines()[-1].startswith("3 images")


def failing_engine(monkeypatch: pytest.MonkeyPatch, fail: Callable[[torch.Tensor], None]) -> None:
    """Let `fail` see each batch, uint8 [B,H,W,3], before the engine does."""
    real = Engine.explain

    def explain(self: Engine, pixels: torch.Tensor, *words: Any) -> Any:
        fail(pixels)
        return real(self, pixels, *words)

    monkeypatch.setattr(Engine, "explain", explain)


def cuda_out_of_memory(text: str) -> Exception:
    """As torch raises it."""
    return torch.OutOfMemoryError(text)


@pytest.mark.parametrize(
    "error",
    [
        cuda_out_of_memory("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_halves_the_batch(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sizes = []

    def fail(pixels: torch.Tensor) -> None:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise error

    failing_engine(monkeypatch, fail)
    folder = images(tmp_path / "in", 16)
    words = (*TINY, "-s", "runtime.batch_size=8", "-s", "runtime.threads=1")
    assert camcli("run", folder, "--out", tmp_path / "out", *words).code == 0
    assert sizes == [8, 4, *[2] * 8]
    assert len(lines(tmp_path / "out")) == 16


def test_batches_are_the_same_whenever_memory_runs_out(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    half_a_batch, halved = threading.Event(), threading.Event()

    def fail(pixels: torch.Tensor) -> None:
        sizes.append(len(pixels))
        assert half_a_batch.wait(60)
        if len(pixels) > 2:
            raise MemoryError
        halved.set()

    real = Files.read

    def late(self: Files, item: Item) -> Any:
        if item.id >= "12":
            half_a_batch.set()
            assert halved.wait(60)
        return real(self, item)

    failing_engine(monkeypatch, fail)
    monkeypatch.setattr(Files, "read", late)
    words = (*TINY, "-s", "runtime.batch_size=8", "-s", "runtime.threads=1")
    assert camcli("run", images(tmp_path / "in", 16), "--out", tmp_path / "out", *words).code == 0
    assert sizes == [8, 4, *[2] * 8]


def test_out_of_memory_on_two_cores_loses_and_repeats_nothing(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pixels: torch.Tensor) -> None:
        if len(pixels) > 2:
            raise MemoryError

    failing_engine(monkeypatch, fail)
    folder = images(tmp_path / "in", 30)
    words = (*TINY, "-s", "runtime.batch_size=8", "-s", "runtime.threads=2")
    assert camcli("run", folder, "--out", tmp_path / "out", *words).code == 0
    assert [record["id"] for record in lines(tmp_path / "out")] == sorted(path.name for path in folder.iterdir())


def lost_device() -> Exception:
    """As torch raises it."""
    return getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: device-side assert triggered\nAdvice")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lost_device(), "the device cpu failed: CUDA error: device-side assert triggered; no image"),
        (RuntimeError("CUDA error: the launch timed out"), "the device cpu failed: CUDA error: the launch timed out"),
        (cuda_out_of_memory("CUDA out of memory"), "fails for every image: OutOfMemoryError: CUDA out of memory"),
        (ValueError("broken"), "fails for every image: ValueError: broken"),
    ],
    ids=["lost", "lost-before-2.8", "memory", "model"],
)
@pytest.mark.parametrize("works_for", [0, 2])
def test_what_fails_every_image_ends_the_run_and_is_recorded_for_none(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, works_for: int
) -> None:
    folder, out = images(tmp_path / "in", 12), tmp_path / "out"
    (folder / "05.png").write_text("no image")
    calls = []

    def fail(pixels: torch.Tensor) -> None:
        calls.append(len(pixels))
        if len(calls) > works_for:
            raise error

    failing_engine(monkeypatch, fail)
    ended = camcli("run", folder, "--out", out, *SMALL)
    assert (ended.code, said in ended.err) == (3, True), ended.err
    assert "the same command goes on from there" in ended.err
    assert {r.get("stage") for r in lines(out)} <= {None, "decode"}
    monkeypatch.undo()
    assert camcli("run", folder, "--out", out, *SMALL).code == 1
    assert manifest(out)["counts"] == {"done": 11, "failed": 1, "skipped": 0}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lost_device(), "the device cpu failed: CUDA error: device-side assert triggered; no image"),
        (cuda_out_of_memory("CUDA out of memory"), "the device cpu has too little memory for this model: CUDA out of"),
    ],
    ids=["lost", "memory"],
)
@pytest.mark.parametrize("step", ["load_model", "resolve_layers", "_precision", "find_batch_size", "warm_up"])
def test_a_device_that_fails_before_the_first_image_is_no_defect(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, said: str
) -> None:
    def fail(*words: object, **more: object) -> None:
        try:
            raise error
        except Exception:
            if step == "warm_up":  # as compilers do, which raise kinds of their own
                raise ConfigError("cannot be compiled here") from None
            raise

    monkeypatch.setattr(f"camcli.pipeline.prepare.{step}", fail)
    monkeypatch.setattr("camcli.pipeline.prepare.compile_backbone", lambda engine: None)
    words = ("-s", f"runtime.backend={'compile' if step == 'warm_up' else 'torch'}", "-s", "runtime.batch_size=auto")
    ended = camcli("run", images(tmp_path / "in", 2), "--out", tmp_path / "out", *TINY, *words)
    assert (ended.code, said in ended.err, "Traceback" in ended.err) == (3, True, False), ended.err
    assert not list((tmp_path / "out").glob("camcli-crash*"))


@pytest.mark.parametrize("how", ["removed", "replaced", "away"])
@pytest.mark.parametrize("size", ["original", "model"])
def test_a_folder_that_vanishes_ends_the_run_instead_of_failing_each_image(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, size: str
) -> None:
    folder, out = images(tmp_path / "in", 24), tmp_path / "out"
    (folder / "05.png").unlink()
    (folder / "05.png").symlink_to("nowhere")  # one that fails by itself
    real = Files.read

    def read(self: Files, item: Item) -> Any:
        if item.id == "12.jpg" and how == "away":
            away.set()
        elif item.id == "12.jpg":
            folder.rename(tmp_path / "elsewhere")
            if how == "replaced":
                folder.mkdir()
        return real(self, item)

    def stale(real: Callable[..., Any], place: Any, *words: Any, **more: Any) -> Any:
        if away.is_set() and Path(place).is_relative_to(folder):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(place, *words, **more)

    away = threading.Event()
    monkeypatch.setattr(Files, "read", read)
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda *words, **more: stale(real_open, *words, **more))
    monkeypatch.setattr("camcli.images.read.os.scandir", partial(stale, os.scandir))
    given = ("-s", f"overlay.size={size}", "-s", "runtime.threads=1", "-s", "runtime.batch_size=4")
    words = ("run", folder, "--out", out, *TINY, *given)
    ended = camcli(*words)
    said = "cannot be read: Stale file handle" if how == "away" else "was removed, renamed or unmounted"
    assert (ended.code, f"{folder}: the folder of the images {said}" in ended.err) == (3, True), ended.err
    assert [r["id"] for r in lines(out) if r["status"] == "failed"] in ([], ["05.png"])
    monkeypatch.undo()
    if how != "away":
        shutil.rmtree(folder, ignore_errors=True)
        (tmp_path / "elsewhere").rename(folder)
    assert camcli(*words).code == 1
    assert manifest(out)["counts"] == {"done": 23, "failed": 1, "skipped": 0}


@pytest.mark.parametrize("where", ["read", "write"])
def test_too_many_open_files_end_the_run(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder, out = images(tmp_path / "in", 12), tmp_path / "out"
    real = Path.open

    def full(self: Path, *words: Any, **more: Any) -> Any:
        if self.name == "05.png" if where == "read" else self.parent.name == "overlays" and any(out.rglob("02*")):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(self))
        return real(self, *words, **more)

    monkeypatch.setattr(Path, "open", full)
    ended = camcli("run", folder, "--out", out, *SMALL)
    assert (ended.code, "Too many open files" in ended.err, "Traceback" in ended.err) == (3, True, False), ended.err
    assert all(record["status"] == "done" for record in lines(out))
    monkeypatch.undo()
    assert camcli("run", folder, "--out", out, *SMALL).code == 0


def test_a_run_folder_that_cannot_be_made_holds_nothing_to_go_on_from(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *words: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder = images(tmp_path / "in", 1)
    monkeypatch.setattr(Path, "mkdir", refused)
    ended = camcli("run", folder, "--out", tmp_path / "out", *TINY)
    assert (ended.code, f"{tmp_path / 'out'}: cannot be made: Permission denied" in ended.err) == (3, True), ended.err
    assert "goes on" not in ended.err


def test_weights_that_answer_nan_for_every_image_end_the_run(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Engine.network
    monkeypatch.setattr(Engine, "network", lambda *words: real(*words) * float("nan"))
    ended = camcli("run", images(tmp_path / "in", 6), "--out", tmp_path / "out", *SMALL)
    assert (ended.code, "fails for every image: NotFinite" in ended.err) == (3, True), ended.err
    assert lines(tmp_path / "out") == []


@pytest.mark.parametrize("good", [0, 4])
def test_whole_batches_of_images_to_blame_are_their_own_failures(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (64, 64)).save(folder / f"{i:02}.png")
    for i in range(good):
        save_image(folder / f"{i:02}.png", 64, 64, i)

    def fail(pixels: torch.Tensor) -> None:
        if any(not p.any() for p in pixels):
            raise ZeroDivisionError("a black image")

    failing_engine(monkeypatch, fail)
    words = (*SMALL, "-s", "targets={above: 1}")
    assert camcli("run", folder, "--out", tmp_path / "out", *words).code == 1
    assert manifest(tmp_path / "out")["counts"] == {"done": good, "failed": 12 - good, "skipped": 0}


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, AssertionError])
def test_an_error_of_the_model_is_the_failure_of_the_image_that_causes_it(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    folder = images(tmp_path / "in", 6)
    config = load_config(None, [word for word in TINY if word != "-s"]).config
    culprit = load_image(folder / "03.jpg", load_model(config.model, config.input).preprocess).input

    def fail(pixels: torch.Tensor) -> None:
        if any(bool((p == torch.from_numpy(culprit)).all()) for p in pixels):
            raise kind("no such index")

    failing_engine(monkeypatch, fail)
    assert camcli("run", folder, "--out", tmp_path / "out", *TINY).code == 1
    failed = [(r["id"], r["stage"], r["kind"], r["message"]) for r in lines(tmp_path / "out") if r["status"] != "done"]
    assert failed == [("03.jpg", "forward", kind.__name__, "no such index")]


def test_a_model_that_answers_nan_is_recorded_for_that_image(
    camcli: Camcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load_model

    def poisoned(*words: Any) -> Any:
        model = real(*words)

        def hook(module: torch.nn.Module, args: Any, logits: torch.Tensor) -> torch.Tensor:
            logits = logits.clone()
            if len(logits) == 4:
                logits[2] = float("nan")
            return logits

        model.module.register_forward_hook(hook)
        return model

    monkeypatch.setattr("camcli.pipeline.prepare.load_model", poisoned)
    words = (*TINY, "-s", "layer=layer4", "-s", "runtime.batch_size=4", "-s", "runtime.threads=1")
    assert camcli("run", images(tmp_path / "in", 4), "--out", tmp_path / "out", *words).code == 1
    assert {r["id"]: r.get("kind") for r in lines(tmp_path / "out")} == {
        "00.jpg": None,
        "01.png": None,
        "02.png": "NotFinite",
        "03.jpg": None,
    }


@pytest.mark.parametrize(
    ("words", "at_most"), [(("--fail-fast",), 1), (("--max-errors", "3"), 4), (("--max-errors", "10%"), 7)]
)
def test_too_many_errors_stop_the_run(camcli: Camcli, tmp_path: Path, words: tuple[str, ...], at_most: int) -> None:
    folder, out = images(tmp_path / "in", 10), tmp_path / "out"
    for i in range(50):
        (folder / f"b{i}.jpg").write_text("no image")
    one = (*TINY, "-s", "runtime.batch_size=1", "-s", "runtime.threads=1")
    ended = camcli("run", folder, "--out", out, *one, *words)
    assert ended.code == 1
    told = manifest(out)
    in_flight = 8
    assert at_most <= told["counts"]["failed"] <= at_most + in_flight
    assert told["status"] == "stopped"
    ids = [r["id"] for r in lines(out)]
    assert ids == sorted(os.listdir(folder))[: len(ids)]
    assert "not reached" in ended.err
    assert camcli("run", folder, "--out", out, *one).code == 1
    assert manifest(out)["counts"] == {"done": 10, "failed": 50, "skipped": 0}


def test_nonsense_limits_of_errors_are_refused(camcli: Camcli, tmp_path: Path) -> None:
    folder = images(tmp_path / "in", 1)
    for text in ("many", "-1", "5 %", "1.5"):
        assert camcli("run", folder, "--out", tmp_path / "out", f"--max-errors={text}").code == 2


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [(1, 16, 1), (2, 16, 2), (3, 16, 4), (17, 16, 12), (16, 16, 16), (1000, 16, 16), (5, 3, 3), (0, 8, 1)],
)
def test_batches_are_filled_evenly(images: int, batch: int, expected: int) -> None:
    assert even_batches(images, batch) == expected
