"""`python -m pipeline.count_anchors`: Wikipedia articles -> how often each name means which entity.

It writes lines `alias <tab> entity <tab> count` for `python -m pipeline.build_kb --anchors`. A line without an entity
counts occurrences that are no link.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator

import tqdm
import tyro

from pipeline.config import check_at_least
from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors
from pipeline.wiki.anchors import by_entity, count_links, count_unlinked, write_anchors
from pipeline.wiki.articles import Article, read_articles
from pipeline.wiki.excerpt import REDIRECTS, TITLES, read_excerpt
from pipeline.wiki.titles import Titles, read_redirects, read_titles

OUTSIDE = "enwiki:"  # before the title of an article whose entity the table lacks


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
    that the base may lack.

    Raises:
        UserError: a file cannot be read, a value is out of range, or no link has an entity.
    """
    check_at_least("--num-processes", config.num_processes, 1)
    table = read_titles(config.titles or TITLES)
    redirects: dict[str, str] = {}
    linked_titles = count_links(_articles(config, "links", redirects))
    redirects |= read_redirects(config.redirects) if config.redirects else {}
    if config.dump is None:
        redirects |= read_redirects(REDIRECTS)
    titles = Titles(table, redirects)

    def entity_of(title: str) -> str:
        return next(iter(titles.entity_ids(title)), "") or OUTSIDE + titles.canonical(title)

    links = by_entity(linked_titles, entity_of)
    if all(entity_id.startswith(OUTSIDE) for counts in links.values() for entity_id in counts):
        raise UserError(f"{config.titles or TITLES}: no link is to one of its titles; give the titles of this dump")
    unlinked = count_unlinked(_articles(config, "names without a link", {}), links, entity_of)
    os.makedirs(os.path.dirname(config.output) or ".", exist_ok=True)
    return len(links), write_anchors(config.output, links, unlinked)


def _articles(config: CountAnchorsConfig, what: str, redirects: dict[str, str]) -> Iterator[Article]:
    """Yields the articles, and adds the redirects to `redirects`."""
    if config.dump is None:
        yield from read_excerpt(half="first")
        return
    interval_sec = 0.1 if sys.stderr.isatty() else 10.0
    size = os.path.getsize(config.dump) if os.path.exists(config.dump) else None
    with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=what, mininterval=interval_sec) as progress:

        def watch(num_bytes: int) -> None:
            progress.update(num_bytes - progress.n)

        for article in read_articles(config.dump, num_processes=config.num_processes, watch=watch):
            if article.redirect:
                redirects[article.title] = article.redirect
            else:
                yield article


def main() -> None:
    """Runs the command."""
    config = tyro.cli(CountAnchorsConfig, prog="python -m pipeline.count_anchors")
    try:
        with reporting_disk_errors(os.path.dirname(config.output) or "."):
            num_spellings, num_lines = count_anchors(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{config.output}: {num_spellings:,} spellings, {num_lines:,} lines")


if __name__ == "__main__":
    main()
