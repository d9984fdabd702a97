import io
import re
import tempfile
import threading

import numpy as np
import pytest

from evaluation.metrics.blocks import (
    MadeRows,
    NormalisedRows,
    Stacked,
    _fill,
    blocks,
    check_unit_length,
    in_memory,
    read_rows,
    take_rows,
)
from pipeline.schema import UserError


@pytest.fixture(params=["<f2", "<f4", "<f8", ">f4"])
def mapped(request, tmp_path):
    """A map of [40, 5] on disk, and what it holds."""
    values = np.random.default_rng(0).normal(size=(40, 5)).astype(request.param)
    np.save(tmp_path / "rows.npy", values)
    return np.load(tmp_path / "rows.npy", mmap_mode="r"), values.astype(np.float32)


def test_blocks_hold_all_rows_in_order(mapped):
    rows, values = mapped
    for block_rows in (1, 7, 40, 100):
        found = [(start, block.copy()) for start, block in blocks(rows, block_rows)]
        assert [start for start, _ in found] == list(range(0, 40, block_rows))
        np.testing.assert_array_equal(np.concatenate([block for _, block in found]), values)
        assert all(block.dtype == np.float32 for _, block in found)


class Counted(MadeRows):
    """Row n is (n, n); `seen` says which have been read."""

    def __init__(self, num_rows):
        self.shape = (num_rows, 2)
        self.seen = [threading.Event() for _ in range(num_rows)]

    def read_into(self, out, start):
        out[:] = np.arange(start, start + len(out))[:, None]
        for number in range(start, start + len(out)):
            self.seen[number].set()


@pytest.mark.parametrize("num_rows", [9, 10])
def test_the_next_block_is_read_meanwhile_and_does_not_touch_this_one(num_rows):
    rows = Counted(num_rows)
    for start, block in blocks(rows, 3):
        if start + 3 < num_rows:
            assert rows.seen[start + 3].wait(5)
        assert block.tolist() == [[number, number] for number in range(start, min(start + 3, num_rows))]
        assert not any(one.is_set() for one in rows.seen[start + 6 :])
    assert list(blocks(Counted(0), 3)) == []


def test_made_rows_are_read_by_slices():
    rows = Counted(9)
    assert rows[2:4].tolist() == [[2, 2], [3, 3]] and rows[2:4].dtype == np.float32
    assert rows[7:].tolist() == [[7, 7], [8, 8]]
    assert rows[4:2].shape == rows[12:15].shape == (0, 2)
    assert read_rows(rows, 2, 4).tolist() == [[2, 2], [3, 3]]
    out = np.empty((2, 2), np.float32)
    assert read_rows(rows, 2, 4, out) is out


def test_rows_in_memory_are_not_copied_unless_they_must_be_converted():
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert np.shares_memory(read_rows(rows, 1, 3, np.empty((2, 3), np.float32)), rows)
    for other in (rows.astype(np.float64), rows.astype(np.float16), np.asfortranarray(rows)):
        out = np.empty((2, 3), np.float32)
        assert read_rows(other, 1, 3, out) is out and out.tolist() == [[3, 4, 5], [6, 7, 8]]
        assert read_rows(other, 1, 3).dtype == np.float32
        taken = take_rows(other, np.array([3, 1]))
        assert taken.dtype == np.float32 and taken.tolist() == [[9, 10, 11], [3, 4, 5]]


def test_few_rows_are_read_whole_and_more_are_left_where_they_are(mapped, monkeypatch):
    rows, values = mapped  # 200 values
    monkeypatch.setattr("evaluation.metrics.blocks.IN_MEMORY_VALUES", 200)
    found = in_memory(rows)
    assert not isinstance(found, np.memmap) and found.dtype == np.float32 and found.tolist() == values.tolist()
    monkeypatch.setattr("evaluation.metrics.blocks.IN_MEMORY_VALUES", 199)
    assert in_memory(rows) is rows


@pytest.mark.parametrize("converted_bytes", [1, 64])  # a row at a time, and a few, of 10 to 40 bytes
def test_rows_are_converted_a_few_at_a_time(mapped, converted_bytes, monkeypatch):
    monkeypatch.setattr("evaluation.metrics.blocks._CONVERTED_BYTES", converted_bytes)
    rows, values = mapped
    np.testing.assert_array_equal(read_rows(rows, 3, 33), values[3:33])
    wide = np.zeros((30, 7), np.float32)
    read_rows(rows, 3, 33, wide[:, 1:6])  # not consecutive in memory
    np.testing.assert_array_equal(wide[:, 1:6], values[3:33])
    assert not wide[:, [0, 6]].any()


def test_a_map_may_start_anywhere_in_its_file(tmp_path):
    values = np.arange(8000, dtype=np.float32).reshape(-1, 2)
    (tmp_path / "rows.raw").write_bytes(b"x" * 9001 + values.tobytes())
    rows = np.memmap(tmp_path / "rows.raw", np.float32, "r", offset=9001, shape=(4000, 2))
    np.testing.assert_array_equal(read_rows(rows, 5, 4000), values[5:])
    np.testing.assert_array_equal(read_rows(rows[1500:], 5, 9), values[1505:1509])


def test_what_is_not_rows_of_a_file_is_read_from_memory(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((4, 2), np.float16))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert read_rows(rows + rows, 1, 3).tolist() == [[2, 2], [2, 2]]  # still called a map
    assert read_rows(rows[1:1], 0, 0).shape == (0, 2)
    for shape in ((0, 2), (3, 0)):
        np.save(tmp_path / "empty.npy", np.zeros(shape, np.float16))
        assert read_rows(np.load(tmp_path / "empty.npy", mmap_mode="r"), 0, shape[0]).shape == shape
    with tempfile.TemporaryFile() as nameless:
        nameless.write(np.full((4, 2), 3, np.float16).tobytes())
        nameless.flush()
        assert read_rows(np.memmap(nameless, np.float16, "r", shape=(4, 2)), 1, 3).tolist() == [[3, 3], [3, 3]]


def test_what_a_read_leaves_is_read_again():
    class Slow(io.BytesIO):
        def readinto(self, left):
            return super().readinto(left[:3])

    found = bytearray(8)
    _fill(Slow(b"abcdefgh"), memoryview(found))
    assert found == b"abcdefgh"


def test_slices_of_a_map_are_read_from_where_they_start(mapped):
    rows, values = mapped
    np.testing.assert_array_equal(read_rows(rows[11:30], 2, 9), values[13:20])
    np.testing.assert_array_equal(take_rows(rows[11:30], np.array([3, 0, 18])), values[[14, 11, 29]])
    np.testing.assert_array_equal(take_rows(rows, np.array([39])), values[39:])
    # Not rows of the file as they stand.
    np.testing.assert_array_equal(read_rows(rows[::2], 2, 9), values[::2][2:9])
    np.testing.assert_array_equal(read_rows(rows[:, 1:3], 2, 9), values[2:9, 1:3])
    np.testing.assert_array_equal(in_memory(rows)[:], values)


def test_a_copy_on_write_map_keeps_what_was_written_to_it(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((4, 2), np.float32))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="c")
    rows[1] = 7
    assert read_rows(rows, 0, 4).tolist() == [[0, 0], [7, 7], [0, 0], [0, 0]]


def test_stacked_arrays_read_as_one():
    parts = [np.arange(6, dtype=np.float16).reshape(3, 2), np.zeros((0, 2)), np.arange(6, 10).reshape(2, 2)]
    parts.append(np.arange(10, 16, dtype=np.float32).reshape(3, 2))
    assert Stacked(parts[:1]).shape == (3, 2)
    rows = Stacked(parts)
    assert rows.shape == (8, 2)
    for start, stop in ((0, 8), (1, 2), (2, 5), (3, 3), (4, 8)):
        assert rows[start:stop].tolist() == np.arange(16).reshape(8, 2)[start:stop].tolist()
    np.testing.assert_array_equal(take_rows(rows, np.array([7, 0])), [[14, 15], [0, 1]])
    with pytest.raises(ValueError, match=r"^parts have \[2, 3\] columns; they must have the same number$"):
        Stacked([np.zeros((1, 2)), np.zeros((1, 3))])
    assert rows[1:7].dtype == take_rows(rows, np.array([1])).dtype == np.float32


def test_a_cut_file_and_values_that_are_not_finite_are_named(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((1000, 8), np.float32))
    rows = np.load(path, mmap_mode="r")
    with open(path, "r+b") as file:
        file.truncate(20_000)
    # 128 bytes before the rows, six blocks of 3,200, and 672 bytes of the seventh.
    message = f"^{re.escape(str(path))} ends 2528 bytes too early; write it again$"
    with pytest.raises(OSError, match=message):
        list(blocks(rows, 100))
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="^an embedding is not finite; embed again$"):
            list(blocks(np.array([[1.0], [value]]), 1))


def test_raw_rows_are_normalised_and_bad_ones_named():
    raw = np.array([[3, 4], [0, 2], [0, 0], [np.inf, 1]], np.float16)
    rows = NormalisedRows(raw, "x.npy")
    np.testing.assert_allclose(rows[0:2], [[0.6, 0.8], [0, 1]])
    for wrong, norm in ((2, "0.0"), (3, "inf")):
        message = f"^row {wrong} of x.npy has norm {norm}, it must be finite and above 0; embed again$"
        with pytest.raises(UserError, match=message):
            rows[1:4] if wrong == 2 else rows[3:4]
    small = NormalisedRows(np.array([[0, 1e-3], [1e-6, 0], [9e-7, 0]], np.float32), "x.npy")
    assert small[0:2].tolist() == [[0, 1], [1, 0]]
    with pytest.raises(UserError, match="^row 2 of x.npy has norm 8.99"):
        small[2:3]


def test_many_rows_are_normalised_a_few_at_a_time():
    raw = np.random.default_rng(0).normal(size=(600, 3))
    rows = NormalisedRows(raw, "x.npy")
    assert rows.shape == (600, 3)
    np.testing.assert_allclose(rows[5:590], (raw / np.linalg.norm(raw, axis=1, keepdims=True))[5:590], rtol=1e-5)
    raw[550] = 0
    with pytest.raises(UserError, match="^row 550 of x.npy"):
        rows[5:590]


def test_rows_of_length_one_pass_to_within_a_thousandth():
    check_unit_length(np.array([[0.6, 0.8], [1.0009, 0], [0, -0.9991]], np.float32), "queries")
    check_unit_length(np.array([[0.57736] * 3], np.float16), "queries")
    # Float32 rows of which the lengths are exactly 1.001 and 0.999 in double precision.
    limits = [[1.0009999, 0.00038092447, 0], [0.99892414, 0.012308634, 0.00026024075]]
    assert np.linalg.norm(np.array(limits, np.float32).astype(float), axis=1).tolist() == [1 + 1e-3, 1 - 1e-3]
    check_unit_length(np.array(limits, np.float32), "queries")
    check_unit_length(np.array([[np.nan, 3], [np.inf, 0]]), "queries")  # refused where they are multiplied
    check_unit_length(np.zeros((0, 2)), "queries")
    check_unit_length(np.ones(3), "queries")  # so are shapes


@pytest.mark.parametrize(
    ("row", "length"), [([0, 1.0011], "1.001"), ([0.9989, 0], "0.9989"), ([0, 0], "0"), ([3e30, 4e30], "5e\\+30")]
)
def test_a_row_of_another_length_is_named(row, length):
    rows = np.tile(np.array([0.6, 0.8], np.float32), (2500, 1))
    rows[1500] = row
    with pytest.raises(ValueError, match=f"^row 1500 of `queries` has length {length}; divide each row by its norm$"):
        check_unit_length(rows, "queries")


@pytest.mark.parametrize(("position", "is_seen"), [(0, True), (1023, True), (1024, False), (2047, False), (2499, True)])
def test_of_rows_on_disk_the_first_and_last_lengths_are_checked(tmp_path, position, is_seen):
    rows = np.tile(np.array([0.6, 0.8], np.float32), (2500, 1))
    rows[position] = [3, 4]
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    if is_seen:
        with pytest.raises(ValueError, match=f"^row {position} of `gallery` has length 5; "):
            check_unit_length(mapped, "gallery")
    else:
        check_unit_length(mapped, "gallery")
