"""Spellings of captions as the web has them: cases, plurals, names without diacritics, hashtags."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence

from pipeline.demo.captions import Piece

# Share of the captions in each case; the others are as composed.
CASES: dict[str, float] = {"lower": 0.12, "upper": 0.05, "title": 0.08}
PLURAL = 0.15  # of the names that are nouns in lower case
NO_DIACRITICS = 0.5  # of the names that have some
HASHTAGS = 0.06  # share of the captions; half of them have the name as a hashtag, half the tags
ESCAPED = 0.6  # of the captions with something to escape: they have HTML entities
ESCAPED_TWICE = 0.2  # of those
SPELLINGS = ("lower", "upper", "title", "plural", "no_diacritics", "hashtags", "escaped", "escaped_twice")

_WORD_START = re.compile(r"(?<![\w'’])[^\W\d_]")
_NO_MARK = str.maketrans({"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "æ": "ae", "Æ": "Ae", "œ": "oe", "ß": "ss", "ı": "i"})
_CHANGES: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "upper": str.upper,
    "title": lambda text: _WORD_START.sub(lambda match: match[0].upper(), text),
}


def change_case(pieces: Sequence[Piece], case: str) -> list[Piece]:
    """Returns the pieces in lower, upper or title case."""
    return [dataclasses.replace(piece, text=_CHANGES[case](piece.text)) for piece in pieces]


def plural_of(noun: str) -> str:
    """Returns the regular plural of an English noun, "" where its ending does not say how it is made."""
    if re.search(r"(?:[^aeiou]y)$", noun):
        return noun[:-1] + "ies"
    if re.search(r"(?:[sxz]|[cs]h)$", noun):
        return noun + "es" if re.search(r"(?:ss|x|[cs]h)$", noun) else ""
    if re.search(r"(?:man|fe?|foot|tooth|goose|mouse|fish|sheep|o)$", noun) or not noun[-1:].isalpha():
        return ""
    return noun + "s"


def without_diacritics(name: str) -> str:
    """Returns a Latin name in plain letters; a name that has other letters too comes back as it is."""
    bare = "".join(c for c in unicodedata.normalize("NFD", name.translate(_NO_MARK)) if not unicodedata.combining(c))
    return bare if bare.replace("’", "'").isascii() else name


def hashtag_of(phrase: str) -> str:
    """Returns the phrase in one word, a capital where each word began; "" where it has more than letters and digits."""
    words = phrase.split()
    if not words or not all(word.isalnum() for word in words):
        return ""
    return words[0] if len(words) == 1 else "".join(word[0].upper() + word[1:] for word in words)


def with_hashtags(pieces: Sequence[Piece], role: str) -> list[Piece]:
    """Returns the pieces of `role` ("name" or "tag") as hashtags; the sign is not part of the piece."""
    changed: list[Piece] = []
    for place, piece in enumerate(pieces):
        word = hashtag_of(piece.text) if piece.role == role else ""
        if word:
            changed += [Piece(text="#"), dataclasses.replace(piece, text=word)]
        elif piece.text == ", " and role == "tag" and 0 < place and pieces[place - 1].role == role:
            changed.append(Piece(text=" "))
        else:
            changed.append(piece)
    return changed
