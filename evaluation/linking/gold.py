"""Labelled texts: what every span of a text names. One JSON object per line.

    {"id": "Algeria#3", "text": "...", "group": "Algeria", "half": "second", "kind": "caption",
     "mentions": [{"start": 4, "end": 11, "entity_ids": ["Q262"], "kind": "name"}]}

A mention's `entity_ids` are the entities of the knowledge base that it means: several where the base holds one thing
more than once or the text leaves the sense open, none (NIL) where the base lacks what is named. `kind` of a mention is
"name" for proper names and "noun" for common nouns; nouns are labelled only where the base has the thing. `group` is
what texts are drawn by for intervals (the article of a caption); it defaults to the id. `half` may be "first" or
"second": the first half may be used for anything, the second for measuring alone.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from evaluation.sets.text import check_unique, read_json_lines
from pipeline.schema import UserError

MENTION_KINDS = ("name", "noun")
HALVES = ("", "first", "second")
_REMEDY = "each line needs id, text and mentions with start, end, entity_ids and kind"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldMention:
    """A span `[start, end)`, in characters, that names something."""

    start: int
    end: int
    entity_ids: frozenset[str]  # empty: the knowledge base lacks what is named
    kind: str  # "name" or "noun"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldText:
    """A text and all that it names."""

    text_id: str
    text: str
    group: str
    half: str  # "", "first" or "second"
    kind: str  # of the text, such as "caption" or "hashtags"; may be empty
    mentions: tuple[GoldMention, ...]  # in order, none overlapping


def read_gold(path: str | os.PathLike[str]) -> list[GoldText]:
    """Returns the labelled texts of a JSONL file, in its order.

    Raises:
        UserError: the file cannot be read or has no texts, a line is not as it must be, or an id is repeated.
    """
    texts = [_text(row, f"{path}, line {number}") for number, row in read_json_lines(path, remedy=_REMEDY)]
    if not texts:
        raise UserError(f"{path} has 0 texts, at least 1 is needed; {_REMEDY}")
    check_unique([one.text_id for one in texts], str(path))
    return texts


def _text(row: dict[str, Any], where: str) -> GoldText:
    for field, kind in (("id", str), ("text", str), ("mentions", list)):
        if not isinstance(row.get(field), kind):
            raise UserError(f"{where}: field {field!r} is {row.get(field)!r}; {_REMEDY}")
    half = str(row.get("half", ""))
    if half not in HALVES:
        raise UserError(f"{where}: half is {half!r}, it must be first or second, or left out")
    text = row["text"]
    mentions = sorted((_mention(one, text, where) for one in row["mentions"]), key=lambda one: one.start)
    for before, after in zip(mentions, mentions[1:], strict=False):
        if after.start < before.end:
            raise UserError(
                f"{where}: the mentions {text[before.start : before.end]!r} and {text[after.start : after.end]!r} "
                "overlap; keep the longer one"
            )
    return GoldText(
        text_id=row["id"],
        text=text,
        group=str(row.get("group", row["id"])),
        half=half,
        kind=str(row.get("kind", "")),
        mentions=tuple(mentions),
    )


def _mention(one: Any, text: str, where: str) -> GoldMention:
    try:
        start, end, ids, kind = int(one["start"]), int(one["end"]), one["entity_ids"], one["kind"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: the mention {one!r} lacks a field or has a wrong one ({error!r}); {_REMEDY}"
        ) from error
    if not 0 <= start < end <= len(text):
        raise UserError(f"{where}: the span {start} to {end} is not in the text of {len(text)} characters")
    if one.get("surface", text[start:end]) != text[start:end]:
        raise UserError(f"{where}: the span {start} to {end} is {text[start:end]!r}, its surface {one['surface']!r}")
    if kind not in MENTION_KINDS:
        raise UserError(f"{where}: the mention {text[start:end]!r} has kind {kind!r}, it must be name or noun")
    if not isinstance(ids, list) or not all(isinstance(entity_id, str) and entity_id for entity_id in ids):
        raise UserError(f"{where}: the mention {text[start:end]!r} has entity_ids {ids!r}, it must be a list of ids")
    return GoldMention(start=start, end=end, entity_ids=frozenset(ids), kind=kind)
