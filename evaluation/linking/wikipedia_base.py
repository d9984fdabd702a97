"""A knowledge base of what some Wikipedia articles link, merged with the demo's: source lines and anchors of it.

An article that is linked is an entity: its title is the label, the words in brackets behind it are a type. Its links
are the articles that link it, and what these link in the same paragraph. Where the table of titles has an entity of
the demo's base for it, it is that one.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.sets.text import read_json_lines
from pipeline.storage.disk import new_file
from pipeline.wiki.anchors import by_entity, count_links, count_unlinked, write_anchors
from pipeline.wiki.articles import Article
from pipeline.wiki.excerpt import REDIRECTS, TITLES
from pipeline.wiki.titles import Titles, read_redirects, read_titles

PREFIX = "enwiki:"  # of the id of an entity that the demo's base lacks
_LINKS_MAX = 64
_BESIDE_MAX = 60  # linked entities of a paragraph; a longer list says little of each
_REMEDY = "make it with: python -m pipeline.demo.corpus"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedBase:
    """What `python -m pipeline.build_kb` needs, and which entities are in the base."""

    source: Path
    anchors: Path  # without the links to entities that were left out
    all_anchors: Path
    entity_ids: frozenset[str]
    titles: Titles

    def entities_of(self, title: str) -> tuple[str, ...]:
        """Returns the entities of the base that an article is about; () where it has none."""
        known = self.titles.entity_ids(title) or (PREFIX + self.titles.canonical(title),)
        return tuple(entity_id for entity_id in known if entity_id in self.entity_ids)


def is_kept(entity_id: str, share: float) -> bool:
    """Returns whether an entity is among the `share`, in [0, 1], that a hash of ids keeps."""
    return int(hashlib.sha256(entity_id.encode()).hexdigest()[:8], 16) < share * 2**32


def excerpt_titles() -> Titles:
    """Returns the titles of the excerpt, with their entities in the demo's base."""
    return Titles.of(read_titles(TITLES), read_redirects(REDIRECTS))


def write_merged_base(
    articles: Sequence[Article], kb_source: Path, output: Path, *, kept_share: float = 1.0
) -> MergedBase:
    """Writes `kb_source.jsonl`, `anchors.tsv` and `all_anchors.tsv` to the folder `output`.

    Args:
        articles: whose links make the base.
        kb_source: lines of the demo's base.
        output: folder of the two files.
        kept_share: share of the linked entities to keep, in (0, 1]; the others are left out, so that a fit sees
            names whose entity the base lacks.

    Raises:
        UserError: `kb_source` cannot be read.
    """
    titles = excerpt_titles()
    lines = [line for _, line in read_json_lines(kb_source, remedy=_REMEDY)]
    of_demo = {line["id"] for line in lines if "label" in line}

    def entities_of(title: str) -> tuple[str, ...]:
        known = tuple(one for one in titles.entity_ids(title) if one in of_demo)
        return known or (PREFIX + titles.canonical(title),)

    linking: dict[str, collections.Counter[str]] = {}  # entity to the articles that link it
    for article in articles:
        for paragraph in article.paragraphs:
            for link in paragraph.links:
                for entity_id in entities_of(link.title):
                    linking.setdefault(entity_id, collections.Counter())[article.title] += 1
    left_out = {entity_id for entity_id in linking if not is_kept(entity_id, kept_share)}
    lines = [line for line in lines if line["id"] not in left_out]
    new = {one for one in linking if one.startswith(PREFIX)} - left_out
    entity_ids = frozenset((of_demo - left_out) | new)
    links = by_entity(count_links(articles), lambda title: entities_of(title)[0])
    spellings: dict[str, collections.Counter[str]] = {}  # entity to the spellings that link it
    for spelling, counts in links.items():
        for entity_id, count in counts.items():
            spellings.setdefault(entity_id, collections.Counter())[spelling] += count
    lines += [
        _line(entity_id, linking[entity_id], spellings.get(entity_id, {}), entities_of, entity_ids)
        for entity_id in sorted(new)
    ]

    beside = _linked_beside(articles, entities_of)
    for line in lines:
        further = [one for one, _ in beside.get(line["id"], collections.Counter()).most_common() if one in entity_ids]
        if further:
            line["links"] = list(dict.fromkeys([*(line.get("links") or []), *further[:_LINKS_MAX]]))

    output.mkdir(parents=True, exist_ok=True)
    with new_file(output / "kb_source.jsonl") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    unlinked = count_unlinked(articles, links, lambda title: entities_of(title)[0])
    write_anchors(output / "all_anchors.tsv", links, unlinked)
    # What is left out stands for entities that no link is known of.
    known = {
        spelling: {one: n for one, n in counts.items() if one not in left_out} for spelling, counts in links.items()
    }
    write_anchors(output / "anchors.tsv", known, unlinked)
    return MergedBase(
        source=output / "kb_source.jsonl",
        anchors=output / "anchors.tsv",
        all_anchors=output / "all_anchors.tsv",
        entity_ids=entity_ids,
        titles=titles,
    )


def _linked_beside(
    articles: Sequence[Article], entities_of: Callable[[str], Sequence[str]]
) -> dict[str, collections.Counter[str]]:
    """Returns entity -> the entities that are linked in the same paragraph, with the number of these paragraphs."""
    found: dict[str, collections.Counter[str]] = {}
    for article in articles:
        for paragraph in article.paragraphs:
            ids = dict.fromkeys(one for link in paragraph.links for one in entities_of(link.title))
            if len(ids) > _BESIDE_MAX:
                continue
            for one in ids:
                found.setdefault(one, collections.Counter()).update(other for other in ids if other != one)
    return found


def _line(
    entity_id: str,
    linking: collections.Counter[str],
    spellings: Mapping[str, int],
    entities_of: Callable[[str], Iterable[str]],
    entity_ids: frozenset[str],
) -> dict[str, Any]:
    label, _, rest = entity_id.removeprefix(PREFIX).partition(" (")
    # Every title begins with a capital; how links write it says whether it is a proper name.
    alike = [one for one in spellings if one.casefold() == label.casefold()]
    label = min(alike, key=lambda one: (-spellings[one], one), default=label)
    kind = rest.removesuffix(")")
    from_articles = [one for title in linking for one in entities_of(title) if one in entity_ids and one != entity_id]
    return {
        "id": entity_id,
        "label": label or entity_id.removeprefix(PREFIX),
        "description": kind,
        "aliases": [],
        "types": [kind] if kind else [],
        "popularity": float(sum(linking.values())),
        "links": from_articles[:_LINKS_MAX],
    }


def base_of(kb_source: str | os.PathLike[str]) -> MergedBase:
    """Returns the demo's base alone, without anchors, for `entities_of`.

    Raises:
        UserError: `kb_source` cannot be read.
    """
    path = Path(kb_source)
    ids = frozenset(line["id"] for _, line in read_json_lines(path, remedy=_REMEDY) if "label" in line)
    return MergedBase(source=path, anchors=path, all_anchors=path, entity_ids=ids, titles=excerpt_titles())
