"""What the knowledge base stores for an entity and for an alias, as bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

CASES = ("proper", "acronym", "common")  # how a name is written; stored by place
ORDINAL_MAX = 1 << 30  # entities of a base
ORDINAL_MASK = ORDINAL_MAX - 1
_NUMBER_MAX = (1 << 32) - 1
ONLY_MEANING = struct.Struct("<eI")  # P(link | alias), ordinal and case: the only meaning, of prior 1
_HEAD = struct.Struct("<e")
_ENTRY = struct.Struct("<If")  # ordinal and case, prior


class Record(NamedTuple):
    """One entity, without its id. In `types` and `links` a number n stands for the id Qn."""

    label: str
    description: str
    aliases: list[str]
    types: list[int | str]
    popularity: float
    links: list[int | str]


_DECODER = msgspec.msgpack.Decoder(tuple[str, str, list[str], list[int | str], float, list[int | str]])
encode_record = msgspec.msgpack.Encoder().encode


def decode_record(value: bytes | memoryview) -> Record:
    """Returns the record that `encode_record` wrote."""
    return Record._make(_DECODER.decode(value))


def item_number(entity_id: str) -> int | None:
    """Returns n of an id Qn; None for ids of other forms, such as "Q0012"."""
    digits = entity_id[1:]
    if entity_id[:1] != "Q" or not (digits.isascii() and digits.isdigit()) or digits[0] == "0" or len(digits) > 10:
        return None
    number = int(digits)
    return number if number <= _NUMBER_MAX else None


def short_id(entity_id: str) -> int | str:
    """Returns the id as `Record` holds it."""
    number = item_number(entity_id)
    return entity_id if number is None else number


def full_id(short: int | str) -> str:
    """Returns the id that `short_id` shortened."""
    return f"Q{short}" if isinstance(short, int) else short


def encode_alias(link_probability: float, entries: Sequence[tuple[int, float, int]]) -> bytes:
    """Returns the value of an alias.

    Args:
        link_probability: kept to three digits.
        entries: ordinal, prior and case (a place in `CASES`), at least one; priors are kept in single precision.
    """
    if len(entries) == 1 and entries[0][1] == 1.0:
        return ONLY_MEANING.pack(link_probability, entries[0][0] | entries[0][2] << 30)
    return _HEAD.pack(link_probability) + b"".join(
        _ENTRY.pack(ordinal | case << 30, prior) for ordinal, prior, case in entries
    )


def decode_alias(value: bytes) -> tuple[float, list[tuple[int, float]]]:
    """Returns P(link | alias) and (ordinal and case, prior) of each entry; the case is in the upper two bits."""
    if len(value) == ONLY_MEANING.size:
        link_probability, packed = ONLY_MEANING.unpack(value)
        return link_probability, [(packed, 1.0)]
    return _HEAD.unpack_from(value)[0], list(_ENTRY.iter_unpack(value[_HEAD.size :]))
