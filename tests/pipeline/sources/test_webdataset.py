"""Tars in, rows or reasons out."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
from pathlib import Path

import pytest
import zstandard

from pipeline.schema import ImageText, Rejection, UserError
from pipeline.sources.read import read_shard, shard_name
from pipeline.sources.tar_members import Tar
from tests.fakes import pair, png, write_tar


def ends(path: Path) -> list[tuple[int, str, str]]:
    """Returns (row, id, "ok" or the reason) of each row."""
    return [
        (item.row, item.image_id, item.reason if isinstance(item, Rejection) else "ok")
        for item in read_shard(str(path))
    ]


def test_a_good_row_carries_its_bytes_text_and_place(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write_tar(path, [*pair("a", "first", 1), ("b.json", b"{}"), *pair("b", " second\n", 2)])
    rows = list(read_shard(str(path)))
    # Before the picture: a header and a block for each of a.png and a.txt, the header of b.json, which has one, and
    # that of b.png.
    start_byte = 512 * (2 + 2 + 2 + 1)
    assert rows[1] == ImageText(
        image_id="b", image=png(2), text="second", shard=str(path), row=1, image_start_byte=start_byte
    )
    assert path.read_bytes()[start_byte:].startswith(png(2))


def test_a_picture_that_does_not_lie_in_the_file_as_it_is_has_no_place(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", pair("a", "text", 1))
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress((tmp_path / "s.tar").read_bytes()))
    [row] = read_shard(str(tmp_path / "s.tar.gz"))
    assert isinstance(row, ImageText) and row.image_start_byte is None


def test_a_name_that_is_no_utf8_is_escaped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, content in (("caf\u00e9.png", png(1)), ("caf\u00e9.txt", b"text")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert ends(tmp_path / "s.tar") == [(0, "caf\\xe9", "ok")]


def test_each_kind_of_bad_row_has_its_reason_and_rows_are_counted_without_a_gap(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "s.tar",
        [
            *pair("a", "text", 1),
            ("b.png", png(2)),
            ("c.txt", b"alone"),
            *pair("d", "  ", 3),
            *pair("a", "again", 4),
            ("e.png", png(5)),
            ("e.txt", b"\xff\xfe"),
            ("f.json", b"{}"),
            *pair("g", "text", 6),
            *pair("g", "side by side", 7),
        ],
    )
    assert ends(tmp_path / "s.tar") == [
        (0, "a", "ok"),
        (1, "b", "missing_text"),
        (2, "c", "missing_image"),
        (3, "d", "empty_text"),
        (4, "a", "duplicate_key"),
        (5, "e", "undecodable_text"),
        (6, "f", "missing_image"),
        (7, "g", "ok"),
        (8, "g", "duplicate_key"),
    ]


# a takes blocks 0-3 (two headers, two contents of less than 512 bytes), b blocks 4-7.
@pytest.mark.parametrize(
    ("kept_bytes", "expected"),
    [
        (512 * 8, [(0, "a", "ok"), (1, "b", "ok"), (2, "s:2", "truncated_shard")]),  # only the end mark is gone
        (512 * 7 + 1, [(0, "a", "ok"), (1, "b", "truncated_shard")]),  # in the text of b
        (512 * 5 + 10, [(0, "a", "ok"), (1, "s:1", "truncated_shard")]),  # in the picture of b
        (512 * 4, [(0, "a", "ok"), (1, "s:1", "truncated_shard")]),  # between a and b
        (100, [(0, "s:0", "unreadable_shard")]),
        (0, [(0, "s:0", "unreadable_shard")]),
    ],
)
def test_a_cut_tar_keeps_the_rows_before_the_cut_and_ends_with_one_retryable_row(
    tmp_path: Path, kept_bytes: int, expected: list[tuple[int, str, str]]
) -> None:
    path = tmp_path / "s.tar"
    write_tar(path, [*pair("a", "text", 1), *pair("b", "text", 2)])
    path.write_bytes(path.read_bytes()[:kept_bytes])
    if kept_bytes == 512 * 5 + 10:
        assert len(png(2)) > 10
    found = ends(path)
    assert found == expected
    last = list(read_shard(str(path)))[-1]
    assert isinstance(last, Rejection) and last.retryable


def test_a_file_that_is_no_tar_is_one_failed_row(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"hello" * 1000)
    assert ends(tmp_path / "s.tar") == [(0, "s:0", "unreadable_shard")]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard.ZstdCompressor().compress)],
)
def test_a_damaged_compressed_tar_ends_with_one_failed_row(tmp_path: Path, suffix: str, pack) -> None:
    noise = random.Random(0).randbytes(100_000)
    write_tar(tmp_path / "s.tar", [*pair("a", "text", 1), ("b.png", noise), ("b.txt", b"text")])
    packed = bytearray(pack((tmp_path / "s.tar").read_bytes()))
    path = tmp_path / f"s.tar.{suffix}"
    path.write_bytes(packed)
    assert [reason for _, _, reason in ends(path)] == ["ok", "ok"]
    packed[len(packed) // 2 :] = b"damage"
    path.write_bytes(packed)
    assert [reason for _, _, reason in ends(path)][-1] in ("truncated_shard", "unreadable_shard")
    packed[30:60] = bytes(30)
    path.write_bytes(packed)
    assert [reason for _, _, reason in ends(path)][-1] in ("truncated_shard", "unreadable_shard")


def test_a_file_that_cannot_be_read_now_is_an_error_and_no_lost_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.tar cannot be read .*No such file.*; check that it exists, and run"):
        ends(tmp_path / "gone.tar")


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/laion.00000.tar", "laion.00000"), ("gs://b/x.tar.gz", "x"), ("x", "x"), ("a.tar.d/00001", "00001")],
)
def test_a_shard_is_named_after_its_file_without_the_suffix_of_tars(path: str, name: str) -> None:
    assert shard_name(path) == name


def test_what_is_neither_picture_nor_text_is_not_read_and_files_of_macos_are_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [
        ("._a.png", b"x"),
        *pair("a", "text", 1),
        ("a.mp4", b"video"),
        ("c/._b.txt", b"x"),
        *pair("b", "more", 2),
    ]
    write_tar(tmp_path / "s.tar", members)
    read = []
    content = Tar.content
    monkeypatch.setattr(Tar, "content", lambda tar, member: read.append(member.name) or content(tar, member))
    assert [reason for _, _, reason in ends(tmp_path / "s.tar")] == ["ok", "ok"]
    assert len(read) == 4 and not any("._" in name or name.endswith("mp4") for name in read)


def header(name: str, size: bytes) -> bytes:
    """Returns the header of a file, with a size written as `size`."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" + (-1024).to_bytes(11, "big", signed=True),  # back to this header: reading would never end
        b"\xff" + (-512).to_bytes(11, "big", signed=True),
        b"\x80" + (1 << 80).to_bytes(11, "big"),
    ],
)
def test_sizes_that_no_file_can_have_are_damage(tmp_path: Path, size: bytes) -> None:
    write_tar(tmp_path / "good.tar", [*pair("a", "text", 1)])
    good = (tmp_path / "good.tar").read_bytes().rstrip(b"\0")
    good += bytes(-len(good) % 512)
    (tmp_path / "s.tar").write_bytes(good + header("b.txt", size) + bytes(1024))
    assert [reason for _, _, reason in ends(tmp_path / "s.tar")] == ["ok", "truncated_shard"]
