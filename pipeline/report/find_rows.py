"""Rows of a set by the id of their picture: exact ids, prefixes, and the nearest ids to one that is not there."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.report.set_files import SetFiles, check_columns, open_table
from pipeline.schema import UserError

_ID = "image_id"
_LISTED = 10  # ids in a message
_NEAREST = 5
_NEAR = 50  # ids with most in common at both ends, of which the nearest are chosen
_LAST = "\U0010ffff"  # sorts after every character
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundRow:
    """An input row: what annotating found for it, and how it ended."""

    record: Mapping[str, Any]
    """Its row of the annotations."""
    ledger: Mapping[str, Any] | None
    """Its row of the ledger; None if the set was not assembled."""


def find_rows(files: SetFiles, image_ids: Sequence[str]) -> tuple[list[FoundRow], list[str]]:
    """Returns the rows with these ids, in their order, and a message for each id that names no row or several ids.

    An id that is not there counts as the start of an id, if exactly one starts with it. Several rows may have one id.

    Raises:
        UserError: an id is empty, or a file is missing or damaged.
    """
    if not all(image_ids):
        raise UserError("--image is empty; give the id of a row, or its first characters")
    places = _places(files, image_ids)
    messages = []
    meant = {}
    for image_id in dict.fromkeys(image_ids):
        if image_id in places:
            meant[image_id] = image_id
            continue
        started, num_started = _ids_starting_with(files, image_id)
        if num_started == 1:
            meant[image_id] = started[0]
        elif num_started:
            more = f" and {num_started - len(started)} more" if num_started > len(started) else ""
            messages.append(
                f"--image {image_id} is the start of {num_started} ids: {', '.join(started)}{more}; give one"
            )
        else:
            nearest, num_rows = _nearest_ids(files, image_id)
            messages.append(
                f"--image {image_id} is not among the {num_rows} rows of {files.directory}; the nearest ids are "
                f"{', '.join(nearest)}"
                if nearest
                else f"--image {image_id} is not there: {files.directory} has 0 rows"
            )
    places |= _places(files, sorted(set(meant.values()) - places.keys()))
    return [_read_row(files, *place) for image_id in meant.values() for place in places[image_id]], messages


def example_ids(files: SetFiles) -> list[tuple[str, str, str, int, list[str]]]:
    """Returns (outcome, stage, reason, number of rows, ids of the first ones) for each way in which rows ended."""
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    examples: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for name in files.names:
        path = _table_path(files, name)
        with open_table(path) as file:
            check_columns(file, path, (_ID, "outcome", "stage", "reason"))
            for group in range(file.num_row_groups):
                columns = file.read_row_group(group, columns=[_ID, "outcome", "stage", "reason"]).to_pydict()
                for image_id, *end in zip(*columns.values(), strict=True):
                    key = (end[0], end[1] or "", end[2] or "")
                    counts[key] += 1
                    if len(examples[key]) < _EXAMPLES:
                        examples[key].append(image_id)
    return [(*key, count, examples[key]) for key, count in counts.items()]


def rows_with_picture(files: SetFiles, sha256: str) -> list[tuple[str, str, int]]:
    """Returns (image id, name of the shard, row) of the first rows whose picture has this hash, by id."""
    found = []
    for name in files.names:
        path = files.annotations(name)
        with open_table(path) as file:
            first_row = 0
            for group in range(file.num_row_groups):
                hashes = file.read_row_group(group, columns=["image_sha256"]).column(0)
                for position in pc.indices_nonzero(pc.equal(hashes, sha256)).to_pylist():
                    ids = file.read_row_group(group, columns=[_ID]).column(0)
                    found.append((ids[position].as_py(), name, first_row + position))
                first_row += file.metadata.row_group(group).num_rows
    return heapq.nsmallest(_LISTED, found)


def _table_path(files: SetFiles, name: str) -> str:
    """Returns the smaller of the two files that hold the ids of an input shard."""
    return files.ledger(name) if files.has_ledger else files.annotations(name)


def _places(files: SetFiles, image_ids: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
    """Returns id -> the (name of the shard, row) of the rows that have it; ids without a row are left out."""
    places: dict[str, list[tuple[str, int]]] = {}
    wanted = pa.array(sorted(set(image_ids)), pa.string())
    if not len(wanted):
        return places
    for name, first_row, ids in _ids(files, *((one, one) for one in wanted.to_pylist())):
        for position in pc.indices_nonzero(pc.is_in(ids, value_set=wanted)).to_pylist():
            places.setdefault(ids[position].as_py(), []).append((name, first_row + position))
    return places


def _ids_starting_with(files: SetFiles, prefix: str) -> tuple[list[str], int]:
    """Returns the first ids, in order, that start with `prefix`, and how many distinct ones there are."""
    found: set[str] = set()
    for _, _, ids in _ids(files, (prefix, prefix + _LAST)):
        found.update(ids.filter(pc.starts_with(ids, prefix)).to_pylist())
    return heapq.nsmallest(_LISTED, found), len(found)


def _nearest_ids(files: SetFiles, image_id: str) -> tuple[list[str], int]:
    """Returns the ids that are most like `image_id`, the nearest first, and the number of all rows."""
    near: list[tuple[int, str]] = []
    num_rows = 0
    for _, _, ids in _ids(files):
        num_rows += len(ids)
        near = heapq.nlargest(_NEAR, {*near, *((_in_common(image_id, one), one) for one in ids.to_pylist())})
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(image_id)

    def likeness(one: str) -> float:
        matcher.set_seq1(one)
        return matcher.ratio()

    return sorted((one for _, one in near), key=lambda one: (-likeness(one), one))[:_NEAREST], num_rows


def _in_common(first: str, second: str) -> int:
    """Returns how many characters two ids share at their start, and at their end in what is left."""
    num_most = min(len(first), len(second))
    start = 0
    while start < num_most and first[start] == second[start]:
        start += 1
    end = 0
    while end < num_most - start and first[-1 - end] == second[-1 - end]:
        end += 1
    return start + end


def _ids(files: SetFiles, *ranges: tuple[str, str]) -> Iterator[tuple[str, int, pa.ChunkedArray]]:
    """Yields (name of the shard, row of the first id, ids) of the parts that may have an id in one of the `ranges`.

    The statistics of a Parquet file tell which parts have none. Without `ranges` every part is read.
    """
    for name in files.names:
        path = _table_path(files, name)
        with open_table(path) as file:
            check_columns(file, path, (_ID,))
            first_row = 0
            for group in range(file.num_row_groups):
                if not ranges or any(_may_hold(file, group, low, high) for low, high in ranges):
                    yield name, first_row, file.read_row_group(group, columns=[_ID]).column(0)
                first_row += file.metadata.row_group(group).num_rows


def _may_hold(file: pq.ParquetFile, group: int, low: str, high: str) -> bool:
    chunks = file.metadata.row_group(group)
    place = next(place for place in range(chunks.num_columns) if chunks.column(place).path_in_schema == _ID)
    statistics = chunks.column(place).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    # Parquet compares UTF-8 bytes, which sort as code points do.
    return bool(statistics.min <= high and low <= statistics.max)


def _read_row(files: SetFiles, name: str, row: int) -> FoundRow:
    """Returns the row at position `row` in the unit `name`.

    Raises:
        UserError: the annotations and the ledger do not hold the same row there.
    """
    record = _record(files.annotations(name), row)
    ledger = _record(files.ledger(name), row) if files.has_ledger else None
    if ledger is not None and any(ledger.get(column) != record.get(column) for column in (_ID, "shard", "row")):
        raise UserError(
            f"{files.ledger(name)} has row {ledger.get('row')} of {ledger.get(_ID)} where row {record.get('row')} of "
            f"{record.get(_ID)} is expected; run python -m pipeline.build_i2e again, which replaces what does not fit"
        )
    return FoundRow(record=record, ledger=ledger)


def _record(path: str, row: int) -> dict[str, Any]:
    with open_table(path) as file:
        first_row = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if row < first_row + num_rows:
                record: dict[str, Any] = file.read_row_group(group).slice(row - first_row, 1).to_pylist()[0]
                return record
            first_row += num_rows
    raise UserError(
        f"{path} has {first_row} rows, and row {row} is needed; remove it, and run python -m pipeline.build_i2e again"
    )
