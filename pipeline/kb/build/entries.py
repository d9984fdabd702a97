"""Entities -> what the writer sorts: all that needs no other entity is computed here, in the parsing processes."""

from __future__ import annotations

import array
import marshal
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.kb import bag_of_words
from pipeline.kb.build.alias_table import names_of
from pipeline.kb.build.link_probability import word_case
from pipeline.kb.normalise import find_words
from pipeline.kb.records import CASES, Record, encode_record, short_id

_WORDS_REMEMBERED = 100_000
_NUMBER = struct.Struct(">I")
_CASE_PLACE = {case: place for place, case in enumerate(CASES)}
_STOP_WORD = -1


class Entry(NamedTuple):
    """One entity. Entries are sorted by id and then by place: of two with the same id the first counts."""

    key: bytes  # see `sort_key`
    place: int  # in the source
    record: bytes
    words: bytes  # uint32: number of words of the label, these words, the other own words
    references: bytes  # uint32: numbers of the types and links of the form Q<number>
    other_types: tuple[str, ...]
    other_links: tuple[str, ...]
    names: tuple[tuple[bytes, float, int], ...]  # key, weight, place of the case in CASES


class Entries(NamedTuple):
    """What a process hands to the writer."""

    num_entries: int
    packed: bytes  # a list of entries as plain tuples, by `marshal`
    case_buckets: bytes  # uint32: see `link_probability.word_case`


def sort_key(entity_id: str) -> bytes:
    """Returns bytes that sort ids as the base counts them: Q<number> by number, then the others."""
    short = short_id(entity_id)
    return b"Q" + _NUMBER.pack(short) if isinstance(short, int) else b"R" + short.encode()


def id_of(key: bytes) -> int | bytes:
    """Returns the number n of Qn, or the bytes of another id, from its `sort_key`."""
    return int(_NUMBER.unpack_from(key, 1)[0]) if key[:1] == b"Q" else key[1:]


class _Remembered(dict[str, int]):
    """What a function says of words, the last 100,000 of them at most."""

    def __init__(self, function: Callable[[str], int]) -> None:
        self._function = function

    def __missing__(self, word: str) -> int:
        if len(self) >= _WORDS_REMEMBERED:
            self.clear()
        value = self[word] = self._function(word)
        return value


class EntryEncoder:
    """Turns entities into entries; remembers what it found out about words."""

    def __init__(self) -> None:
        self._key_of = _Remembered(_key_of_stem).__getitem__
        self._case_of = _Remembered(word_case).__getitem__

    def encode(self, placed: Iterable[tuple[int, str, Record]]) -> Entries:
        """Returns the entries of (place in the source, id, what is stored of the entity)."""
        buckets = array.array("I")
        entries: list[tuple[object, ...]] = []
        for place, entity_id, record in placed:
            entries.append(self._entry(place, entity_id, record))
            buckets.extend(map(self._case_of, find_words(record.description)[1:]))
        return Entries(len(entries), marshal.dumps(entries), buckets.tobytes())

    def _entry(self, place: int, entity_id: str, record: Record) -> tuple[object, ...]:
        label = self._keys(record.label)
        others = self._keys("\n".join((record.description, *record.aliases))) - label
        references = [*record.types, *record.links]
        numbers = [one for one in references if isinstance(one, int)]
        is_other = len(numbers) < len(references)
        return (
            sort_key(entity_id),
            place,
            encode_record(record),
            _uint32([len(label), *sorted(label), *sorted(others)]),
            _uint32(numbers),
            tuple(one for one in record.types if isinstance(one, str)) if is_other else (),
            tuple(one for one in record.links if isinstance(one, str)) if is_other else (),
            tuple(
                (key.encode(), weight, _CASE_PLACE[case])
                for key, weight, case in names_of(record.label, record.aliases, record.popularity)
            ),
        )

    def _keys(self, text: str) -> set[int]:
        """Returns the keys of the words of `text`."""
        found = set(map(self._key_of, find_words(bag_of_words.fold(text))))
        found.discard(_STOP_WORD)
        return found


def _key_of_stem(word: str) -> int:
    """Returns the key of the stem of a casefolded word, or `_STOP_WORD`."""
    stems = bag_of_words.split_words(word)
    return bag_of_words.hash_word(stems[-1]) if stems else _STOP_WORD


def _uint32(numbers: Iterable[int]) -> bytes:
    return array.array("I", numbers).tobytes()
