"""How often the words of a link mean which entity, and how often the same words are no link."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from pipeline.kb.normalise import WORD, normalise_alias
from pipeline.storage.disk import new_file
from pipeline.wiki.articles import Article

WORDS_MAX = 7  # of an anchor
_BYTES_MAX = 500  # of a name in the base
EntityOf = Callable[[str], str]  # title to the id of its entity
EntitiesOf = Callable[[str], Collection[str]]
Links = Mapping[str, Mapping[str, int]]  # spelling to title or entity to count


def count_links(articles: Iterable[Article]) -> dict[str, collections.Counter[str]]:
    """Returns spelling -> title -> number of links; spellings of more than `WORDS_MAX` words are left out."""
    found: dict[str, collections.Counter[str]] = {}
    for article in articles:
        for spelling, title in links_of(article):
            found.setdefault(spelling, collections.Counter())[title] += 1
    return found


def links_of(article: Article) -> Iterator[tuple[str, str]]:
    """Returns spelling and title of each link; spellings of more than `WORDS_MAX` words are left out."""
    for paragraph in article.paragraphs:
        for link in paragraph.links:
            spelling = paragraph.text[link.start : link.end]
            if _is_name(spelling):
                yield spelling, link.title


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
    """Returns how often each spelling of `links`, written in lower case, occurs without a link; see `unlinked_in`."""
    entities: dict[str, set[str]] = {}
    for spelling, counts in links.items():
        entities.setdefault(spelling_key(spelling), set()).update(counts)
    none: frozenset[str] = frozenset()
    return collections.Counter(
        surface
        for article in articles
        for surface in unlinked_in(article, lambda key: entities.get(key, none), entity_of)
    )


def unlinked_in(article: Article, entities_of: EntitiesOf, entity_of: EntityOf) -> Iterator[str]:
    """Returns the spellings that `article` writes in lower case and does not link.

    They then are common words. With a capital letter they still are names: Wikipedia does not link what every reader
    knows. It links a name once in an article, and an article never to itself, so none is returned that the article
    links, or whose entity it links or is about. The longest spelling counts, not those within it; within the words of
    a link none does.

    Args:
        article: is searched.
        entities_of: the entities that links mean by a spelling, by its `spelling_key`; none of an unknown one.
        entity_of: the entity of a title.
    """
    linked = {entity_of(article.title)}
    linked_spellings = set()
    for paragraph in article.paragraphs:
        for link in paragraph.links:
            linked.add(entity_of(link.title))
            linked_spellings.add(paragraph.text[link.start : link.end].casefold())
    for paragraph in article.paragraphs:
        spans = [(link.start, link.end) for link in paragraph.links]
        for surface, entities in _longest(paragraph.text, spans, entities_of):
            if surface.islower() and surface not in linked_spellings and linked.isdisjoint(entities):
                yield surface


def spelling_key(spelling: str) -> str:
    """Returns a spelling in lower case, from its first word to its last."""
    words = [match.span() for match in WORD.finditer(spelling)]
    return spelling[words[0][0] : words[-1][1]].casefold()


def _longest(text: str, spans: list[tuple[int, int]], entities_of: EntitiesOf) -> Iterator[tuple[str, Collection[str]]]:
    """Returns the known names in `text` with their entities, the leftmost and longest first.

    They overlap neither each other nor `spans`.

    Args:
        text: in which names may have any case.
        spans: of links.
        entities_of: see `unlinked_in`.
    """
    words = [match.span() for match in WORD.finditer(text)]
    first = 0
    while first < len(words):
        step = 1
        for last in range(min(first + WORDS_MAX, len(words)) - 1, first - 1, -1):
            start, end = words[first][0], words[last][1]
            surface = text[start:end]
            if entities := entities_of(surface.casefold()):
                if all(end <= a or b <= start for a, b in spans):
                    yield surface, entities
                step = last - first + 1
                break
        first += step


def write_anchors(path: str | os.PathLike[str], links: Links, unlinked: Mapping[str, int]) -> int:
    """Writes lines `spelling <tab> entity <tab> count`, no entity for occurrences without a link; returns how many."""
    lines = [(spelling, entity_id, count) for spelling, counts in links.items() for entity_id, count in counts.items()]
    lines += [(spelling, "", count) for spelling, count in unlinked.items()]
    return write_lines(path, sorted(lines))


def write_lines(path: str | os.PathLike[str], lines: Iterable[tuple[str, str, int]]) -> int:
    """Writes spelling, entity or "", and count; returns how many lines."""
    num_lines = 0
    with new_file(path) as file:
        for spelling, entity_id, count in lines:
            file.write(f"{spelling}\t{entity_id}\t{count}\n".encode())
            num_lines += 1
    return num_lines
