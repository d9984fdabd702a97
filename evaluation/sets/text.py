"""Text files that people write, read as they mean them: ids, names, captions, ground truth.

Editors add a byte order mark, end lines by carriage returns, and leave blanks at their ends. File systems and editors
spell an accented letter as one character (Unicode's form NFC) or as two (NFD), which look the same. None of this makes
a different id.
"""

from __future__ import annotations

import codecs
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.schema import UserError

_BLANKS = " \t\r"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NUM_NAMED = 3  # in a message


def nfc(text: str) -> str:
    """Returns `text` in Unicode's composed form, in which equal-looking names are equal."""
    return unicodedata.normalize("NFC", text)


def utf8(text: str, what: str) -> bytes:
    """Returns `text` in UTF-8.

    Args:
        text: such as the name of a file.
        what: it is, for the message.

    Raises:
        UserError: UTF-8 cannot hold it: it is the name of a file in another encoding, or has half a character.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        # Bytes that are not UTF-8 come as surrogates. The message shows each as the byte it is, such as \xe9.
        try:
            shown = os.fsencode(text).decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:
            shown = text.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"{what} {shown} is not valid UTF-8; rename or correct it") from error


def read_text(path: str | os.PathLike[str], *, remedy: str) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 with a byte order mark; lines end by a newline alone.

    Raises:
        UserError: it cannot be read, or is in another encoding; the message ends with `remedy`.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); {remedy}") from error
    return text.replace("\r\n", "\n")


def read_lines(path: str | os.PathLike[str], *, remedy: str) -> list[str]:
    """Returns the lines of a file, without blanks at their ends and without blank lines at its end.

    Raises:
        UserError: see `read_text`.
    """
    # Only a newline ends a line: `str.splitlines` would cut at other characters too.
    lines = [line.rstrip(_BLANKS) for line in read_text(path, remedy=remedy).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_json(path: str | os.PathLike[str], *, remedy: str) -> Any:
    """Returns what a JSON file holds.

    Raises:
        UserError: it cannot be read, is not valid JSON, or an object has a key twice; the message ends with `remedy`.
    """
    try:
        return json.loads(read_text(path, remedy=remedy), object_pairs_hook=_object)
    except _DuplicateKey as error:
        raise UserError(f"{path} has the duplicate key {error.args[0]!r}; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}") from error


class _DuplicateKey(Exception):
    """A JSON object has a key twice; Python would take the last."""


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKey(key)
        found[key] = value
    return found


def read_json_lines(path: str | os.PathLike[str], *, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number, from 1, and object of each line of a JSONL file; blank lines are skipped.

    Raises:
        UserError: it cannot be read, or a line is not a JSON object; the message ends with `remedy`.
    """
    for number, line in enumerate(read_lines(path, remedy=remedy), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not valid JSON ({error}); {remedy}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is not a JSON object; {remedy}")
        yield number, row


def read_ids(path: str | os.PathLike[str]) -> list[str]:
    """Returns the ids in a file, one per line.

    Raises:
        UserError: it cannot be read, or an id is repeated.
    """
    ids = read_lines(path, remedy="write one id per line, in UTF-8")
    check_unique(ids, str(path))
    return ids


def check_unique(ids: Sequence[str], source: str) -> None:
    """Checks that no two of `ids` are equal, also in Unicode's composed form.

    Args:
        ids: any number.
        source: where they are from, for the message.

    Raises:
        UserError: two are equal; the message names them.
    """
    places: dict[str, int] = {}
    for position, one in enumerate(ids):
        first = places.setdefault(nfc(one), position)
        if first == position:
            continue
        if ids[first] == one:
            raise UserError(f"{source} has the duplicate id {one!r}; ids must be unique")
        raise UserError(
            f"{source} has two ids that are equal after Unicode normalisation (NFC), {ids[first]!a} and {one!a}; "
            "ids must be unique"
        )


def match_ids(wanted: Sequence[str], given: Sequence[str], *, source: str, wanted_by: str) -> np.ndarray:
    """Returns the position in `given` of each of `wanted`, int64 `[n]`.

    An id that is not in `given` as it is written is looked up in Unicode's composed form.

    Args:
        wanted: unique.
        given: unique; the same ids as `wanted`, in any order.
        source: where `given` are from, for messages.
        wanted_by: who asks for `wanted`, for messages.

    Raises:
        UserError: one side lacks an id of the other, or two ids are equal after Unicode normalisation.
    """
    place = {one: position for position, one in enumerate(given)}
    missing = [one for one in wanted if one not in place]
    if missing:
        check_unique(given, source)
        check_unique(wanted, wanted_by)
        composed = {nfc(one): position for one, position in place.items()}
        still_missing = [one for one in missing if nfc(one) not in composed]
        if still_missing:
            raise UserError(f"{source} lacks {len(still_missing)} ids of {wanted_by}, {_some(still_missing)}; add them")
        place |= {one: composed[nfc(one)] for one in missing}
    found = np.array([place[one] for one in wanted], np.int64)
    if len(given) != len(wanted):
        used = set(found.tolist())
        surplus = sorted(one for position, one in enumerate(given) if position not in used)
        raise UserError(f"{source} has {len(surplus)} ids that {wanted_by} does not, {_some(surplus)}; leave them out")
    return found


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:_NUM_NAMED])) + (" and others" if len(ids) > _NUM_NAMED else "")
