import numpy as np
import pytest

from evaluation.metrics.blocks import (
    NormalisedRows,
    Stacked,
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


def test_slices_of_a_map_are_read_from_where_they_start(mapped):
    rows, values = mapped
    np.testing.assert_array_equal(read_rows(rows[11:30], 2, 9), values[13:20])
    np.testing.assert_array_equal(take_rows(rows[11:30], np.array([3, 0, 18])), values[[14, 11, 29]])
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
    parts = [np.arange(6, dtype=np.float16).reshape(3, 2), np.zeros((0, 2)), np.arange(6, 16).reshape(5, 2)]
    rows = Stacked(parts)
    assert rows.shape == (8, 2)
    for start, stop in ((0, 8), (1, 2), (2, 5), (3, 3), (4, 8)):
        assert rows[start:stop].tolist() == np.arange(16).reshape(8, 2)[start:stop].tolist()
    np.testing.assert_array_equal(take_rows(rows, np.array([7, 0])), [[14, 15], [0, 1]])
    with pytest.raises(ValueError, match="columns; they must have the same number"):
        Stacked([np.zeros((1, 2)), np.zeros((1, 3))])


def test_a_cut_file_and_values_that_are_not_finite_are_named(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((1000, 8), np.float32))
    rows = np.load(path, mmap_mode="r")
    with open(path, "r+b") as file:
        file.truncate(20_000)
    with pytest.raises(OSError, match="ends .* bytes too early"):
        list(blocks(rows, 100))
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            list(blocks(np.array([[1.0], [value]]), 1))


def test_raw_rows_are_normalised_and_bad_ones_named():
    raw = np.array([[3, 4], [0, 2], [0, 0], [np.inf, 1]], np.float16)
    rows = NormalisedRows(raw, "x.npy")
    np.testing.assert_allclose(rows[0:2], [[0.6, 0.8], [0, 1]])
    for wrong in (2, 3):
        with pytest.raises(UserError, match=f"row {wrong} of x.npy has norm"):
            rows[wrong : wrong + 1]


def test_rows_of_length_one_pass_to_within_a_thousandth():
    check_unit_length(np.array([[0.6, 0.8], [1.0009, 0], [0, -0.9991]], np.float32), "queries")
    check_unit_length(np.array([[0.57736] * 3], np.float16), "queries")
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
