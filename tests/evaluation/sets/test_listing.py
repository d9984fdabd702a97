"""What counts as a picture below a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import features

from evaluation.sets.listing import SUFFIXES, count_beside, list_classes, list_files, list_images
from pipeline.schema import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_pictures_are_found_sorted_below_all_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b/x.JPG", "a.png", "b/c/y.webp", "b/notes.txt")
    assert list_images(tmp_path) == ["a.png", "b/c/y.webp", "b/x.JPG"]


def test_hidden_files_and_folders_never_count(tmp_path: Path) -> None:
    touch(tmp_path / ".data", "a.png", "._a.png", ".ipynb_checkpoints/a.png", "b/.cache/c/x.png", "__MACOSX/a.png")
    assert list_images(tmp_path / ".data") == ["a.png"]  # the root itself may have any name


def test_every_format_that_is_read_is_found(tmp_path: Path) -> None:
    names = ["1.jfif", "2.jpe", "3.pgm", "4.pbm", "5.pnm", "6.ppm", "7.tif", "8.TIFF", "9.bmp"]
    touch(tmp_path, *names)
    assert list_images(tmp_path) == names
    assert (".avif" in SUFFIXES) == features.check("avif")


def test_what_looks_like_a_picture_and_is_not_read_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "a.png", "b.heic", "c/d.HEIC", "e.svg", "notes.txt", ".f.heic")
    assert list_files(tmp_path).unread == {".heic": 2, ".svg": 1}
    assert list_images(tmp_path) == ["a.png"]
    assert capsys.readouterr().err == (
        f"warning: 3 files below {tmp_path} look like pictures and are not read (.heic: 2, .svg: 1); convert them to "
        "PNG or JPEG, or remove them\n"
    )
    list_images(tmp_path / "c" / "..")
    (tmp_path / "plain").mkdir()
    capsys.readouterr()
    list_images(tmp_path / "plain")
    assert capsys.readouterr().err == ""


def test_linked_folders_are_followed_once_each(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "x.png", "deep/y.png")
    root = tmp_path / "root"
    touch(root, "b/z.png")
    os.symlink(tmp_path / "elsewhere", root / "link1")
    os.symlink(tmp_path / "elsewhere", root / "link2")  # a second link to one folder
    os.symlink(tmp_path / "elsewhere" / "deep", root / "b" / "link3")  # to a part of it: the first link reads it
    os.symlink(root, root / "b" / "loop")  # a cycle
    os.symlink(root / "b", root / "a")  # a link to a folder that is here itself
    assert list_images(root) == ["b/link3/y.png", "b/z.png", "link1/x.png"]


def test_a_linked_file_counts_like_any_other(tmp_path: Path) -> None:
    touch(tmp_path, "root/a.png", "b.png")
    os.symlink(tmp_path / "b.png", tmp_path / "root" / "b.png")
    assert list_images(tmp_path / "root") == ["a.png", "b.png"]


def test_classes_are_the_folders_that_are_not_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "root/cat/1.png", "root/cat/sub/2.png", "root/.ipynb_checkpoints/x.png", "root/3.png", "dog/4.png")
    touch(tmp_path, "root/cat/5.heic")
    os.symlink(tmp_path / "dog", tmp_path / "root" / "dog")
    listings, unread = list_classes(tmp_path / "root")
    assert {name: one.paths for name, one in listings.items()} == {"cat": ("1.png", "sub/2.png"), "dog": ("4.png",)}
    assert unread == {".heic": 1}


def test_a_folder_in_two_classes_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "shared/2.png")
    os.symlink(tmp_path / "shared", tmp_path / "cat" / "more")
    with pytest.raises(
        UserError, match="the classes 'cat' and 'shared' of .* both hold the folder .*shared, one of them"
    ):
        list_classes(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no/? cannot be read .No such file or directory.; look at its permissions"):
        list_files(tmp_path / "no")


def test_a_class_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png")
    os.symlink("/nonexistent/dog", tmp_path / "dog")
    with pytest.raises(UserError, match="/dog is a link to /nonexistent/dog, which is not there; restore that, or"):
        list_classes(tmp_path)


def test_a_link_to_nothing_inside_a_class_is_refused_unless_it_is_a_picture_or_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png")
    os.symlink("/nonexistent/2.png", tmp_path / "cat" / "2.png")  # reading it counts it as unreadable
    os.symlink("1.gone.png", tmp_path / "cat" / "3.png")
    os.symlink("/nonexistent", tmp_path / "cat" / ".hidden")
    assert list_files(tmp_path / "cat").paths == ("1.png", "2.png", "3.png")
    os.symlink("/nonexistent/more", tmp_path / "cat" / "more")
    with pytest.raises(UserError, match="/cat/more is a link to /nonexistent/more, which is not there"):
        list_classes(tmp_path)


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "apple").mkdir()
    os.symlink("loop", tmp_path / "apple" / "loop")
    with pytest.raises(UserError, match="/apple/loop is a link that leads to itself; remove it"):
        list_classes(tmp_path)
    os.symlink("apples", tmp_path / "apples")
    with pytest.raises(UserError, match="/apples is a link that leads to itself; remove it"):
        list_classes(tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"apple/caf\xe9.png", r"the name of the picture .*/apple/caf\\xe9.png is not valid UTF-8; rename"),
        (b"apple/caf\xe9/1.png", r"the name of the folder .*/apple/caf\\xe9 is not valid UTF-8"),
        (b"caf\xe9/1.png", r"the name of the folder .*/caf\\xe9 is not valid UTF-8"),
    ],
)
def test_a_name_that_is_not_utf8_is_refused_and_shown_with_its_bytes(tmp_path: Path, name: bytes, shown: str) -> None:
    touch(tmp_path, os.fsdecode(name), "pear/1.png")
    with pytest.raises(UserError, match=shown):
        list_classes(tmp_path)


def test_a_hidden_or_other_file_may_have_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", os.fsdecode(b"caf\xe9.txt"), os.fsdecode(b".caf\xe9.png"))
    assert list_images(tmp_path) == ["1.png"]


def test_a_link_to_a_picture_of_the_same_set_does_not_count_again(tmp_path: Path) -> None:
    touch(tmp_path, "set/apple/0.png", "set/apple/deep/1.png", "store/blob", "store/2.png")
    apple = tmp_path / "set" / "apple"
    os.symlink("0.png", apple / "again.png")
    os.symlink(apple / "deep" / "1.png", apple / "a.png")
    for link in ("x.png", "y.png"):
        os.symlink(tmp_path / "store" / "blob", apple / link)  # one copy of two equal pictures
    os.symlink(tmp_path / "store" / "2.png", apple / "z.png")
    listings, _ = list_classes(tmp_path / "set")
    assert listings["apple"].paths == ("0.png", "deep/1.png", "x.png", "y.png", "z.png")


def test_a_link_to_a_picture_of_another_class_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "apple/0.png", "pear/1.png")
    os.symlink("../apple/0.png", tmp_path / "pear" / "2.png")
    with pytest.raises(
        UserError, match="/pear/2.png is a link to a picture of the class 'apple', so the classes 'pear' and 'apple' of"
    ):
        list_classes(tmp_path)


def test_pictures_beside_the_class_folders_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "cat/1.png")
    assert count_beside(tmp_path) == 0
    assert capsys.readouterr().err == ""
    touch(tmp_path, "2.png", "3.HEIC", "notes.txt", ".4.png")
    assert count_beside(tmp_path) == 2
    assert capsys.readouterr().err == (
        f"warning: {tmp_path} has 2 pictures beside the class folders, which are not read; move each into the folder "
        "of its class, or remove it\n"
    )
