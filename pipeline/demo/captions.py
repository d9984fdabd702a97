"""A caption: its text, and the place of every name in it."""

from __future__ import annotations

import dataclasses
import html.entities
import random
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.sources.clean import clean_spans, clean_text

Role = Literal["text", "name", "tag", "stray_word", "stray_part"]
STRAY_ROLES: tuple[Role, ...] = ("stray_word", "stray_part")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedSpan:
    """Where a text names an entity: `text[start:end]` is the name as spelt there.

    `entity_id` is None where the base lacks the entity.
    """

    start: int
    end: int
    name: str  # as the entity bears it: in the base's spelling
    entity_id: str | None
    kind: str  # of the entity's pictures: emoji, flag or logo
    ambiguous: bool
    has_context: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class StraySpan:
    """Where a text has a name of the base that means none of its entities.

    `kind` is "word" for a common word that brands bear, "part" for a longer name with a name of the base in it; the
    span is then the longer name.
    """

    start: int
    end: int
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """A composed text and what it names; spans are of `text`, which is `raw` when cleaned."""

    raw: str
    text: str
    mentions: tuple[NamedSpan, ...] = ()
    strays: tuple[StraySpan, ...] = ()
    tags: tuple[str, ...] = ()  # the words that show what is meant
    spelling: tuple[str, ...] = ()  # how it is spelt, see `spelling.SPELLINGS`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a caption, and what it is."""

    text: str
    role: Role = "text"


def fill(
    template: str,
    rng: random.Random,
    *,
    name: str = "",
    tags: Sequence[str] = (),
    parts: Mapping[str, Sequence[Piece]] | None = None,
) -> list[Piece]:
    """Returns the pieces of the filled template.

    Args:
        template: see `pipeline.demo.templates`.
        rng: the source of numbers.
        name: for `{name}`.
        tags: for `{tags}`, joined by commas.
        parts: for the other fields, `{caption}` and `{stray}`.
    """
    pieces: list[Piece] = []
    for piece in re.split(r"(\{\w+\})", template):
        if piece == "{name}":
            pieces.append(Piece(text=name, role="name"))
        elif piece == "{tags}":
            for place, tag in enumerate(tags):
                pieces += [Piece(text=", ")] * (place > 0) + [Piece(text=tag, role="tag")]
        elif piece == "{number}":
            pieces.append(Piece(text=str(rng.randrange(3, 9000))))
        elif piece.startswith("{"):
            pieces += (parts or {})[piece[1:-1]]
        elif piece:
            pieces.append(Piece(text=piece))
    return pieces


def assemble(pieces: Sequence[Piece]) -> tuple[str, list[tuple[int, int, Role]]]:
    """Returns the text of the pieces, cleaned, and the spans of all that are not plain text."""
    raw, spans, roles = "", [], []
    for piece in pieces:
        if piece.role != "text":
            spans.append((len(raw), len(raw) + len(piece.text)))
            roles.append(piece.role)
        raw += piece.text
    text, moved = clean_spans(raw, spans)
    return text, [(start, end, role) for (start, end), role in zip(moved, roles, strict=True)]


def escape(text: str, rng: random.Random, *, times: int) -> str:
    """Returns `text` with HTML entities, as in the source of a page: named or numeric, escaped `times` times.

    What cleaning would not turn back is left as it is.
    """
    style = rng.randrange(3)

    def entity(match: re.Match[str]) -> str:
        char = match[0]
        name = html.entities.codepoint2name.get(ord(char))
        if name and style < 2:
            return f"&{name};"
        return f"&#{ord(char)};" if style < 2 or char.isascii() else f"&#x{ord(char):x};"

    escaped = re.sub(r"[&<>\"']|[^\x00-\x7f]" if style else r"[&<>\"']", entity, text)
    for _ in range(times - 1):
        escaped = escaped.replace("&", "&amp;")
    return escaped if clean_text(escaped) == text else text
