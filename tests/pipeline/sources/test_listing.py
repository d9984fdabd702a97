"""Which files a path, a glob, braces, several of them, or a list mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from apache_beam.io.filesystem import FileMetadata, MatchResult
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from pipeline.sources.inputs import list_inputs
from pipeline.sources.listing import find_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with tars."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "part0/00000.tar", "part0/00001.tar", "part1/00000.tar", "part1/00002.tar", "pairs[1].tar", "pairs1.tar",
        "a,b.tar", "{0..1}.tar", "x9.tar", "x10.tar", "deep/er/00000.tar",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(patterns: str) -> list[str]:
    return [file.name for file in find_files(patterns, option="--input")]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("part0/00000.tar", ["00000.tar"]),
        ("part0/*.tar", ["00000.tar", "00001.tar"]),
        ("part?/00000.tar", ["part0/00000.tar", "part1/00000.tar"]),
        ("part*/*.tar", ["part0/00000.tar", "part0/00001.tar", "part1/00000.tar", "part1/00002.tar"]),
        ("*/00000.tar", ["part0/00000.tar", "part1/00000.tar"]),  # * does not reach over folders
        ("**/00000.tar", ["deep/er/00000.tar", "part0/00000.tar", "part1/00000.tar"]),
        ("part0/{00000..00001}.tar", ["00000.tar", "00001.tar"]),
        ("part{0,1}/00000.tar", ["part0/00000.tar", "part1/00000.tar"]),
        ("part{0..1}/{00000..00000}.tar", ["part0/00000.tar", "part1/00000.tar"]),
        ("part{0,1}/*[12].tar", ["part0/00001.tar", "part1/00002.tar"]),
        ("{part0/00001,part1/00002}.tar", ["part0/00001.tar", "part1/00002.tar"]),
        ("x{9..10}.tar", ["x10.tar", "x9.tar"]),
        ("part1/{00002..00000..2}.tar", ["00000.tar", "00002.tar"]),
        ("part0/00000.tar, part1/*.tar", ["part0/00000.tar", "part1/00000.tar", "part1/00002.tar"]),
        ("part0/*.tar,part0/00000.tar,./part0/00000.tar", ["00000.tar", "00001.tar"]),  # each once
        # Files that look like patterns are files first.
        ("pairs[1].tar", ["pairs[1].tar"]),
        ("pairs[[]1].tar", ["pairs[1].tar"]),
        ("pairs*.tar", ["pairs1.tar", "pairs[1].tar"]),
        ("{0..1}.tar", ["{0..1}.tar"]),
        ("a,b.tar", ["a,b.tar"]),
    ],
)
def test_what_patterns_mean_and_what_files_are_called(folder: Path, patterns: str, expected: list[str]) -> None:
    assert names(patterns) == expected


def test_paths_are_those_that_open_the_files(folder: Path) -> None:
    for patterns in ("*/*.tar", f"{folder}/*/*.tar", f"part0/*.tar,{folder}/part1/*.tar", "pairs[1].tar"):
        for file in find_files(patterns, option="--input"):
            assert Path(file.path).read_text().endswith(file.name)
            assert file.size_bytes == os.path.getsize(file.path) and file.updated_sec == os.path.getmtime(file.path)


def test_a_list_has_a_path_or_pattern_on_each_line(folder: Path) -> None:
    Path("list.txt").write_text("part0/*.tar\n\n  a,b.tar\npart1/{00000,00002}.tar\n")
    assert names("@list.txt") == [
        "a,b.tar", "part0/00000.tar", "part0/00001.tar", "part1/00000.tar", "part1/00002.tar",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("none/*.tar", "--texts none/.*.tar matches no file; give the path or glob of your tar shards, in quotes"),
        ("part0/00000.tar,none", "--texts none matches no file"),
        ("part0/{00000..00004}.tar", r"3 of 5 are missing, part0/00002.tar, part0/00003.tar, part0/00004.tar; correct"),
        ("part0/{0..9}.tar", r"10 of 10 are missing, part0/0.tar, part0/1.tar, part0/2.tar and 7 more; correct"),
        ("part{0,7}/*.tar", r"1 of 2 are missing, part7/\*.tar; correct the braces, or use a glob"),
        ("part*", r"--texts part0 is a folder; give its shards, such as 'part0/\*.tar'"),
        ("part{0..9}{000000..999999}", "names more than 1000000 files; use a glob"),
        (
            "@none.txt",
            r"--texts @none.txt: the list cannot be read \(.*No such file.*\); give @ and the path of a text",
        ),
        (" , ", "names no file; give the path or glob"),
        ("odd://x/*.tar", "--texts odd://x/.*: .*; give a path or glob of tars"),
    ],
)
def test_what_means_no_file_is_an_error_that_names_it(folder: Path, patterns: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_files(patterns, option="--texts")


def test_an_object_store_is_asked_once_for_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def match(patterns: list[str]) -> list[MatchResult]:
        asked.append(*patterns)
        paths = [f"gs://bucket/{part}/{number:05d}.tar" for part in "ab" for number in range(100)]
        return [MatchResult(patterns[0], [FileMetadata(path, 5, 1.5) for path in paths])]

    monkeypatch.setattr(FileSystems, "match", match)
    monkeypatch.setattr(FileSystems, "exists", lambda path: False)
    files = find_files("gs://bucket/{a,b}/{00000..00019}.tar", option="--input")
    assert asked == ["gs://bucket/*/*.tar"]
    assert len(files) == 40
    assert (files[0].path, files[0].name) == ("gs://bucket/a/00000.tar", "a/00000.tar")
    assert (files[0].size_bytes, files[0].updated_sec) == (5, 1.5)


def test_inputs_are_named_by_their_paths_and_two_of_one_name_are_refused(folder: Path) -> None:
    shards = list_inputs("part*/00000.tar")
    assert [(shard.file, shard.name) for shard in shards] == [
        ("part0/00000.tar", "part0--00000"), ("part1/00000.tar", "part1--00000"),
    ]  # fmt: skip
    Path("part0/00000.tar.gz").touch()
    with pytest.raises(UserError, match="part0/00000.tar and part0/00000.tar.gz, both named '00000'; rename one"):
        list_inputs("part0/00000.tar*")
