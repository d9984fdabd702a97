"""Units of work: bounded runs of input rows. What annotating and assembly do, they do unit by unit.

A unit consists of parts of input files, in order. `annotate` writes one Parquet file per unit, with one row per input
row in the order of `read_unit`, whose columns `shard` and `row` hold the name of the input file and the row's number in
that file. `assemble` gets what `annotate` returns, `AnnotatedUnit`s, and writes one output shard per unit. A unit's
name depends on its first part alone, never on how many units there are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence

from pipeline.config import DEFAULT_MEMBERS, MembersConfig
from pipeline.schema import ImageText, Rejection
from pipeline.sources import ShardPart
from pipeline.sources.inputs import InputShard
from pipeline.sources.read import read_shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The rows `[first_row, end_row)` of an input file."""

    path: str
    file: str
    """Name of the input file, as in the column `shard`: its path below the common folder of the inputs."""
    fingerprint: str
    """Of the content of the whole file."""
    size_bytes: int
    """Of the whole file."""
    updated_sec: float
    """When the file was written, since 1970."""
    first_row: int = 0
    end_row: int | None = None
    """None: all rows to the end of the file, however many there are."""
    first_byte: int = 0
    """Where the header of `first_row` begins."""
    end_byte: int | None = None
    """Where the first row behind the part begins; None: the part ends with the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A bounded run of input rows: some whole small files, or a range of rows of a large one."""

    name: str
    """Unique, without a slash; the files made from the unit are called after it."""
    parts: tuple[Part, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the rows: equal for the same rows of files of equal names and contents, wherever they lie."""
        rows = [(part.file, part.fingerprint, part.first_row, part.end_row) for part in self.parts]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def file_of(self, path: str) -> str:
        """Returns the name of the input file at `path`, which is one of this unit's."""
        return next(part.file for part in self.parts if part.path == path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedUnit:
    """A unit whose annotations are finished."""

    unit: Unit
    path: str
    """Of the annotations."""
    num_rows: int
    key: str
    """A hash of all that the annotations depend on: equal keys, equal annotations."""
    size_bytes: int
    """Of the file at `path`; one of another size is not the one that was committed."""


def units_of_shards(shards: Sequence[InputShard]) -> tuple[Unit, ...]:
    """Returns one unit per input file, called as the file is."""
    return tuple(
        Unit(
            name=shard.name,
            parts=(
                Part(
                    path=shard.path,
                    file=shard.file,
                    fingerprint=shard.fingerprint,
                    size_bytes=shard.size_bytes,
                    updated_sec=shard.updated_sec,
                ),
            ),
        )
        for shard in shards
    )


def read_unit(unit: Unit, config: MembersConfig = DEFAULT_MEMBERS) -> Iterator[ImageText | Rejection]:
    """Returns the rows of `unit` in order; `shard` of each is the path of its file, `row` its number in that file.

    Raises:
        UserError: a file cannot be read.
    """
    for part in unit.parts:
        rows = ShardPart(part.first_row, part.end_row, part.first_byte, part.end_byte)
        yield from read_shard(part.path, config=config, part=rows)
