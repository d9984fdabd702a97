"""Input files: `read.read_shard` opens any of them, `inputs` says what a shard is, and each format has a module."""

from __future__ import annotations

from typing import NamedTuple

STAGE = "read"  # the stage of the rows that a reader rejects


class ShardPart(NamedTuple):
    """A run of rows of an input file, and where they lie in it; by default all of the file."""

    first_row: int = 0
    end_row: int | None = None
    """One more than the last row; None for the part that ends with the file, whose length is known once it is read."""
    start_byte: int = 0
    """Where the first row begins, at the header of a member."""
    end_byte: int | None = None
    """Where the first row behind the part begins; None for the part that ends with the file."""


WHOLE_SHARD = ShardPart()
