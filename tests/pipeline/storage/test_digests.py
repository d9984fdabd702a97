"""Blocks of digests, and the files that map digests to values."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.schema import UserError
from pipeline.storage.digests import (
    DigestMap,
    block_type,
    digests,
    group_starts,
    join_blocks,
    make_block,
    num_partitions,
    split_block,
    write_digest_map,
)

PLACED = block_type(("place", "<i4"))


def block_of(*rows: tuple[int, int, int]) -> np.ndarray:
    of = np.array([row[:2] for row in rows], np.uint64).reshape(-1, 2)
    return make_block(PLACED, of, place=np.array([row[2] for row in rows], np.int32))


def test_the_digest_of_a_text_is_its_blake2b_of_128_bits() -> None:
    expected = hashlib.blake2b("hé".encode(), digest_size=16).digest()
    found = digests(["hé", ""])
    assert (found.shape, found.dtype) == ((2, 2), np.dtype("<u8"))
    assert found[0].tobytes() == expected and found[1].tobytes() == hashlib.blake2b(b"", digest_size=16).digest()
    assert digests([]).shape == (0, 2)


def test_the_number_of_partitions_grows_with_the_units_up_to_a_limit() -> None:
    # A partition for each 64 units.
    assert [num_partitions(number) for number in (0, 127, 128, 8191, 8192, 100_000)] == [1, 1, 2, 127, 128, 128]


def test_rows_of_a_partition_stay_together_in_their_order() -> None:
    block = block_of((4, 9, 0), (3, 1, 1), (7, 0, 2), (3, 1, 3), (2**64 - 1, 0, 4))
    # 4, 3, 7, 3 and 2^64 - 1 modulo 3 are 1, 0, 1, 0 and 0.
    parts = {part: join_blocks([rows], PLACED).tolist() for part, rows in split_block(block, 3)}
    assert parts == {0: [(3, 1, 1), (3, 1, 3), (2**64 - 1, 0, 4)], 1: [(4, 9, 0), (7, 0, 2)]}
    assert list(split_block(block_of(), 3)) == []
    many = block_of(*((number % 2, 0, number) for number in range(1000)))
    even = dict(split_block(many, 2))[0]
    assert join_blocks([even], PLACED)["place"].tolist() == list(range(0, 1000, 2))


def test_blocks_are_joined_in_order() -> None:
    joined = join_blocks([block_of((1, 2, 3)).tobytes(), b"", block_of((4, 5, 6), (7, 8, 9)).tobytes()], PLACED)
    assert joined.tolist() == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


def test_a_group_starts_where_either_half_of_the_digest_changes() -> None:
    block = block_of((1, 1, 0), (1, 1, 1), (1, 2, 2), (2, 2, 3), (2, 2, 4))
    starts = group_starts(block)
    assert (starts.tolist(), starts.dtype) == ([True, False, True, True, False], bool)
    assert group_starts(block_of()).tolist() == []


def test_a_map_finds_each_digest_and_gives_the_default_for_others(tmp_path: Path) -> None:
    of = np.array([[7, 2], [9, 0], [7, 1], [3, 5], [7, 3]], np.uint64)
    written = write_digest_map(str(tmp_path / "map"), of, np.array([0.5, 1.5, 2.5, 3.5, 4.5]))
    content = b"<f8\n" + b"".join(
        np.uint64(high).tobytes() + np.uint64(low).tobytes() + np.float64(value).tobytes()
        for high, low, value in [(3, 5, 3.5), (7, 1, 2.5), (7, 2, 0.5), (7, 3, 4.5), (9, 0, 1.5)]
    )
    assert (tmp_path / "map").read_bytes() == content
    assert written == DigestMap(path=str(tmp_path / "map"), sha256=hashlib.sha256(content).hexdigest())
    # There is none with the halves (7, 4), (9, 1), (8, 0), (3, 4), and none behind the last one.
    wanted = np.array([[7, 3], [7, 1], [7, 4], [9, 1], [8, 0], [3, 5], [3, 4], [10, 0], [9, 0], [7, 2]], np.uint64)
    expected = [4.5, 2.5, -1.0, -1.0, -1.0, 3.5, -1.0, -1.0, 1.5, 0.5]
    assert written.lookup(wanted, default=-1.0).tolist() == expected
    # 10 is the byte that ends the first line.
    numbers = write_digest_map(str(tmp_path / "numbers"), of[:1], np.array([10], np.int32))
    found = numbers.lookup(of[:2], default=-1)
    assert found.tolist() == [10, -1] and found.dtype == np.int32
    empty = write_digest_map(str(tmp_path / "empty"), of[:0], np.zeros(0))
    assert empty.lookup(of[:1], default=np.inf).tolist() == [np.inf]


def test_a_map_that_is_not_the_one_written_is_refused(tmp_path: Path) -> None:
    written = write_digest_map(str(tmp_path / "map"), digests(["a"]), np.zeros(1))
    (tmp_path / "map").write_bytes(b"<f8\n")
    with pytest.raises(UserError) as refused:
        written.lookup(digests(["a"]), default=0.0)
    assert str(refused.value) == (
        f"{tmp_path}/map was changed while it was in use; run again, and only one run at a time"
    )
