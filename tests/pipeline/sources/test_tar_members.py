"""Tars with several end marks, holes, links, and those that GNU tar makes."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from pipeline.schema import ImageText, Rejection
from pipeline.sources.read import read_shard
from pipeline.sources.tar_members import Tar
from tests.fakes import pair, png, write_tar

BLOCK = 512
RECORD = 20 * BLOCK


def ends(path: Path) -> list[tuple[str, str]]:
    """Returns (id, "ok" or the reason) of each row, and checks that rows are numbered without a gap."""
    rows = list(read_shard(str(path)))
    assert [row.row for row in rows] == list(range(len(rows)))
    assert all(row.retryable == (row.reason == "truncated_shard") for row in rows if isinstance(row, Rejection))
    return [(row.image_id, row.reason if isinstance(row, Rejection) else "ok") for row in rows]


def gnu_tar(folder: Path, path: Path, *arguments: str) -> None:
    subprocess.run(["tar", "--create", f"--file={path}", f"--directory={folder}", *arguments], check=True)


def write_pairs(folder: Path, *keys: str) -> None:
    folder.mkdir(exist_ok=True)
    for shade, key in enumerate(keys):
        for name, content in pair(key, f"text of {key}", shade):
            (folder / name).write_bytes(content)


def test_tars_that_were_concatenated_are_read_to_the_end(tmp_path: Path) -> None:
    for name, keys in (("x", "ab"), ("y", "cd"), ("z", "e")):
        write_pairs(tmp_path / name, *keys)
        gnu_tar(tmp_path / name, tmp_path / f"{name}.tar", "--sort=name", ".")
    joined = b"".join((tmp_path / f"{name}.tar").read_bytes() for name in "xyz")
    assert len(joined) % RECORD == 0
    (tmp_path / "s.tar").write_bytes(joined)
    expected = [(f"./{key}", "ok") for key in "abcde"]
    assert ends(tmp_path / "s.tar") == expected
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(joined))
    assert ends(tmp_path / "s.tar.gz") == expected


@pytest.mark.parametrize("blocks_in_record", [1, 20, 4])
def test_tars_with_records_of_their_own_can_be_concatenated_if_the_mark_has_two_blocks_or_fills_a_usual_record(
    tmp_path: Path, blocks_in_record: int
) -> None:
    # Records of one block: just two blocks of zeros. Of four blocks: up to five, which fill no record of twenty blocks.
    write_tar(tmp_path / "y.tar", pair("b", "text", 2))
    content = 4 * BLOCK
    write_pairs(tmp_path / "x", "a")
    gnu_tar(tmp_path / "x", tmp_path / "x.tar", f"--blocking-factor={blocks_in_record}", "a.png", "a.txt")
    size = (tmp_path / "x.tar").stat().st_size
    assert size == {1: content + 2 * BLOCK, 4: content + 4 * BLOCK, 20: RECORD}[blocks_in_record]
    (tmp_path / "s.tar").write_bytes((tmp_path / "x.tar").read_bytes() + (tmp_path / "y.tar").read_bytes())
    # A mark that cannot be told from a hole counts as one: one row says so, and the rest is read.
    hole = [("s:1", "truncated_shard")] if blocks_in_record == 4 else []
    assert ends(tmp_path / "s.tar") == [("a", "ok"), *hole, ("b", "ok")]


def test_records_are_counted_from_the_beginning_of_each_tar(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x", "a")
    gnu_tar(tmp_path / "x", tmp_path / "s.tar", "--blocking-factor=1", "a.png", "a.txt")
    write_tar(tmp_path / "y.tar", pair("b", "text", 2))
    write_tar(tmp_path / "z.tar", pair("c", "text", 3))
    with open(tmp_path / "s.tar", "ab") as file:
        file.write((tmp_path / "y.tar").read_bytes() + (tmp_path / "z.tar").read_bytes())
    assert ends(tmp_path / "s.tar") == [("a", "ok"), ("b", "ok"), ("c", "ok")]


def test_a_single_block_of_zeros_is_a_hole_even_where_a_record_ends(tmp_path: Path) -> None:
    # 4 blocks of a, 15 of b (a header, and 14 of its text), a block of zeros: one record.
    write_tar(tmp_path / "x.tar", [*pair("a", "text", 1), ("b.txt", b"x" * (14 * BLOCK))])
    write_tar(tmp_path / "y.tar", pair("c", "text", 2))
    content = (tmp_path / "x.tar").read_bytes()[: 19 * BLOCK]
    (tmp_path / "s.tar").write_bytes(content + bytes(BLOCK) + (tmp_path / "y.tar").read_bytes())
    assert ends(tmp_path / "s.tar") == [
        ("a", "ok"), ("b", "missing_image"), ("s:2", "truncated_shard"), ("c", "ok"),
    ]  # fmt: skip


def test_members_that_were_read_are_forgotten(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [member for key in "abc" for member in pair(key, "text", 1)])
    with open(tmp_path / "s.tar", "rb") as file:
        tar = Tar(file)
        for _ in tar:
            assert tar._archive is not None and not tar._archive.members  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_blocks", [1, 4, 30])
def test_zeros_inside_a_tar_cost_one_retryable_row_and_what_follows_is_read(tmp_path: Path, num_blocks: int) -> None:
    write_tar(tmp_path / "s.tar", [*pair("a", "text", 1), *pair("b", "text", 2), *pair("c", "text", 3)])
    whole = (tmp_path / "s.tar").read_bytes()
    # Each member takes two blocks, a header and its content: b begins at block 4, c at block 8.
    (tmp_path / "s.tar").write_bytes(whole[: 8 * BLOCK] + bytes(num_blocks * BLOCK) + whole[8 * BLOCK :])
    assert ends(tmp_path / "s.tar") == [("a", "ok"), ("b", "ok"), ("s:2", "truncated_shard"), ("c", "ok")]


def test_zeros_that_end_within_a_member_cost_the_rest(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [*pair("a", "text", 1), *pair("b", "text", 2), *pair("c", "text", 3)])
    whole = bytearray((tmp_path / "s.tar").read_bytes())
    whole[4 * BLOCK : 5 * BLOCK] = bytes(BLOCK)  # the header of b's picture: its bytes follow
    (tmp_path / "s.tar").write_bytes(whole)
    assert ends(tmp_path / "s.tar") == [("a", "ok"), ("s:1", "truncated_shard")]


# A mark has two blocks, which are padded to a record: 21 blocks at most.
@pytest.mark.parametrize(("num_blocks", "is_lost"), [(1, False), (2, False), (21, False), (22, True), (5000, True)])
def test_more_zeros_at_the_end_than_a_record_has_are_a_lost_end(tmp_path: Path, num_blocks: int, is_lost: bool) -> None:
    write_tar(tmp_path / "s.tar", pair("a", "text", 1))
    content = (tmp_path / "s.tar").read_bytes()[: 4 * BLOCK]
    (tmp_path / "s.tar").write_bytes(content + bytes(num_blocks * BLOCK))
    assert ends(tmp_path / "s.tar") == [("a", "ok"), *([("s:1", "truncated_shard")] if is_lost else [])]


def test_what_is_no_tar_behind_the_end_is_a_lost_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", pair("a", "text", 1))
    with open(tmp_path / "s.tar", "ab") as file:
        file.write(b"no header" * 100)
    assert ends(tmp_path / "s.tar") == [("a", "ok"), ("s:1", "truncated_shard")]


def test_a_tar_without_members_has_no_rows(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [])
    assert ends(tmp_path / "s.tar") == []


def test_a_bad_checksum_at_the_end_of_a_gzip_file_costs_one_row(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", pair("a", "text", 1))
    packed = gzip.compress((tmp_path / "s.tar").read_bytes())
    (tmp_path / "s.tar.gz").write_bytes(packed[:-8] + bytes(8))  # the last eight bytes: checksum and length
    assert ends(tmp_path / "s.tar.gz") == [("a", "ok"), ("s:1", "truncated_shard")]
    (tmp_path / "s.tar.gz").write_bytes(packed + b"tail")
    assert ends(tmp_path / "s.tar.gz") == [("a", "ok"), ("s:1", "truncated_shard")]


def test_a_tar_is_decompressed_by_its_first_bytes_whatever_its_name_says(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", pair("a", "text", 1))
    for name in ("t.tar", "t.tgz", "t"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "s.tar").read_bytes()))
        assert ends(tmp_path / name) == [("a", "ok")]
    (tmp_path / "u.tar.gz").write_bytes((tmp_path / "s.tar").read_bytes())
    assert ends(tmp_path / "u.tar.gz") == [("a", "ok")]


def test_long_names_and_sparse_files_of_gnu_tar_are_read(tmp_path: Path) -> None:
    long = "n" * 180
    write_pairs(tmp_path / "x", long, "b")
    os.truncate(tmp_path / "x" / "b.txt", 500_000)  # a hole of zeros, which are cleaned away
    for form in ("gnu", "pax"):
        options = ("--sort=name", "--sparse", f"--format={form}")
        gnu_tar(tmp_path / "x", tmp_path / "s.tar", *options, ".")
        assert (tmp_path / "s.tar").stat().st_size < 500_000
        rows = list(read_shard(str(tmp_path / "s.tar")))
        assert [(row.image_id, row.text) for row in rows] == [("./b", "text of b"), (f"./{long}", f"text of {long}")]
        assert all(isinstance(row, ImageText) for row in rows)


def test_the_place_of_a_picture_with_holes_is_not_known(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x", "a", "b")
    os.truncate(tmp_path / "x" / "b.png", 500_000)
    gnu_tar(tmp_path / "x", tmp_path / "s.tar", "--sort=name", "--sparse", ".")
    a, b = read_shard(str(tmp_path / "s.tar"))
    assert isinstance(a, ImageText) and a.image_start_byte is not None
    assert isinstance(b, ImageText) and b.image_start_byte is None and len(b.image) == 500_000


def test_hard_links_of_gnu_tar_are_followed(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x", "a", "b")
    (tmp_path / "x" / "c.png").hardlink_to(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "c.txt").symlink_to("b.txt")
    gnu_tar(tmp_path / "x", tmp_path / "s.tar", "--sort=name", "a.png", "a.txt", "b.png", "b.txt", "c.png", "c.txt")
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert tar.getmember("c.png").islnk() and tar.getmember("c.txt").issym()
    last = list(read_shard(str(tmp_path / "s.tar")))[-1]
    assert isinstance(last, ImageText)
    assert (last.image_id, last.image, last.text) == ("c", png(0), "text of b")
    assert last.image_start_byte == 512  # that of a.png, the first member


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("target", "kind", "expected"),
    [
        ("../x/a.png", tarfile.SYMTYPE, "ok"),  # from the folder of the link
        ("x/a.png", tarfile.LNKTYPE, "ok"),  # from the root of the tar
        ("x/a.png", tarfile.SYMTYPE, "unresolved_link"),
        ("/etc/passwd", tarfile.SYMTYPE, "unresolved_link"),
        ("../../../etc/passwd", tarfile.SYMTYPE, "unresolved_link"),
        ("b.png", tarfile.SYMTYPE, "unresolved_link"),  # itself
        ("loop.png", tarfile.SYMTYPE, "unresolved_link"),
    ],
)
def test_links_lead_to_members_of_the_tar_and_nowhere_else(
    tmp_path: Path, target: str, kind: bytes, expected: str
) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in pair("x/a", "text", 1):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        tar.addfile(link("y/b.png", target, kind))
        member = tarfile.TarInfo("y/b.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"text"))
        tar.addfile(link("y/loop.png", "b.png"))
    assert ends(tmp_path / "s.tar")[:2] == [("x/a", "ok"), ("y/b", expected)]
    packed = tmp_path / "s.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "s.tar").read_bytes()))
    assert ends(packed)[1] == ("y/b", "unresolved_link")  # of a compressed tar, none is followed


def test_members_with_names_that_lead_out_of_a_folder_are_rows_and_are_never_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = [*pair("../../up", "text", 1), *pair(f"{tmp_path}/absolute", "text", 2)]
    write_tar(tmp_path / "in" / "s.tar", members)
    assert ends(tmp_path / "in" / "s.tar") == [("../../up", "ok"), (f"{tmp_path}/absolute", "ok")]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "s.tar"]
