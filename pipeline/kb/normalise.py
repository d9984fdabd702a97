"""Spellings: how a name becomes a key of the alias table, and how a text is split into words."""

from __future__ import annotations

import re
import unicodedata

# A word, or one character of a script without spaces (kana, Han): spans of characters can then be names too.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")

_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "`": "'"})
_OUTER = " .,;:!?\"'()[]{}<>|/\\"
_POSSESSIVE = re.compile(r"'s?$")
# Longest first, so that "co., ltd." goes as one.
_LEGAL_SUFFIX = re.compile(
    r"[,\s]+(?:co\.?,? ltd|incorporated|corporation|holdings?|limited|company|group|gmbh|corp|inc|ltd|llc|plc|s\.p\.a"
    r"|s\.a|ag|sa|se|nv|ab|oy|bv|kg|co)\.?$"
)


def normalise_alias(name: str) -> str:
    """Returns the key of `name`: NFKC, casefolded, one space for any run of blanks, hyphens and underscores.

    No letter is dropped or folded to ASCII. A name of punctuation alone ("!!!") keeps it: two such names must not
    share the empty key. Only a blank name gives "".
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).translate(_APOSTROPHES)
    spaced = _SEPARATORS.sub(" ", folded).strip()
    stripped = spaced.strip(_OUTER)
    return stripped or spaced or folded.strip()


def strip_legal_suffix(key: str) -> str:
    """Returns the normalised name `key` without legal forms at its end ("apple inc" -> "apple"), never empty."""
    while (match := _LEGAL_SUFFIX.search(key)) and match.start() > 0:
        key = key[: match.start()]
    return key


def alias_variants(key: str) -> list[str]:
    """Returns the other keys under which the normalised name `key` may be known, the most similar first, without `key`.

    They are: no possessive, no leading article, no legal form, the singular of the last word.
    """
    variants: list[str] = []
    base = _POSSESSIVE.sub("", key)
    for variant in (base, base.removeprefix("the "), strip_legal_suffix(base), *_singulars(base)):
        if variant and variant != key and variant not in variants:
            variants.append(variant)
    return variants


def _singulars(key: str) -> list[str]:
    if len(key) < 4 or not key.endswith("s") or key.endswith(("ss", "us", "is")):
        return []
    if key.endswith("ies"):
        return [key[:-3] + "y"]
    if key.endswith(("ches", "shes", "xes", "sses", "oes")):
        return [key[:-2], key[:-1]]
    return [key[:-1]]
