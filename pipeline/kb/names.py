"""The names of the knowledge base in a text: the longest are taken, none overlap."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.kb.normalise import WORD, alias_variants, normalise_alias

if TYPE_CHECKING:
    from pipeline.kb.store import KnowledgeBase

WORDS_MAX = 7  # of a name
TEXT_CHARS_MAX = 2000  # longer texts are page text, not alt-texts
# Words that are names of something, but almost never in a text about a picture. Skipped only when they occur alone.
STOP_NAMES = frozenset(
    "a about above after again all also am an and any are art as at back be because been before being below best "
    "big black blue both but buy by can cart cheap click clip clipart close collection color colour day delivery "
    "design did do does download each edit en eps etc every few file first flat for free from get gif go good "
    "great green had has have hd he her here high him his home how i icon icons if illustration image images img "
    "in info into is isolated it item its jpeg jpg just large last like line list logo look made make many me "
    "menu mini model more most much must my name national need new next no not now of off official on one online "
    "only open or order original other our out over pack page photo photos pic pics picture "
    "pictures png post preview price print product products quality red sale same search see set she shipping "
    "shop show sign size small so some stock store style such svg symbol tag tags than that the their them then "
    "there these they thing this those thumbnail time to today too top transparent two type up us use vector "
    "vectors very via view wallpaper was we web webp website were what when where which white who why will with "
    "you your".split()
)
_ARTICLES = ("the ", "a ", "an ")
_ABBREVIATED = re.compile(
    r"\b(?:inc|ltd|co|corp|bros|jr|sr|(?:\w\.)+\w)$", re.IGNORECASE
)  # the dot belongs to the name


def find_names(text: str, kb: KnowledgeBase) -> Iterator[tuple[int, int]]:
    """Returns the spans `[start, end)` of names of `kb`, leftmost and longest first, none overlapping."""
    words = [match.span() for match in WORD.finditer(text)]
    first = 0
    while first < len(words):
        step = 1
        for last in range(min(first + WORDS_MAX, len(words)) - 1, first - 1, -1):
            start, end = words[first][0], words[last][1]
            surface = text[start:end]
            if last == first and (surface.casefold() in STOP_NAMES or len(surface) < 2 and surface.isascii()):
                continue
            if surface.isdigit():
                continue
            if surface.casefold().startswith(_ARTICLES) and not kb.has_alias(normalise_alias(surface)):
                continue  # known without the article only: the name starts after it
            if is_known(surface, kb):
                yield start, end + (text[end : end + 1] == "." and bool(_ABBREVIATED.search(surface)))
                step = last - first + 1
                break
        first += step


def is_known(surface: str, kb: KnowledgeBase) -> bool:
    """Returns whether `kb` has `surface` as a name, perhaps without possessive, article, legal form or plural."""
    key = normalise_alias(surface)
    return kb.has_alias(key) or any(kb.has_alias(variant) for variant in alias_variants(key))


def entities_named(surface: str, kb: KnowledgeBase) -> set[str]:
    """Returns the ids of all entities with the name `surface`, in the forms that `is_known` accepts."""
    key = normalise_alias(surface)
    return {entry.entity_id for one in (key, *alias_variants(key)) for entry in kb.entries(one)}
