"""Reads how texts link names: lines of `alias <tab> entity <tab> count`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.kb.normalise import normalise_alias
from pipeline.kb.store import KEY_BYTES_MAX
from pipeline.schema import UserError

_COUNT_MAX = 10**12
_FORM = "give lines of: alias <tab> entity id <tab> count (an empty id counts occurrences without a link)"


class Anchor(NamedTuple):
    """One spelling, and how often texts link it to one entity."""

    alias: str  # as written
    key: str  # normalised
    entity_id: str  # "" counts occurrences of the spelling that are no link
    num_uses: int  # at least 1


def read_anchors(path: str) -> Iterator[Anchor]:
    """Returns the lines of the file at `path`, UTF-8 with or without a byte order mark; blank lines are skipped.

    An entity that the base lacks is allowed: the string was a name there too.

    Raises:
        UserError: the file cannot be read, or a line is not of this form.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _anchor(line.rstrip("\r\n"), f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); {_FORM}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give --anchors an existing file") from None


def _anchor(line: str, where: str) -> Anchor:
    fields = line.split("\t")
    if len(fields) != 3:
        raise UserError(f"{where}: {len(fields)} columns; {_FORM}")
    alias, entity_id, count = fields
    key = normalise_alias(alias)
    if not 0 < len(key.encode()) <= KEY_BYTES_MAX:
        raise UserError(f"{where}: the alias {alias[:40]!r} normalises to {len(key.encode())} bytes; give a name of 1 "
                        f"to {KEY_BYTES_MAX}")  # fmt: skip
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= _COUNT_MAX):
        raise UserError(f"{where}: the count is {count[:40]!r}; give a whole number from 1 to {_COUNT_MAX}")
    return Anchor(alias, key, entity_id, int(count))
