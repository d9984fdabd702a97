"""Units of work: bounded runs of input rows. What annotating and assembly do, they do unit by unit.

A unit consists of parts of input files, in order. `annotate` writes one Parquet file per unit, with one row per input
row in the order of `read_unit`, whose columns `shard` and `row` hold the name of the input file and the row's number in
that file. `assemble` gets what `annotate` returns, `AnnotatedUnit`s, and writes one output shard per unit. A unit's
name depends on its first part alone, never on how many units there are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.config import DEFAULT_MEMBERS, MembersConfig
from pipeline.schema import ImageText, Rejection
from pipeline.sources import STAGE, WHOLE_SHARD, ShardPart
from pipeline.sources.read import read_ranges, read_shard

_NOT_WANTED = "not_wanted"  # a reason that nobody sees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of an input file that follow each other."""

    path: str
    file: str
    """Name of the input file, as in the column `shard`: its path below the common folder of the inputs."""
    fingerprint: str
    """Of the content of the whole file."""
    rows: ShardPart = WHOLE_SHARD
    """Which of its rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A bounded run of input rows: some whole small files, or a range of rows of a large one."""

    name: str
    """Unique, without a slash; the files made from the unit are called after it."""
    parts: tuple[Part, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the rows: equal for the same rows of files of equal names and contents, wherever they lie."""
        rows = [(part.file, part.fingerprint, part.rows.first_row, part.rows.end_row) for part in self.parts]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedUnit:
    """A unit whose annotations are finished."""

    unit: Unit
    path: str
    """Of the annotations."""
    num_rows: int
    key: str
    """A hash of all that the annotations depend on: equal keys, equal annotations."""
    sha256: str
    """Of the file at `path`, its first digits; a file of another hash is not the one that was committed."""


class PicturePlace(NamedTuple):
    """Where the picture of an annotated row is found."""

    file: str
    """Name of the input file."""
    row: int
    """Position within that file."""
    start_byte: int | None
    """Where its bytes begin in that file; None if they do not lie there as they are."""
    size_bytes: int


def unit_to_json(unit: Unit) -> dict[str, Any]:
    """Returns `unit` as JSON knows it."""
    return dataclasses.asdict(unit)


def unit_of_json(value: Mapping[str, Any]) -> Unit:
    """Returns the unit that `unit_to_json` gave."""
    parts = (Part(**{**part, "rows": ShardPart(*part["rows"])}) for part in value["parts"])
    return Unit(name=value["name"], parts=tuple(parts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenUp:
    """What of a unit is not read any more. Rows are numbered by their position in the unit, from 0."""

    rows: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Row -> the reason why it is not looked into: it becomes a retryable row of that reason."""
    rests: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Row -> the reason why its file is not read from there on: one retryable row stands for the rest of it."""


def read_unit(
    unit: Unit, config: MembersConfig = DEFAULT_MEMBERS, given_up: GivenUp | None = None
) -> Iterator[ImageText | Rejection]:
    """Returns the rows of `unit` in order; `shard` of each is the path of its file, `row` its number in that file.

    Where a file ends before the rows that the unit should have, one retryable row stands for the rest.

    Raises:
        UserError: a file cannot be read.
    """
    given_up = given_up or GivenUp()
    position = 0
    for part in unit.parts:
        ahead = position - part.rows.first_row
        reasons = {row - ahead: reason for row, reason in given_up.rows.items()}
        items = read_shard(part.path, config=config, part=part.rows, reason_of=reasons.get)
        is_told = False  # pragma: no mutate: None counts as False
        while position not in given_up.rests and (item := next(items, None)) is not None:
            yield item
            is_told = isinstance(item, Rejection) and item.retryable and position not in given_up.rows
            position += 1
        row = position - ahead
        reason = given_up.rests.get(position)
        if reason is None and part.rows.end_row is not None and row < part.rows.end_row and not is_told:
            reason = "missing_rows"
        if reason is not None:
            position += 1
            yield Rejection(
                image_id=f"{part.file}:{row}", shard=part.path, row=row, stage=STAGE, reason=reason, retryable=True
            )


def read_pictures(
    unit: Unit, places: Iterable[PicturePlace], config: MembersConfig = DEFAULT_MEMBERS
) -> Iterator[bytes]:
    """Returns the bytes of the pictures at `places`, rows of `unit` in order; b"" where there is no picture any more.

    Whether they are still the same bytes is for the caller to check.

    Raises:
        UserError: a file cannot be read.
    """
    parts = {part.file: part for part in unit.parts}
    for file, group in itertools.groupby(places, key=lambda place: place.file):
        of_file = list(group)
        ranges = [(one.start_byte, one.size_bytes) for one in of_file if one.start_byte is not None]
        if len(ranges) == len(of_file):
            yield from read_ranges(parts[file].path, ranges)
        else:
            yield from _read_rows(parts[file], [one.row for one in of_file], config)


def _read_rows(part: Part, rows: Iterable[int], config: MembersConfig) -> Iterator[bytes]:
    """Returns the pictures of `rows`, numbers that ascend, by reading `part`; no other row is looked into."""
    wanted = list(rows)
    known = frozenset(wanted)
    found = read_shard(
        part.path, config=config, part=part.rows, reason_of=lambda row: None if row in known else _NOT_WANTED
    )
    for row in wanted:
        item = next((one for one in found if one.row == row), None)
        yield item.image if isinstance(item, ImageText) else b""
