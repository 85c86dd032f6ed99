"""What counts as an input, in which order, and under which id."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from camcli.errors import ConfigError, NoInputsError
from camcli.inputs import discover


def touch(folder: Path, *names: str) -> None:
    """Empty files; discovery looks at names only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def ids(*names: object, **options: object) -> list[str]:
    """The ids that `discover` finds."""
    return [item.id for item in discover([str(name) for name in names], **options)]  # type: ignore[arg-type]


def test_a_folder_is_searched_in_order_without_hidden_entries(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.PNG", "a/.hidden.jpg", ".git/x.jpg", "notes.txt", "a.jpeg", "é.webp")
    assert ids(tmp_path) == ["a/z.PNG", "a.jpeg", "b.jpg", "é.webp"]


def test_names_that_differ_only_in_extension_stay_apart(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg", "x.png")
    assert ids(tmp_path) == ["x.jpg", "x.png"]


def test_several_roots_share_the_folder_that_holds_all(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "b/x.jpg")
    assert ids(tmp_path / "a", tmp_path / "b") == ["a/x.jpg", "b/x.jpg"]
    assert ids(tmp_path / "a" / "x.jpg", tmp_path / "b") == ["a/x.jpg", "b/x.jpg"]
    assert ids(tmp_path / "a" / "x.jpg") == ["x.jpg"]


def test_a_picture_named_twice_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg")
    assert len(ids(tmp_path / "a", tmp_path / "a" / "x.jpg", tmp_path / "a")) == 1


def test_globs_lists_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.png", "d.dat")
    assert ids(f"{tmp_path}/*.jpg") == ["a.jpg", "b.jpg"]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tmp_path}/c.png\n\n{tmp_path}/d.dat\n")
    assert ids(f"@{listed}") == ["c.png", "d.dat"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path}/b.jpg\n{tmp_path}/a.jpg\n"))
    assert ids("-") == ["b.jpg", "a.jpg"]


def test_a_name_with_glob_characters_is_a_name_first(tmp_path: Path) -> None:
    touch(tmp_path, "[1].jpg", "1.jpg")
    assert ids(tmp_path / "[1].jpg") == ["[1].jpg"]


def test_ext_and_limit(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.dat", "c.DAT")
    assert ids(tmp_path, extensions=["dat"]) == ["b.dat", "c.DAT"]
    assert ids(tmp_path, limit=1) == ["a.jpg"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    touch(tmp_path, "real/x.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert ids(tmp_path) == ["link/x.jpg", "real/x.jpg"]


def test_undecodable_names_are_kept(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff.jpg"
    Path(os.fsdecode(raw)).touch()
    assert os.fsencode(discover([str(tmp_path)])[0].path) == raw


def test_nothing_found_and_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NoInputsError, match=r"looked for \.jpg"):
        discover([str(tmp_path)])
    with pytest.raises(ConfigError, match="no such file or folder"):
        discover([str(tmp_path / "missing")])
    with pytest.raises(ConfigError, match="the list cannot be read"):
        discover([f"@{tmp_path}/missing.txt"])
