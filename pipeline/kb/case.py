"""How a text uses capitals: what the writing of one word can say depends on it."""

from __future__ import annotations

import re
from typing import Literal

from pipeline.kb.normalise import WORD

CaseStyle = Literal["lower", "sentence", "title", "upper", "none"]
_UPPER_SHARE = 0.6  # of the words in capitals throughout (ours)
_TITLE_SHARE = 0.65  # of the words with a capital (ours)
_TITLE_WORDS_MIN = 3
_CAPITALISED = re.compile(r"(?<![^\W_])[A-Z][a-z]")
_SENTENCE_END = re.compile(r"[.!?:;|\u2013\u2014\u2022\n]['\"\u201d\u2019)\]]*\s|[\u3002\uff01\uff1f]")
_ABBREVIATION = re.compile(r"[^\W\d]|[A-Z][a-z]{1,2}")  # its dot ends no sentence: "J.", "St.", "Mrs."


def case_style(text: str) -> CaseStyle:
    """Returns "lower" (no capitals), "upper" (ALL CAPS), "title" (Most Words Have One), "sentence" or "none".

    Words of one letter and of scripts without case do not count; "none" is a text without others.
    """
    words = [match[0] for match in WORD.finditer(text)]
    words = [word for word in words if len(word) > 1 and word[0].lower() != word[0].upper()]
    if not words:
        return "none"
    capitals = sum(word[0].isupper() for word in words)
    if not capitals:
        return "lower"
    if len(words) > 1 and sum(word.isupper() for word in words) > _UPPER_SHARE * len(words):
        return "upper"
    if len(words) >= _TITLE_WORDS_MIN and capitals > _TITLE_SHARE * len(words):
        return "title"
    return "sentence"


def has_capitalised_word(text: str) -> bool:
    """Returns whether a word of `text` begins with a capital and has small letters, as "Rome"; "JPG" does not."""
    if _CAPITALISED.search(text):  # pragma: no mutate: to save time
        return True
    return any(match[0][0].isupper() and not match[0].isupper() for match in WORD.finditer(text))


def sentence_starts(text: str) -> frozenset[int]:
    """Returns where the words start that are the first of a sentence, a heading or an item of a list."""
    starts, before = set(), ""
    done = 0  # pragma: no mutate: what stands before the first word does not count
    for match in WORD.finditer(text):
        between = text[done : match.start()]
        is_abbreviated = between == ". " and _ABBREVIATION.fullmatch(before) is not None
        if not before or (_SENTENCE_END.search(between) and not is_abbreviated):
            starts.add(match.start())
        done, before = match.end(), match[0]
    return frozenset(starts)
