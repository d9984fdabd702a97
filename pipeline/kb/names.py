"""The names of the knowledge base in a text: the longest are taken, none overlap."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.kb.case import case_style
from pipeline.kb.function_words import FunctionWords, of_languages
from pipeline.kb.normalise import (
    FOLDED,
    FOLDED_MATCH,
    HAN,
    LEGAL_FORMS,
    WORD,
    Spelling,
    fold_accents,
    fold_key,
    normalise_alias,
    normalise_piece,
    variant_spellings,
)

if TYPE_CHECKING:
    from pipeline.kb.store import KnowledgeBase

# Of a text, what is read. Alt-texts are shorter; page text is longer, and names no picture.
TEXT_CHARS_MAX = 2000
_ABBREVIATED = re.compile(r"\b(?:inc|ltd|co|corp|bros|jr|sr|\w\.\w)$", re.IGNORECASE)  # the dot belongs to the name
_LEGAL_FORMS = frozenset(LEGAL_FORMS)
# A word of at least this many letters is looked up as a name of several words whose blanks are left out (ours).
_JOINED_CHARS_MIN = 8
# The search reads such a word letter by letter, and keeps at most this many ways to set blanks in what it has read. Few
# names of a base begin alike, so more are never needed (ours).
_JOINED_WAYS_MAX = 32


class Token(NamedTuple):
    """A word of a text, or a part of one that is written without blanks."""

    start: int
    end: int
    key: str  # what it adds to the key of a name
    before: str  # what stands between the word before and it adds


def head(text: str) -> str:
    """Returns what is read of `text`: its first `TEXT_CHARS_MAX` characters, without a word that would be cut."""
    if len(text) <= TEXT_CHARS_MAX:
        return text
    blank = text.rfind(" ", TEXT_CHARS_MAX // 2, TEXT_CHARS_MAX + 1)
    return text[:TEXT_CHARS_MAX] if blank == -1 else text[:blank]  # scripts without spaces


def find_names(text: str, kb: KnowledgeBase) -> Iterator[tuple[int, int]]:
    """Returns the spans `[start, end)` of names of `kb`, leftmost and longest first, none overlapping.

    Function words are no names, unless in capitals in a text that has small letters, where the base has such an
    acronym: "made in the US". Neither are names that a text in another language writes small and begins with one of
    its function words ("sur la table"), figures, and single letters.

    A word that may be cut into parts is cut only if it is in no name as it is: the "JPMorgan" of "JPMorgan-Chase" is
    one word where the base has that name.
    """
    words, parts = split_words(text, kb)
    names = list(_longest_names(text, words, kb))
    if parts:
        whole = {place for first, last in names for place in range(first, last + 1)}
        words = [
            token
            for place, word in enumerate(words)
            for token in (parts[place] if place in parts and place not in whole else [word])
        ]
        names = list(_longest_names(text, words, kb))
    for first, last in names:
        start, end = words[first].start, words[last].end
        yield start, end + (text[end : end + 1] == "." and bool(_ABBREVIATED.search(text[start:end])))


def _longest_names(text: str, tokens: Sequence[Token], kb: KnowledgeBase) -> Iterator[tuple[int, int]]:
    """Returns the first and the last token of each name of `kb`, leftmost and longest first, none overlapping."""
    search = _Search(text, tokens, kb)
    first = 0
    while first < len(tokens):  # pragma: no mutate: no name begins behind the last word
        last = search.longest(first)
        if last is None:
            first += 1
            continue
        yield first, last
        first = last + 1


def is_known(surface: str, kb: KnowledgeBase) -> bool:
    """Returns whether `kb` has `surface` as a name, perhaps spelled otherwise."""
    return any(_has(spelling, kb) for spelling in spellings(surface, kb))


def spellings(surface: str, kb: KnowledgeBase) -> Iterator[Spelling]:
    """Returns the keys under which `kb` may have the name `surface`, itself first.

    They are the name itself, without possessive, article, legal form or plural, without accents, apostrophes and the
    like, and the words of a name that is written without blanks. None but the first is a function word: "us inc" does
    not mean "us".
    """
    key, stop = normalise_alias(surface), own_words(kb).own
    yield Spelling(key, 1.0)
    yield from (one for one in _variants(key, kb) if one.key not in stop)
    split = WORD.sub(lambda word: " ".join(_parts(word[0])), surface)
    if split != surface:
        key = normalise_alias(split)
        yield Spelling(key, FOLDED_MATCH)
        yield from (one for one in _variants(key, kb) if one.key not in stop)
    elif not kb.has_alias(key) and (joined := _joined_name(key, kb)):
        yield Spelling(joined, FOLDED_MATCH)


def _variants(key: str, kb: KnowledgeBase) -> Iterator[Spelling]:
    """Returns the other spellings of `key`. Of a name with accents that `kb` has, those without are no common nouns."""
    yield from variant_spellings(key)
    folded = fold_key(key)
    names_only = fold_accents(key) != key and any(entry.is_name for entry in kb.entries(key))
    if folded != key:
        yield Spelling(folded, FOLDED_MATCH, names_only=names_only)
    yield Spelling(FOLDED + folded, FOLDED_MATCH, names_only=names_only)


def _has(spelling: Spelling, kb: KnowledgeBase) -> bool:
    if not (spelling.nouns_only or spelling.names_only):
        return kb.has_alias(spelling.key)
    return any(spelling.allows(entry.is_name) for entry in kb.entries(spelling.key))


def own_words(kb: KnowledgeBase) -> FunctionWords:
    """Returns the function words of the languages of `kb`."""
    return of_languages(tuple(kb.manifest["languages"]))


def split_words(text: str, kb: KnowledgeBase) -> tuple[list[Token], dict[int, list[Token]]]:
    """Returns the words of `text`, and the parts of those that may be cut, by their places among the words.

    Hashtags, and the words of a text without blanks such as a file name, may be cut where a capital or a figure begins
    a part: "#SouthAfricaTravel", "norway2019.jpg". "iPad" has no parts, and a word that `kb` has as a name is not cut.

    A word that is a name of `kb` without its blanks has the key of that name and is not cut: "BurgerKing" and
    "SouthAfrica" by their capitals in any text, "newzealand" only in a hashtag, a name of an account or a text without
    blanks.
    """
    words: list[Token] = []
    parts_of: dict[int, list[Token]] = {}
    done = 0
    is_file_name = " " not in text and not text.isalnum()
    for match in WORD.finditer(text):
        word, (start, end) = match[0], match.span()
        before, key, done = normalise_piece(text[done:start]), normalise_piece(word), end
        sign = text[start - 1 : start]
        may_split = sign == "#" or is_file_name
        if may_split or sign == "@" or not (word.isalpha() and (word[1:].islower() or word.isupper())):
            parts, joined = _parts(word), None
            if len(parts) > 1 and _is_known_key(spaced := " ".join(map(normalise_piece, parts)), kb):
                joined = spaced
            elif may_split or sign == "@":
                joined = _joined_name(key, kb)
            if (joined or (len(parts) > 1 and may_split)) and not _is_known_key(key, kb):
                if joined:
                    key = joined.removeprefix(FOLDED)
                else:
                    parts_of[len(words)] = _part_tokens(parts, start, before)
        words.append(Token(start, end, key, before))
    return words, parts_of


def _part_tokens(parts: Sequence[str], start: int, before: str) -> list[Token]:
    """Returns the tokens of the parts of a word that begins at `start` and follows `before`."""
    tokens = []
    for part in parts:
        tokens.append(Token(start, start + len(part), normalise_piece(part), before))
        start, before = start + len(part), " "
    return tokens


def _is_known_key(key: str, kb: KnowledgeBase) -> bool:
    """Returns whether `kb` has the normalised name `key`, perhaps spelled otherwise, with the blanks that it has."""
    return kb.has_alias(key) or any(_has(spelling, kb) for spelling in _variants(key, kb))


def _joined_name(key: str, kb: KnowledgeBase) -> str | None:
    """Returns the key of the name of `kb` that gives `key` when its blanks are left out; None if there is none.

    Of several such names it is the one whose first blank comes last ("ther apist" before "the rapist"), then the second
    blank, and so on. Words with fewer than `_JOINED_CHARS_MIN` letters, or with figures, have none.
    """
    if len(key) < _JOINED_CHARS_MIN or not key.isalpha():
        return None
    ways = ["", FOLDED]
    for letter in key:
        longer = (way + blank + letter for way in ways for blank in ("", " "))
        ways = list(itertools.islice(filter(kb.is_prefix, longer), _JOINED_WAYS_MAX))
        if not ways:  # pragma: no mutate: to save time
            return None
    return next((way for way in ways if " " in way and kb.has_alias(way)), None)


def _parts(word: str) -> list[str]:
    """Returns the parts of a word that is written without blanks: it is cut at capitals and at figures."""
    cuts = [0]
    for place in range(1, len(word)):
        before, here, after = word[place - 1], word[place], word[place + 1 : place + 2]
        if (
            (before.islower() and here.isupper() and place > 1)  # "iPad" is one word
            or (before.isdigit() != here.isdigit())
            or (before.isupper() and here.isupper() and after.islower())  # "USAToday"
        ):
            cuts.append(place)
    return [word[start:end] for start, end in itertools.pairwise([*cuts, len(word)])]


class _Search:
    """The search for names in one text."""

    def __init__(self, text: str, tokens: Sequence[Token], kb: KnowledgeBase) -> None:
        self._text = text
        self._tokens = tokens
        self._kb = kb
        words = own_words(kb)
        self._own = words.own
        self._stop = words.of_text(token.key for token in tokens)

    def longest(self, first: int) -> int | None:
        """Returns the last token of the longest name that begins with token `first`; None if no name begins there."""
        kb, tokens, found, key = self._kb, self._tokens, None, ""
        for last in range(first, len(tokens)):
            token = tokens[last]
            key = key + token.before + token.key if key else token.key
            folded = fold_key(key)
            if self._is_name(first, last, key, folded):
                found = last
            # No name of the base goes on like this, however it is spelled.
            if not (kb.is_prefix(key) or kb.is_prefix(FOLDED + folded) or (folded != key and kb.is_prefix(folded))):
                break
        return found

    def _is_name(self, first: int, last: int, key: str, folded: str) -> bool:
        tokens, kb, stop = self._tokens, self._kb, self._stop
        begins_with_stop = tokens[first].key in stop
        if begins_with_stop and first == last:
            return self._is_acronym(first, key)
        if key in stop or key.replace(" ", "").isdigit():
            return False
        if first and tokens[first].before == "." and len(tokens[first].key) == len(tokens[first - 1].key) == 1:
            return False  # in the midst of an abbreviation
        surface = self._text[tokens[first].start : tokens[last].end]
        if len(surface) < 2 and not HAN.match(surface):
            return False
        if begins_with_stop and surface.islower():
            if tokens[first].key not in self._own or all(one.key in stop for one in tokens[first : last + 1]):
                return False
        if kb.has_alias(key):
            return True
        if begins_with_stop or folded in stop:
            return False  # known without the function word, if at all: the name starts after it
        ending = tokens[last]
        if ending.key == "s" and ending.before.endswith("'"):
            return kb.has_alias(folded)  # of a possessive the name ends before it
        if (ending.key.endswith("s") or ending.key in _LEGAL_FORMS) and any(
            _has(one, kb) and one.key not in stop and not one.key.isdigit() for one in variant_spellings(key)
        ):
            return True
        return kb.has_alias(FOLDED + folded) or (folded != key and kb.has_alias(folded))

    def _is_acronym(self, place: int, key: str) -> bool:
        token = self._tokens[place]
        surface = self._text[token.start : token.end]
        return (
            surface.isupper()
            and case_style(self._text) != "upper"
            and any(entry.case == "acronym" for entry in self._kb.entries(key))
        )
