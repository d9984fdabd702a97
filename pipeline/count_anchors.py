"""`python -m pipeline.count_anchors`: Wikipedia articles -> how often each name means which entity.

It writes lines `alias <tab> entity <tab> count` for `python -m pipeline.build_kb --anchors`. A line without an entity
counts occurrences that are no link.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import heapq
import itertools
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator

import tqdm
import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.config import check_at_least
from pipeline.kb.build.runs import Runs
from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors
from pipeline.wiki.anchors import EntityOf, links_of, spelling_key, unlinked_in, write_lines
from pipeline.wiki.articles import Article, read_articles
from pipeline.wiki.disk_tables import Counts, Table
from pipeline.wiki.excerpt import REDIRECTS, TITLES, read_excerpt
from pipeline.wiki.titles import Titles, is_aside, redirect_pairs, title_pairs

OUTSIDE = "enwiki:"  # before the title of an article whose entity the table lacks
_LINES_HELD = 200_000  # in memory
_TITLES_REMEMBERED = 200_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountAnchorsConfig:
    """Counts what the links of Wikipedia mean."""

    dump: str | None = None
    """A dump of MediaWiki pages (.xml, .xml.bz2), read twice. By default the first half of the excerpt in gensim's
    wheel."""
    titles: str | None = None
    """Lines of title and entity with a tab between. By default the table of the excerpt, for the demo's base."""
    redirects: str | None = None
    """Lines of old title and title with a tab between, besides the redirects of the dump."""
    output: str = "runs/demo/anchors/anchors.tsv"
    """The file to write."""
    num_processes: int = 1
    """Processes that read a dump."""


def count_anchors(config: CountAnchorsConfig) -> tuple[int, int]:
    """Returns the number of spellings and of lines that were written.

    A link to an article that the table lacks counts for an id of its own: the words were a name there, and of something
    that the base may lack. It does not count where the words are the title of an article that the table has: "France"
    that links "French government" does not make it less likely that "France" is the country.

    Raises:
        UserError: a file cannot be read, a value is out of range, or no link has an entity.
    """
    check_at_least("--num-processes", config.num_processes, 1)
    table = config.titles or TITLES
    output_folder = os.path.dirname(config.output) or "."
    os.makedirs(output_folder, exist_ok=True)
    # All that grows with the dump lies on disk.
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="count-anchors-", dir=output_folder))
        entities, redirects, spellings = (
            stack.enter_context(Table(folder, name)) for name in ("titles", "redirects", "spellings")
        )
        entities.add(title_pairs(table))
        links = Counts(folder, "links")
        for article in _articles(config, "links"):
            if article.redirect:
                redirects.add([(article.title, article.redirect)])
            else:
                links.add(links_of(article))
        for path in (config.redirects, REDIRECTS if config.dump is None else None):
            redirects.add(redirect_pairs(path) if path else ())
        titles = Titles(entities.get, redirects.last)

        @functools.lru_cache(_TITLES_REMEMBERED)
        def entity_of(title: str) -> str:
            return next(iter(titles.entity_ids(title)), "") or OUTSIDE + titles.canonical(title)

        linked = Runs(folder, "linked", num_items=_LINES_HELD)
        num_spellings, is_any_known = 0, False
        for spelling, counts in _by_entity(links, entity_of, titles):
            num_spellings += 1
            is_any_known |= not all(entity_id.startswith(OUTSIDE) for entity_id in counts)
            linked.extend((spelling, entity_id, count) for entity_id, count in counts.items())
            spellings.add((spelling_key(spelling), entity_id) for entity_id in counts)
        if not is_any_known:
            raise UserError(f"{table}: no link is to one of its titles; give the titles of this dump")
        unlinked = Counts(folder, "unlinked")
        for article in _articles(config, "names without a link"):
            if not article.redirect:
                unlinked.add((surface,) for surface in unlinked_in(article, spellings.get, entity_of))
        lines = heapq.merge(linked.merged(), ((surface, "", count) for (surface,), count in unlinked.counted()))
        return num_spellings, write_lines(config.output, lines)


def _by_entity(links: Counts, entity_of: EntityOf, titles: Titles) -> Iterator[tuple[str, Counter[str]]]:
    """Returns each spelling in order, and how often it links to each entity, without links that are asides."""
    for spelling, group in itertools.groupby(links.counted(), key=lambda counted: counted[0][0]):
        counts: Counter[str] = Counter()
        for (_, title), count in group:
            entity_id = entity_of(title)
            if not entity_id.startswith(OUTSIDE) or not is_aside(title, spelling, titles.entity_ids):
                counts[entity_id] += count
        if counts:
            yield spelling, counts


def _articles(config: CountAnchorsConfig, what: str) -> Iterator[Article]:
    """Returns the articles and the redirects."""
    if config.dump is None:
        yield from read_excerpt(half="first")
        return
    interval_sec = 0.1 if sys.stderr.isatty() else 10.0
    size = os.path.getsize(config.dump) if os.path.exists(config.dump) else None
    with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=what, mininterval=interval_sec) as progress:

        def watch(num_bytes: int) -> None:
            progress.update(num_bytes - progress.n)

        yield from read_articles(config.dump, num_processes=config.num_processes, watch=watch)


def main() -> None:
    """Runs the command."""
    config = tyro.cli(CountAnchorsConfig, prog="python -m pipeline.count_anchors")
    with ending_on_user_errors(), reporting_disk_errors(os.path.dirname(config.output) or "."):
        num_spellings, num_lines = count_anchors(config)
    print(f"{config.output}: {num_spellings:,} spellings, {num_lines:,} lines")


if __name__ == "__main__":
    main()
