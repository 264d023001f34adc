"""Names as people write them, and folders as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detector.errors import InputError
from detector.files import Finder, expand, list_files, plain_name, printable, read_list, write_atomically


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images/a b.jpg", "images/Größe.JPG", "images/c%20d.jpg", "e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("images/a b.jpg", "images/a b.jpg"),
        ("images\\a b.jpg", "images/a b.jpg"),
        ('"images/a b.jpg"', "images/a b.jpg"),
        ("images/a%20b.jpg", "images/a b.jpg"),
        ("IMAGES/A B.JPG", "images/a b.jpg"),
        ("images/gro\u0308ße.jpg", "images/Größe.JPG"),
        ("images/c%20d.jpg", "images/c%20d.jpg"),
        ("C:\\Users\\me\\set\\images\\a b.jpg", "images/a b.jpg"),
        ("/content/set/images/a b.jpg", "images/a b.jpg"),
        ("../images/a b.jpg", "images/a b.jpg"),
        ("other/b.jpg", None),
        ("", None),
        ("a\0b", None),
    ],
)
def test_a_name_is_found_however_it_is_written(folder: Path, written: str, found: str | None) -> None:
    finder = Finder(folder)
    path = finder.find(written)
    assert path == (folder / found if found else None)
    assert bool(finder.elsewhere) == (written.startswith(("C:", "/content", "../")))


def test_the_first_folder_wins_and_another_suffix_is_the_last_choice(folder: Path) -> None:
    assert Finder(folder / "images", folder).find("e.jpg") == folder / "e.jpg"
    (folder / "images/e.jpg").touch()
    assert Finder(folder / "images", folder).find("e.jpg") == folder / "images/e.jpg"
    assert Finder(folder).find("e.png") is None
    assert Finder(folder).find("e.png", any_suffix=True) == folder / "e.jpg"
    assert Finder(folder).find("/content/e.jpg", here=True) is None


def test_folders_are_searched_below_links_followed_and_hidden_files_left_out(tmp_path: Path) -> None:
    for name in ("set/a.jpg", "set/sub/b.jpg", "set/.hidden/c.jpg", "set/__MACOSX/._a.jpg", "far/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "set/link").symlink_to(tmp_path / "far")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    found = [str(path.relative_to(tmp_path / "set")) for path in list_files(tmp_path / "set")]
    assert found == ["a.jpg", "link/d.jpg", "sub/b.jpg"]


def test_patterns(tmp_path: Path) -> None:
    for name in ("frame_001.jpg", "frame_002.jpg", "frame_10.jpg", "photo[1].jpg"):
        (tmp_path / name).touch()

    def names(pattern: str) -> list[str] | None:
        found = expand(str(tmp_path / pattern))
        return found if found is None else [path.name for path in found]

    assert names("frame_%03d.jpg") == ["frame_001.jpg", "frame_002.jpg"]
    assert names("frame_%d.jpg") == ["frame_001.jpg", "frame_002.jpg", "frame_10.jpg"]
    assert names("photo[1].jpg") is None, "a file that exists is never a pattern"
    assert names("none.jpg") is None


def test_lists_and_names_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b'\xef\xbb\xbf a.jpg \r\n\r\n"b c.jpg"\r\n')
    assert read_list(tmp_path / "list.txt") == ["a.jpg", "b c.jpg"]
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_list(tmp_path / "none.txt")
    strange = os.fsdecode(b"caf\xe9.jpg")
    assert printable(strange) == "caf\\xe9.jpg"
    (tmp_path / strange).write_text("content")
    with plain_name(str(tmp_path / strange)) as name:
        assert name.isascii()
        assert Path(name).read_text() == "content"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a", b"old")

    def full(_: int) -> None:
        raise OSError

    monkeypatch.setattr("detector.files.os.fsync", full)
    with pytest.raises(OSError):  # noqa: PT011 (any)
        write_atomically(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
