"""Which entity the title of an article stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from pipeline.schema import UserError

# What a title is about stands behind or before these: "Battle of Bern", "Bern during the war", "Bern–Basel line".
_OF = re.compile(r"(?:\b(?:of|in|under|during|from)(?: the)? |[\u2013-])$", re.IGNORECASE)
_AND = re.compile(r" (?:in|and|under|during) |[\u2013-]", re.IGNORECASE)


class Titles:
    """Looks up titles: redirects are followed, and a title may stand for several entities of a base.

    Args:
        entities_of: the entities of a title, the one that counts first; () of an unknown one.
        target_of: the title that a title is another spelling of, or None.
    """

    def __init__(self, entities_of: Callable[[str], tuple[str, ...]], target_of: Callable[[str], str | None]) -> None:
        self._entities_of = entities_of
        self._target_of = target_of

    @classmethod
    def of(cls, entities: Mapping[str, tuple[str, ...]], redirects: Mapping[str, str]) -> Titles:
        """Returns the titles of two tables in memory."""
        return cls(lambda title: entities.get(title, ()), redirects.get)

    def canonical(self, title: str) -> str:
        """Returns the title at the end of the redirects; where they go in a circle, the one before it closes."""
        seen = {title}
        while (target := self._target_of(title)) is not None and target not in seen:
            seen.add(target)
            title = target
        return title

    def entity_ids(self, title: str) -> tuple[str, ...]:
        """Returns the entities of a title, or of what it redirects to; () where the table has none."""
        return self._entities_of(title) or self._entities_of(self.canonical(title))


def is_aside(title: str, words: str, entities_of: Callable[[str], Iterable[str]]) -> bool:
    """Returns whether a link to the article `title` says less than its `words`, which are the title of another article.

    So "Grenada" names the country, also where it links "Capture of Grenada", "Spain" where it links "Spanish Empire",
    and "France" where it links "France in the American Revolutionary War". Where `title` has the words in it otherwise,
    as "Tide (brand)", "Apple Inc." and "Michael Jordan" have, it is another thing of that name.

    Args:
        title: of an article; a link to one that has an entity is no aside.
        words: of the link.
        entities_of: the entities of a title.
    """
    if any(entities_of(title)):
        return False
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", title, re.IGNORECASE)
    if found and not _OF.search(title[: found.start()]) and not _AND.match(title[found.end() :]):
        return False
    return any(entities_of(words)) or any(entities_of(words[:1].upper() + words[1:]))


def read_titles(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Returns title -> entities of a file `title <tab> entity`; a title with several entities has a line for each.

    Raises:
        UserError: the file cannot be read, or a line is not as it must be.
    """
    entities: dict[str, tuple[str, ...]] = {}
    for title, entity_id in title_pairs(path):
        entities[title] = (*entities.get(title, ()), entity_id)
    return entities


def read_redirects(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the redirects of a file `old title <tab> title`.

    Raises:
        UserError: see `read_titles`.
    """
    return dict(redirect_pairs(path))


def title_pairs(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Returns title and entity of each line; see `read_titles`."""
    return read_pairs(path, what="title and entity")


def redirect_pairs(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Returns old title and title of each line; see `read_redirects`."""
    return read_pairs(path, what="old title and title")


def read_pairs(path: str | os.PathLike[str], *, what: str) -> Iterator[tuple[str, str]]:
    """Returns the lines of a file with two columns between which there is a tab.

    Raises:
        UserError: the file cannot be read, or a line does not have two columns with text.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                columns = [column.strip() for column in line.split("\t")]
                if columns == [""]:
                    continue
                if len(columns) != 2 or not all(columns):
                    raise UserError(
                        f"{path}, line {number}: {line.rstrip()[:60]!r}; each line is {what} with a tab between"
                    )
                yield columns[0], columns[1]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); give lines of {what} with a tab between") from error
