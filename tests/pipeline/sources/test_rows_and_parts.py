"""Members of a row that lie apart, and tars that are read in parts."""

from __future__ import annotations

import gzip
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.schema import ImageText, Rejection
from pipeline.sources import ShardPart, webdataset
from pipeline.sources.read import read_shard, split_shard
from pipeline.sources.tar_members import Tar
from tests.fakes import pair, png, write_tar


def ends(path: Path) -> list[tuple[str, str]]:
    """Returns (id, "ok" or the reason) of each row, and checks that rows are numbered without a gap."""
    rows = list(read_shard(str(path)))
    assert [row.row for row in rows] == list(range(len(rows)))
    return [(row.image_id, row.reason if isinstance(row, Rejection) else "ok") for row in rows]


def pictures_then_texts(keys: Sequence[str]) -> list[tuple[str, bytes]]:
    pairs = [pair(key, f"text of {key}", shade) for shade, key in enumerate(keys)]
    return [picture for picture, _ in pairs] + [text for _, text in pairs]


def test_all_pictures_then_all_texts_are_joined_within_the_window(tmp_path: Path) -> None:
    keys = [f"{number:02d}" for number in range(20)]
    write_tar(tmp_path / "s.tar", pictures_then_texts(keys))
    rows = list(read_shard(str(tmp_path / "s.tar")))
    assert [(row.image_id, row.row, row.text) for row in rows] == [
        (key, number, f"text of {key}") for number, key in enumerate(keys)
    ]
    assert all(isinstance(row, ImageText) and row.image == png(row.row) for row in rows)


@pytest.mark.parametrize("limit", ["JOIN_ROWS", "JOIN_BYTES"])
def test_members_that_lie_too_far_apart_are_recognised(
    tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each member takes two blocks. The text of a key begins three rows, or six blocks, behind its picture.
    monkeypatch.setattr(webdataset, limit, {"JOIN_ROWS": 3, "JOIN_BYTES": 6 * 512}[limit])
    write_tar(tmp_path / "s.tar", pictures_then_texts("abc"))
    assert ends(tmp_path / "s.tar") == [(key, "ok") for key in "abc"]
    monkeypatch.setattr(webdataset, limit, {"JOIN_ROWS": 2, "JOIN_BYTES": 6 * 512 - 1}[limit])
    assert ends(tmp_path / "s.tar") == [
        *((key, "missing_text") for key in "abc"),
        *((key, "members_apart") for key in "abc"),
    ]


def test_neighbours_are_a_row_however_large_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "JOIN_BYTES", 100)
    write_tar(tmp_path / "s.tar", [("a.mp4", bytes(5000)), *pair("a", "text", 1)])
    assert ends(tmp_path / "s.tar") == [("a", "ok")]


def test_rows_come_in_order_and_wait_for_no_more_than_they_need(tmp_path: Path) -> None:
    members = [("a.png", png(1)), *pair("b", "text", 2), ("a.txt", b"late"), *pair("c", "text", 3), ("b.mp4", b"x")]
    write_tar(tmp_path / "s.tar", members)
    assert ends(tmp_path / "s.tar") == [("a", "ok"), ("b", "ok"), ("c", "ok")]


def test_a_key_that_comes_again_is_a_duplicate_near_and_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [*pair("a", "text", 1), *pair("b", "text", 2), *pair("a", "again", 3), ("b.png", png(4))]
    write_tar(tmp_path / "s.tar", members)
    expected = [("a", "ok"), ("b", "ok"), ("a", "duplicate_key"), ("b", "duplicate_key")]
    assert ends(tmp_path / "s.tar") == expected
    monkeypatch.setattr(webdataset, "JOIN_ROWS", 0)
    assert ends(tmp_path / "s.tar") == expected


def test_a_row_whose_key_was_there_before_is_joined_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "JOIN_ROWS", 2)
    # The first row is too far from the last text, the second is not.
    members = [*pair("a", "text", 1), ("a.png", png(2)), *pair("b", "text", 3), ("a.txt", b"again")]
    write_tar(tmp_path / "s.tar", members)
    assert ends(tmp_path / "s.tar") == [("a", "ok"), ("a", "duplicate_key"), ("b", "ok")]


def test_a_row_that_is_never_completed_keeps_others_back_only_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "JOIN_ROWS", 2)
    write_tar(tmp_path / "s.tar", [("a.png", png(1)), *(one for key in "bcdefgh" for one in pair(key, "text", 2))])
    num_read = 0
    content = Tar.content

    def counted(tar: Tar, member: tarfile.TarInfo) -> bytes:
        nonlocal num_read
        num_read += 1
        return content(tar, member)

    monkeypatch.setattr(Tar, "content", counted)
    first = next(read_shard(str(tmp_path / "s.tar")))
    # When c's picture comes, three rows have begun with a, which is then too far for a member to join.
    assert isinstance(first, Rejection) and first.reason == "missing_text" and num_read <= 2 * 3 + 1


def read_in_parts(path: Path, parts: Sequence[ShardPart]) -> list[ImageText | Rejection]:
    rows: list[ImageText | Rejection] = []
    for part in parts:
        of_part = list(read_shard(str(path), part=part))
        assert [row.row for row in of_part] == list(range(part.first_row, part.first_row + len(of_part)))
        assert part.end_row in (None, part.first_row + len(of_part))
        rows += of_part
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_a_tar_in_parts_has_the_rows_of_the_whole(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    members: list[tuple[str, bytes]] = []
    for number in range(60):
        row = pair(f"{chance.choice(['', 'ö/', 'n' * 150])}{number}", "text", number)
        kind = chance.choice(["ok", "ok", "no text", "no picture", "folder", "apart"])
        if kind == "apart" and members:  # the text comes one row later
            row = [row[0], *pair(f"between{number}", "text", number), row[1]]
        members += {"no text": row[:1], "no picture": row[1:]}.get(kind, row)
    write_tar(tmp_path / "s.tar", members)
    whole = list(read_shard(str(tmp_path / "s.tar")))
    for max_rows in (1, 7, 1000):
        parts = split_shard(str(tmp_path / "s.tar"), max_rows=max_rows, max_bytes=1 << 30)
        assert read_in_parts(tmp_path / "s.tar", parts) == whole
        assert {1: 30 < len(parts) < 80, 7: 7 <= len(parts) <= 11, 1000: len(parts) == 1}[max_rows]


def test_parts_are_cut_at_rows_or_bytes_and_never_within_a_row(tmp_path: Path) -> None:
    # Each row takes 2,048 bytes.
    write_tar(tmp_path / "s.tar", [member for number in range(5) for member in pair(str(number), "text", number)])
    path = str(tmp_path / "s.tar")
    by_rows = split_shard(path, max_rows=2, max_bytes=1 << 30)
    assert by_rows == (
        ShardPart(first_row=0, end_row=2, start_byte=0, end_byte=4096),
        ShardPart(first_row=2, end_row=4, start_byte=4096, end_byte=8192),
        ShardPart(first_row=4, end_row=None, start_byte=8192, end_byte=None),
    )
    assert split_shard(path, max_rows=100, max_bytes=2049) == by_rows
    write_tar(tmp_path / "s.tar", pictures_then_texts("abcde"))
    assert split_shard(path, max_rows=1, max_bytes=1) == (ShardPart(),)


def test_a_row_that_lies_around_others_is_cut_from_no_part(tmp_path: Path) -> None:
    # b and c lie between the picture and the text of a.
    members = [("a.png", png(1)), *pair("b", "text", 2), *pair("c", "text", 3), ("a.txt", b"text"), *pair("d", "x", 4)]
    write_tar(tmp_path / "s.tar", members)
    parts = split_shard(str(tmp_path / "s.tar"), max_rows=1, max_bytes=1 << 30)
    assert [(part.first_row, part.end_row) for part in parts] == [(0, 3), (3, None)]
    assert read_in_parts(tmp_path / "s.tar", parts) == list(read_shard(str(tmp_path / "s.tar")))


def test_tars_whose_rows_depend_on_rows_far_before_them_stay_whole(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*pair("a", "text", 1), *pair("b", "text", 2)])
    write_tar(tmp_path / "b.tar", [*pair("a", "text", 1), *pair("b", "text", 2), *pair("a", "again", 1)])
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(content + content)
    (tmp_path / "d.tar").write_bytes(gzip.compress(content))
    num_parts = [len(split_shard(str(tmp_path / f"{name}.tar"), max_rows=1, max_bytes=1)) for name in "abcd"]
    assert num_parts == [2, 1, 1, 1]


def test_the_last_part_of_a_damaged_tar_ends_with_the_lost_row(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [member for number in range(4) for member in pair(str(number), "text", number)])
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[: 7 * 1024])  # within row 3
    parts = split_shard(str(tmp_path / "s.tar"), max_rows=2, max_bytes=1 << 30)
    assert [part.first_row for part in parts] == [0, 2]
    rows = read_in_parts(tmp_path / "s.tar", parts)
    assert rows == list(read_shard(str(tmp_path / "s.tar")))
    assert isinstance(rows[-1], Rejection) and (rows[-1].reason, rows[-1].retryable) == ("truncated_shard", True)
