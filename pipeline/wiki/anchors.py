"""How often the words of a link mean which entity, and how often the same words are no link."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Mapping

from pipeline.kb.normalise import WORD, normalise_alias
from pipeline.storage.disk import new_file
from pipeline.wiki.articles import Article

WORDS_MAX = 7  # of an anchor
_BYTES_MAX = 500  # of a name in the base
EntityOf = Callable[[str], str]  # title to the id of its entity
Links = Mapping[str, Mapping[str, int]]  # spelling to title or entity to count


def count_links(articles: Iterable[Article]) -> dict[str, collections.Counter[str]]:
    """Returns spelling -> title -> number of links; spellings of more than `WORDS_MAX` words are left out."""
    found: dict[str, collections.Counter[str]] = {}
    for article in articles:
        for paragraph in article.paragraphs:
            for link in paragraph.links:
                spelling = paragraph.text[link.start : link.end]
                if _is_name(spelling):
                    found.setdefault(spelling, collections.Counter())[link.title] += 1
    return found


def by_entity(links: Links, entity_of: EntityOf) -> dict[str, collections.Counter[str]]:
    """Returns spelling -> entity -> number of links, of spelling -> title -> number of links."""
    found: dict[str, collections.Counter[str]] = {}
    for spelling, counts in links.items():
        of_spelling = found[spelling] = collections.Counter()
        for title, count in counts.items():
            of_spelling[entity_of(title)] += count
    return found


def _is_name(spelling: str) -> bool:
    key = normalise_alias(spelling)
    return 0 < len(key.encode()) <= _BYTES_MAX and 0 < len(WORD.findall(spelling)) <= WORDS_MAX


def count_unlinked(articles: Iterable[Article], links: Links, entity_of: EntityOf) -> collections.Counter[str]:
    """Returns how often each spelling of `links`, written in lower case, occurs without a link.

    It then was a common word. With a capital letter it still is a name: Wikipedia does not link what every reader
    knows. It links a name once in an article, and an article never to itself, so a spelling is counted only in
    articles that link neither it nor any of its entities, and that are not about one of them. The longest spelling
    counts, not those within it; within the words of a link none does.
    """
    entities: dict[str, set[str]] = {}  # of the spelling in lower case
    for spelling, counts in links.items():
        entities.setdefault(_from_word_to_word(spelling).casefold(), set()).update(counts)
    found: collections.Counter[str] = collections.Counter()
    for article in articles:
        linked = {entity_of(article.title)}
        linked_spellings = set()
        for paragraph in article.paragraphs:
            for link in paragraph.links:
                linked.add(entity_of(link.title))
                linked_spellings.add(paragraph.text[link.start : link.end].casefold())
        for paragraph in article.paragraphs:
            spans = [(link.start, link.end) for link in paragraph.links]
            for surface in _longest(paragraph.text, spans, entities):
                if surface.islower() and surface not in linked_spellings and linked.isdisjoint(entities[surface]):
                    found[surface] += 1
    return found


def _from_word_to_word(spelling: str) -> str:
    words = [match.span() for match in WORD.finditer(spelling)]
    return spelling[words[0][0] : words[-1][1]]


def _longest(text: str, spans: list[tuple[int, int]], known: Mapping[str, object]) -> Iterable[str]:
    """Yields the known names in `text`, leftmost and longest first, that overlap neither each other nor `spans`.

    Args:
        text: in which names may have any case.
        spans: of links.
        known: names in lower case.
    """
    words = [match.span() for match in WORD.finditer(text)]
    first = 0
    while first < len(words):
        step = 1
        for last in range(min(first + WORDS_MAX, len(words)) - 1, first - 1, -1):
            start, end = words[first][0], words[last][1]
            surface = text[start:end]
            if surface.casefold() in known:
                if all(end <= a or b <= start for a, b in spans):
                    yield surface
                step = last - first + 1
                break
        first += step


def write_anchors(path: str | os.PathLike[str], links: Links, unlinked: Mapping[str, int]) -> int:
    """Writes lines `spelling <tab> entity <tab> count`, no entity for occurrences without a link; returns how many."""
    lines = [(spelling, entity_id, count) for spelling, counts in links.items() for entity_id, count in counts.items()]
    lines += [(spelling, "", count) for spelling, count in unlinked.items()]
    with new_file(path) as file:
        for spelling, entity_id, count in sorted(lines):
            file.write(f"{spelling}\t{entity_id}\t{count}\n".encode())
    return len(lines)
