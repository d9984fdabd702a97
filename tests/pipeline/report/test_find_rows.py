"""Rows of a set by their ids: exact ones, starts of ids, and ids that are not there."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report.find_rows import find_rows
from pipeline.report.set_files import open_set_files


def test_a_start_that_fits_one_id_stands_for_it_and_one_that_fits_several_lists_them(tmp_path: Path) -> None:
    ids = ["cat-1", "cat-10", "cat-2", "dog-1"]
    files = open_set_files(str(write_tables(tmp_path, ids)))
    (found,), messages = find_rows(files, ["dog"])
    assert found.record["image_id"] == "dog-1" and not messages
    # An id that is there is meant itself, though another starts with it.
    (found,), messages = find_rows(files, ["cat-1"])
    assert found.record["image_id"] == "cat-1" and not messages
    found_none, messages = find_rows(files, ["cat"])
    assert not found_none
    assert messages == ["--image cat is the start of 3 ids: cat-1, cat-10, cat-2; give one"]


def test_of_many_ids_with_one_start_ten_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    files = open_set_files(str(write_tables(tmp_path, [f"p{number:02}" for number in range(25)])))
    _, (message,) = find_rows(files, ["p"])
    listed = ", ".join(f"p{number:02}" for number in range(10))
    assert message == f"--image p is the start of 25 ids: {listed} and 15 more; give one"


def test_the_nearest_ids_are_those_that_a_typing_error_leaves(tmp_path: Path) -> None:
    ids = [f"photo-{number:05}" for number in range(2000)]
    files = open_set_files(str(write_tables(tmp_path, ids)))
    for wrong, right in (
        ("foto-01234", "photo-01234"),
        ("photo-01243x", "photo-01243"),
        ("photo_01234", "photo-01234"),
    ):
        _, (message,) = find_rows(files, [wrong])
        assert message.startswith(f"--image {wrong} is not among the 2000 rows of ")
        assert message.split("the nearest ids are ")[1].split(", ")[0] == right


def test_parts_whose_statistics_exclude_an_id_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"p{number:04}" for number in range(1000)]
    folder = write_tables(tmp_path, ids, row_group_size=100)
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: read.append((group, options.get("columns"))) or original(self, group, **options),
    )
    (found,), _ = find_rows(open_set_files(str(folder)), ["p0750"])
    assert found.record["image_id"] == "p0750" and found.ledger["row"] == 750
    # The ids of one part, then that part of the two tables.
    assert read == [(7, ["image_id"]), (7, None), (7, None)]


def write_tables(folder: Path, ids: list[str], row_group_size: int = 1000) -> Path:
    """Returns a folder with the tables of an unfinished set of one shard that has these ids."""
    columns = {"image_id": ids, "row": list(range(len(ids))), "outcome": ["kept"] * len(ids), "stage": [""] * len(ids)}
    for name in ("annotations", "ledger"):
        (folder / "i2e" / name).mkdir(parents=True)
        table = pa.table({**columns, "reason": [""] * len(ids)})
        pq.write_table(table, folder / "i2e" / name / "pairs-0.parquet", row_group_size=row_group_size)
    return folder / "i2e"
