"""Image formats: each is found by its extensions and decoded; files of other extensions are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camcli.images.decode import decode
from camcli.images.find import discover
from camcli.images.formats import EXTENSIONS, FORMATS
from tests.conftest import SHAPES, Ended, save_image

MODES = {".pbm": "1", ".pgm": "L", ".pfm": "F"}
Image.init()
SAVED = [extension for extension in EXTENSIONS if Image.registered_extensions().get(extension) in Image.SAVE]


def draw(path: Path) -> Image.Image:
    """A file whose left half is black and whose right half is white, in the format of its extension."""
    image = Image.new("RGB", (64, 48))
    image.paste("white", (32, 0, 64, 48))
    if path.suffix == ".mpo":
        image.save(path, save_all=True, append_images=[image])
    elif path.suffix == ".ico":
        image.save(path, sizes=[(64, 48)])
    else:
        image.convert(MODES.get(path.suffix, "RGB")).save(path)
    return image


@pytest.mark.parametrize("extension", SAVED)
def test_a_file_of_each_extension_is_found_and_decoded(tmp_path: Path, extension: str) -> None:
    for suffix in (extension, extension.upper()):
        drawn = draw(tmp_path / f"x{extension}").convert("L")
        (tmp_path / f"x{extension}").rename(tmp_path / f"x{suffix}")
        [item] = discover([str(tmp_path)])
        found = np.asarray(decode(item.path), dtype=int)
        assert found.shape == (48, 64, 3)
        assert np.abs(found - np.asarray(drawn, dtype=int)[..., None]).mean() < 3
        item.path.unlink()


def test_the_extensions_are_those_that_pillow_knows_for_the_formats() -> None:
    known = Image.registered_extensions()
    assert {e for e, name in known.items() if name in FORMATS} <= set(EXTENSIONS)
    for name, extensions in FORMATS.items():
        assert {known.get(e, name) for e in extensions} == {name}
    assert len(SAVED) > 20


def test_no_format_starts_a_program() -> None:
    assert not {"EPS", "PDF", "WMF"} & set(FORMATS)


def test_files_of_other_extensions_are_counted_and_named(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    photos = tmp_path / "in"
    save_image(photos / "a.jpg", 90, 80)
    save_image(photos / "below" / "b.jfif.jpg", 90, 80).rename(photos / "below" / "b.jfif")
    for name in ("x.tga", "below/y.TGA", "notes.txt", "README", ".hidden.tga", "below/z.heic"):
        (photos / name).write_bytes(b"?")
    out = photos / "out"
    for _ in range(2):
        ended = camcli("run", photos, photos / "below", "--out", out)
        assert ended.code == 0, ended.err
        assert "not an image extension: 2 .tga, 1 .heic, 1 .txt, 1 without" in ended.err
        manifest = json.loads((out / "run.json").read_text())
        assert manifest["skipped_files"] == {".tga": 2, ".heic": 1, ".txt": 1, "": 1}
        assert manifest["counts"]["done"] == 2
    assert "not an image extension: 2 .tga" in camcli("run", photos, "--out", tmp_path / "other", "--dry-run").err
    (photos / "new.cr2").write_bytes(b"?")
    again = camcli("run", photos, photos / "below", "--out", out)
    assert ("nothing to do" in again.err, "2 .tga, 1 .cr2" in again.err) == (True, True)
    as_json = camcli("run", photos, photos / "below", "--out", out, "--log-format", "json")
    assert json.loads(as_json.err.splitlines()[-1])["skipped_files"][".cr2"] == 1


def test_only_what_was_asked_for_by_extension_is_not_told_of(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "a.jpg", 90, 80)
    save_image(tmp_path / "in" / "b.png", 90, 80)
    ended = camcli("run", tmp_path / "in", "--out", tmp_path / "out", "--ext", "png")
    assert "of another extension: 1 .jpg" in ended.err


def test_where_there_is_no_image_the_others_are_named(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "x.heic").write_bytes(b"?")
    ended = camcli("run", tmp_path, "--out", tmp_path / "out")
    assert ended.code == 5
    assert "1 .heic" in ended.err


def test_concepts_tell_of_them_too(camcli: Callable[..., Ended], tmp_path: Path) -> None:
    for path in sorted(SHAPES.iterdir())[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "x.tga").write_bytes(b"?")
    ended = camcli("dff", tmp_path, "--out", tmp_path / "out", "-k", 2)
    assert (ended.code, "not an image extension: 1 .tga" in ended.err) == (0, True)


def test_a_file_that_is_named_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("a.jpg", "x.tga", "y.tga"):
        (tmp_path / name).touch()
    others: set[str] = set()
    discover([str(tmp_path), str(tmp_path / "x.tga")], others=others)
    assert others == {str(tmp_path / "y.tga")}
