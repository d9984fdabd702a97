"""The excerpt of the English Wikipedia that gensim's wheel carries, and what was found out about it by reading.

`excerpt_tables/README.md` says how the tables were made.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from pipeline.schema import UserError
from pipeline.wiki.articles import Article, read_articles

_FILE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
TABLES = Path(__file__).parent / "excerpt_tables"
TITLES = TABLES / "titles.tsv"
REDIRECTS = TABLES / "redirects.tsv"
HALVES = TABLES / "halves.tsv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Where an article belongs: the first half may be used for anything, the second is for measuring alone."""

    half: str  # "first" or "second"
    fold: str  # of the first half, "a" or "b": what is learned from one of them can be tried on the other


def excerpt_path() -> Path:
    """Returns the path of the excerpt.

    Raises:
        UserError: gensim is not installed from the wheel that holds it.
    """
    spec = importlib.util.find_spec("gensim")  # importing it would take seconds
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0], "test", "test_data", _FILE) if folders else Path(_FILE)
    if not path.is_file():
        raise UserError(f"gensim: {_FILE} is not in the package; install gensim 4.4.0 from its wheel")
    return path


@functools.cache
def read_parts() -> Mapping[str, Part]:
    """Returns the part of each article of the excerpt, by title; related articles are in the same part."""
    rows = (line.split("\t") for line in HALVES.read_text(encoding="utf-8").splitlines())
    return {title: Part(half=half, fold=fold[0] if fold else "") for title, half, *fold in rows}


def fold_of(title: str) -> str:
    """Returns the fold of the article called `title`; "" if it is in none."""
    part = read_parts().get(title)
    return part.fold if part else ""


def read_excerpt(*, half: str, fold: str = "") -> list[Article]:
    """Returns the articles of one half, or of one fold of the first half, without redirects, in the excerpt's order.

    Raises:
        UserError: the excerpt is missing.
    """
    parts = read_parts()

    def is_wanted(title: str) -> bool:
        part = parts.get(title)
        return part is not None and part.half == half and fold in ("", part.fold)

    return [article for article in read_articles(excerpt_path(), is_wanted) if not article.redirect]
