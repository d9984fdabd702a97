"""Blocks of lines -> entries, in any process."""

from __future__ import annotations

import dataclasses
import marshal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from pipeline.kb.build.entries import Entries, EntryEncoder
from pipeline.kb.build.own_lines import Redirect, decode_json, read_own_line
from pipeline.kb.build.read_dump import LINE_BYTES_MAX, Block
from pipeline.kb.build.wikidata_items import ItemReader, item_decoder
from pipeline.kb.records import Record, item_number
from pipeline.schema import UserError

_ORDINARY = (b"", b"[", b"]")  # lines of a dump that hold no entity
_BAD_NAMED = 20  # per block


@dataclasses.dataclass(kw_only=True)
class Parsed:
    """What a block held."""

    entries: Entries
    redirects: list[Redirect]
    skipped: Counter[str]  # reason -> number
    num_lines: int  # with an entity or what should be one
    num_bad: int
    bad: list[tuple[int, str]]  # number of the line, what is wrong; the first ones

    def to_bytes(self) -> bytes:
        """Returns the block for another process, which reads it with `from_bytes`."""
        plain = [tuple(self.entries), [tuple(one) for one in self.redirects], dict(self.skipped)]
        return marshal.dumps([*plain, self.num_lines, self.num_bad, self.bad])

    @classmethod
    def from_bytes(cls, content: bytes) -> Parsed:
        entries, redirects, skipped, num_lines, num_bad, bad = marshal.loads(content)
        return cls(
            entries=Entries(*entries),
            redirects=[Redirect(*one) for one in redirects],
            skipped=Counter(skipped),
            num_lines=num_lines,
            num_bad=num_bad,
            bad=bad,
        )


class LineParser:
    """Parses lines of a Wikidata dump and of `kb_source.jsonl`, which are recognised line by line.

    Args:
        languages: of labels, descriptions and aliases.
        skipped_kinds: values of P31 -> why their items are left out.
    """

    def __init__(self, languages: Sequence[str], skipped_kinds: Mapping[str, str]) -> None:
        self._decode = item_decoder(languages).decode
        self._items = ItemReader(languages, skipped_kinds)
        self._encoder = EntryEncoder()

    def parse(self, block: Block) -> Parsed:
        """Returns what `block` holds.

        Raises:
            UserError: it is pretty-printed JSON.
        """
        parsed = Parsed(entries=Entries(0, b"", b""), redirects=[], skipped=Counter(), num_lines=0, num_bad=0, bad=[])
        if not block.content:
            parsed.num_lines = 1
            _add_bad(parsed, block.first_line, f"longer than {LINE_BYTES_MAX:,} bytes")
            return parsed
        parsed.entries = self._encoder.encode(self._entities(block, parsed))
        return parsed

    def _entities(self, block: Block, parsed: Parsed) -> Iterator[tuple[int, str, Record]]:
        for number, line in enumerate(block.content.split(b"\n"), start=block.first_line):
            text = line.strip().rstrip(b",")
            if text in _ORDINARY:
                continue
            parsed.num_lines += 1
            try:
                found = self._read(text)
            except ValueError as error:
                if number <= 2:
                    _check_layout(number, text)
                _add_bad(parsed, number, str(error))
                continue
            if isinstance(found, Redirect):
                parsed.redirects.append(found)
            elif isinstance(found, str):
                parsed.skipped[found] += 1
            else:
                yield number, *found

    def _read(self, line: bytes) -> tuple[str, Record] | Redirect | str:
        try:
            item = self._decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._read_slowly(line, error)
        if item.label is not None or item.redirect_to is not None or not (item.type or item.labels is not None):
            return read_own_line(_decode_own(line))
        found = self._items.read(item)
        if not isinstance(found, str) and item_number(item.id) is None:
            raise ValueError(f"a damaged item (its id is {item.id[:40]!r})")
        return found

    def _read_slowly(self, line: bytes, error: Exception) -> tuple[str, Record] | Redirect | str:
        """Returns what `line` holds, which the decoder refused: with what is wrong in words of its fields."""
        record = decode_json(line)
        if isinstance(record, dict) and "label" not in record and ("labels" in record or "claims" in record):
            if isinstance(record.get("type"), str) and record["type"] != "item":
                return str(record["type"])  # lexemes and media have other fields of the same names
            raise ValueError(f"a damaged item ({error})")
        return read_own_line(record)


def _decode_own(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:
        return decode_json(line)


def _check_layout(number: int, line: bytes) -> None:
    """Checks that one of the first lines of a file is no beginning of JSON of another layout.

    Raises:
        UserError: it is.
    """
    remedy = "write each entity on a line of its own, as Wikidata's dumps have them"
    if line in (b"{", b"[{"):
        raise UserError(
            f"line {number} is {line.decode()!r}: this is pretty-printed JSON, one field per line; {remedy}"
        )
    if line[:1] == b"[" and line[1:].lstrip()[:1] == b"{":
        raise UserError(f"line {number} holds a whole list of entities; {remedy}")


def _add_bad(parsed: Parsed, number: int, what: str) -> None:
    parsed.num_bad += 1
    if len(parsed.bad) < _BAD_NAMED:
        parsed.bad.append((number, what))
