"""What counts as an input, in which order, and under which id."""

from __future__ import annotations

import io
import itertools
import os
import sys
from pathlib import Path

import pytest

from camcli.errors import ConfigError, NoInputsError
from camcli.images.find import discover, roots_of
from tests.conftest import save_image


def touch(folder: Path, *names: str) -> None:
    """Empty files; discovery looks at names only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def ids(*names: object, **options: object) -> list[str]:
    """The ids that `discover` finds."""
    return [item.id for item in discover([str(name) for name in names], **options)]  # type: ignore[arg-type]


def test_a_folder_of_concepts_is_no_source_of_images(tmp_path: Path) -> None:
    for name in ("in/a.jpg", "in/out/overlays/a.jpg.dff.jpg", "in/out/mine.jpg"):
        save_image(tmp_path / name, 9, 9)
    (tmp_path / "in" / "out" / "concepts.json").touch()
    assert [item.id for item in discover([str(tmp_path / "in")])] == ["a.jpg", "out/mine.jpg"]


def test_a_folder_is_searched_in_order_without_hidden_entries(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.PNG", "a/.hidden.jpg", ".git/x.jpg", "notes.txt", "a.jpeg", "é.webp")
    assert ids(tmp_path) == ["a/z.PNG", "a.jpeg", "b.jpg", "é.webp"]


def test_names_that_differ_only_in_extension_stay_apart(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg", "x.png")
    assert ids(tmp_path) == ["x.jpg", "x.png"]


def test_several_folders_are_told_apart_by_their_own_names(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "b/deep/x.jpg", "other/c/y.jpg")
    assert ids(tmp_path / "a") == ["x.jpg"]
    assert ids(tmp_path / "a", tmp_path / "b") == ["a/x.jpg", "b/deep/x.jpg"]
    assert ids(tmp_path / "other/c", tmp_path / "a") == ["c/y.jpg", "a/x.jpg"]
    assert ids(f"{tmp_path}/./a", f"{tmp_path}/a/") == ["x.jpg"]


def test_ids_never_depend_on_what_else_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(
        tmp_path, "a/x.jpg", "a/deep/y.jpg", "b/x.jpg", "c.jpg", "far/away/d.jpg", "far/e.jpg", "far/f.jpg", "z/g.jpg"
    )
    (tmp_path / "list.txt").write_text(f"far/e.jpg\n{tmp_path}/far/f.jpg\nz\n")
    monkeypatch.chdir(tmp_path)
    inputs = ["a", "b", "./c.jpg", "far/*/d.jpg", "@list.txt"]
    named = {item.path: item.id for item in discover(inputs)}
    absolute = f"{tmp_path}/far/f.jpg"[1:]
    assert set(named.values()) == {
        *("a/x.jpg", "a/deep/y.jpg", "b/x.jpg", "c.jpg", "far/away/d.jpg", "far/e.jpg", absolute, "z/g.jpg")
    }
    for count in (2, 3):
        for some in itertools.permutations(inputs, count):
            assert {item.path: item.id for item in discover(some)}.items() <= named.items()
    for word in inputs[2:]:
        assert {item.path: item.id for item in discover([word])}.items() <= named.items()


def test_a_file_that_is_named_twice_is_called_as_in_the_outermost_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a/deep/x.jpg", "b/y.jpg")
    a, b = tmp_path / "a", tmp_path / "b"
    for words in ([a, a / "deep", b], [a / "deep", b, a], [a / "deep" / "x.jpg", b, a]):
        assert sorted(ids(*words)) == ["a/deep/x.jpg", "b/y.jpg"]


def test_root_fixes_ids_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/x.jpg", "b/x.jpg", "p/a/x.jpg")
    monkeypatch.chdir(tmp_path / "p")
    for words in (
        [tmp_path / "a"],
        [tmp_path / "a", tmp_path / "b"],
        [f"{tmp_path}/a/*"],
        ["../a/x.jpg"],
        ["../b", "../a"],
    ):
        for root in (str(tmp_path), ".."):
            assert "a/x.jpg" in ids(*words, root=root)
    assert ids(tmp_path / "a", root=str(tmp_path / "a")) == ["x.jpg"]
    assert ids("a", "../a", root="..") == ["p/a/x.jpg", "a/x.jpg"]
    with pytest.raises(ConfigError, match=r"/b: is not below --root .*/a"):
        discover([str(tmp_path / "a"), str(tmp_path / "b")], root=str(tmp_path / "a"))


def test_two_images_with_one_id_are_refused_with_the_root_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "p/a/x.jpg", "q/a/y.jpg", "q/p/a/x.jpg")
    monkeypatch.chdir(tmp_path / "q")
    for words in ([tmp_path / "p/a", tmp_path / "q/a"], [tmp_path / "p", "p/a/x.jpg"]):
        with pytest.raises(ConfigError, match=f"--root {tmp_path} gives each"):
            discover([str(word) for word in words])
        assert len(ids(*words, root=str(tmp_path))) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    touch(tmp_path, "é.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    text = ("\ufeff" if encoding in ("utf-16-le", "utf-16-be") else "") + "é.jpg\r\nb.jpg\r\n"
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert ids("@list.txt") == ["é.jpg", "b.jpg"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode(encoding))))
    assert ids("-") == ["é.jpg", "b.jpg"]


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfex")
    with pytest.raises(ConfigError, match="begins like UTF-16 and is not"):
        discover([f"@{tmp_path}/list.txt"])


def test_a_folder_that_cannot_be_searched_keeps_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camcli.images.find._entries", lambda _: None)
    (tmp_path / "a").mkdir()
    assert ids(tmp_path / "a") == ["."]
    assert roots_of(discover([str(tmp_path / "a")])) == [str(tmp_path / "a")]


def test_a_image_named_twice_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg")
    assert len(ids(tmp_path / "a", tmp_path / "a" / "x.jpg", tmp_path / "a")) == 1


def test_globs_lists_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.png", "d.dat")
    here = str(tmp_path)[1:]
    assert ids(f"{tmp_path}/*.jpg") == [f"{here}/a.jpg", f"{here}/b.jpg"]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tmp_path}/c.png\n\n{tmp_path}/d.dat\n")
    assert ids(f"@{listed}") == [f"{here}/c.png", f"{here}/d.dat"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path}/b.jpg\n{tmp_path}/a.jpg\n"))
    assert ids("-") == [f"{here}/b.jpg", f"{here}/a.jpg"]


def test_a_name_with_glob_characters_is_a_name_first(tmp_path: Path) -> None:
    touch(tmp_path, "[1].jpg", "1.jpg")
    assert ids(tmp_path / "[1].jpg", root=str(tmp_path)) == ["[1].jpg"]


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


def test_a_file_above_the_current_folder_is_called_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "x.jpg", "in/y.jpg")
    monkeypatch.chdir(tmp_path / "in")
    found = [item.id for item in discover(["../x.jpg", "y.jpg"])]
    assert found == [f"{tmp_path}/x.jpg".lstrip("/"), "y.jpg"]
