"""Spellings: how a name becomes a key of the alias table, and how a text is split into words."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple

# Kana, Han, Thai, Lao, Tibetan, Burmese and Khmer are written without spaces.
_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_OTHER_UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_UNSPACED = _HAN + _OTHER_UNSPACED


_OF_SYMBOLS = frozenset((*range(0x20D0, 0x2100), *range(0xFE00, 0xFE10)))  # marks of symbols and emoji


def _marks() -> str:
    """Returns the characters that belong to the letter before them, such as accents and vowel signs."""
    codes = set(range(0x300, 0x10000)) - _OF_SYMBOLS  # pragma: no mutate: the neighbours of the ends are no marks
    marks = (char for char in map(chr, sorted(codes)) if unicodedata.category(char) in ("Mn", "Mc"))
    return "".join(marks) + "\uff9e\uff9f"


MARKS = _marks()  # as the inside of a character class
_MARK = f"[{MARKS}]"
# Superscripts, subscripts, fractions and figures in circles are words of their own, each: a footnote is no part of the
# word that it follows.
_SMALL_FIGURES = (
    "\xb2\xb3\xb9\xbc-\xbe\u2070\u2074-\u2079\u2080-\u2089\u2150-\u215f\u2189\u2460-\u249b\u24ea-\u24ff\u2776-\u2793"
)
_ALONE = _UNSPACED + _SMALL_FIGURES
# A word, or one character of a script without spaces, with its marks: spans of characters can then be names too.
WORD = re.compile(rf"(?:(?!{_MARK})[{_ALONE}])(?:{_MARK})*|[^\W_{_ALONE}]+(?:{_MARK}+[^\W_{_ALONE}]*)*")
_BLANKED = bytes(code if chr(code).isalnum() else 32 for code in range(256))  # for `bytes.translate` of ASCII
HAN = re.compile(f"[{_HAN}]")
KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f]+")

FOLDED = "\x01"  # before a key that `fold_key` gave: names that are spelled otherwise stand under it

_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u2032\u02b9\u02bc`", "'"))
_ACUTE = "\u00b4"  # an accent that stands alone, and is typed as an apostrophe
_OUTER = (
    " .,;:!?\"'()[]{}<>|/\\\u00ab\u00bb\u201a\u201c\u201d\u201e\u201f\u2039\u203a"
    "\u275b\u275c\u275d\u275e\u2e42\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f\u301d\u301e\u301f"
)
_POSSESSIVE = re.compile(r"'s?$")
LEGAL_FORMS = (
    "incorporated", "corporation", "holdings", "holding", "limited", "company", "group", "gmbh", "corp", "inc", "ltd",
    "llc", "plc", "ag", "sa", "se", "nv", "ab", "oy", "bv", "kg", "co",
)  # fmt: skip
# Longest first, so that "co., ltd." goes as one.
_LEGAL_SUFFIX = re.compile(rf"[,\s]+(?:co\.?, ltd|s\.p\.a|s\.a|{'|'.join(LEGAL_FORMS)})\.?$")
# How well spellings match (all ours).
_POSSESSIVE_MATCH = 0.9
_ARTICLE_MATCH = 0.9
FOLDED_MATCH = 0.8
_LEGAL_MATCH = 0.7
_SINGULAR_MATCH = 0.6

# Accents of Latin, Greek and Cyrillic letters, vowel signs of Hebrew and Arabic, and the stroke that makes an Arabic
# word longer. The marks of kana change the sound.
_ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670]")
_PLAIN_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
_DOT = re.compile(r"(?<!\d)\.|\.(?!\d)")  # not that of "2.0"
_AND = re.compile(r" ?& ?| and(?: |$)")
_INITIALS = re.compile(r"(?<!\S)(\w) (?=\w(?!\S))")


def find_words(text: str) -> list[str]:
    """Returns the words of `text` that `WORD` finds, at a quarter of the time where all is ASCII."""
    if not text.isascii():
        return WORD.findall(text)
    return text.encode().translate(_BLANKED).decode().split()


def normalise_alias(name: str) -> str:
    """Returns the key of `name`: NFKC, casefolded, one space for any run of blanks, hyphens and underscores.

    No letter is dropped or folded to ASCII. A name of punctuation alone ("!!!") keeps it: two such names must not
    share the empty key. Only a blank name gives "".
    """
    # Most names are such, and what follows takes most of the time.
    if name.isascii() and name.replace(" ", "").isalnum():  # pragma: no mutate: what follows does the same to them
        return " ".join(name.lower().split())
    folded = _fold_case(name)
    spaced = _SEPARATORS.sub(" ", folded).strip()
    stripped = spaced.strip(_OUTER)
    return stripped or spaced or folded.strip()


@functools.lru_cache(maxsize=100_000)  # some 250 bytes each: pieces are words
def normalise_piece(piece: str) -> str:
    """Returns what a word, or what stands between two, becomes within a key: the pieces of a name make up its key."""
    return _SEPARATORS.sub(" ", _fold_case(piece))


def fold_accents(key: str) -> str:
    """Returns the normalised name `key` without accents, and without vowel signs of Hebrew and Arabic."""
    if key.isascii():
        return key
    bare = _ACCENTS.sub("", unicodedata.normalize("NFD", key).translate(_PLAIN_LETTERS))
    return unicodedata.normalize("NFC", bare)


def fold_key(key: str) -> str:
    """Returns the normalised name `key` as careless writers spell it, equal for all such spellings.

    Accents, vowel signs of Hebrew and Arabic, apostrophes and dots are gone, and so are the blanks beside "&", which
    also stands for "and", and between initials: "wendy's" -> "wendys", "citroën" -> "citroen", "u.s.a" -> "usa",
    "h & m" -> "h&m", "j. r. r. tolkien" -> "jrr tolkien".
    """
    if key.isalnum() and key.isascii():  # pragma: no mutate: most words, to which what follows does nothing
        return key
    key = fold_accents(key).replace("'", "")
    if "." in key:
        key = _DOT.sub("", key)
    if "&" in key or " and" in key:
        key = _AND.sub("&", key)
    if _INITIALS.search(key):  # pragma: no mutate: it is quicker than `sub`, and most names have none
        key = _INITIALS.sub(r"\1", key)
    return key


def strip_possessive(key: str) -> str:
    """Returns the normalised name `key` without "'s" or "'" at its end."""
    return _POSSESSIVE.sub("", key)


def strip_legal_suffix(key: str) -> str:
    """Returns the normalised name `key` without legal forms at its end ("apple inc" -> "apple"), never empty."""
    while (match := _LEGAL_SUFFIX.search(key)) and match.start() > 0:
        key = key[: match.start()]
    return key


class Spelling(NamedTuple):
    """A key under which a name may be known."""

    key: str
    match: float  # how well it matches the name as it is written, in (0, 1]; 1 for an equal one
    nouns_only: bool = False  # whether only common nouns are meant: "heads" is not a brand called HEAD
    names_only: bool = False  # whether only proper names are meant: "Réunion" is no reunion

    def allows(self, is_name: bool) -> bool:
        """Returns whether an entity may be meant whose name is a proper one or not."""
        return not (self.nouns_only if is_name else self.names_only)


def alias_variants(key: str) -> list[str]:
    """Returns the other keys under which the normalised name `key` may be known, the most similar first, without `key`.

    They are: no possessive, no leading article, no legal form, the singular of the last word.
    """
    return [spelling.key for spelling in variant_spellings(key)]


def variant_spellings(key: str) -> list[Spelling]:
    """Returns `alias_variants` with how well each matches; singulars are for common nouns only."""
    base = strip_possessive(key)
    found: dict[str, Spelling] = {}
    for spelling in (
        Spelling(base, _POSSESSIVE_MATCH),
        Spelling(base.removeprefix("the "), _ARTICLE_MATCH),
        Spelling(strip_legal_suffix(base), _LEGAL_MATCH),
        *(Spelling(one, _SINGULAR_MATCH, nouns_only=True) for one in _singulars(base)),
    ):
        if spelling.key and spelling.key != key:
            found.setdefault(spelling.key, spelling)
    return list(found.values())


def _fold_case(name: str) -> str:
    if name.isascii():
        return name.lower().replace("`", "'")
    name = name.replace(_ACUTE, "'")  # NFKC would make a blank and an accent of it
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).translate(_APOSTROPHES)
    return folded.encode(errors="replace").decode()  # half of a surrogate pair, which no key can hold, becomes "?"


def _singulars(key: str) -> list[str]:
    if len(key) < 4 or not key.endswith("s") or key.endswith(("ss", "us", "is")):
        return []
    if key.endswith("ies"):
        return [key[:-3] + "y"]
    if key.endswith(("ches", "shes", "xes", "sses", "oes")):
        return [key[:-2], key[:-1]]
    return [key[:-1]]
