"""Which entity the title of an article stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.schema import UserError


class Titles:
    """Looks up titles: redirects are followed, and a title may stand for several entities of a base.

    Args:
        entities: title to the ids of its entities, the one that counts first.
        redirects: title to the title that it is another spelling of.
    """

    def __init__(self, entities: Mapping[str, tuple[str, ...]], redirects: Mapping[str, str]) -> None:
        self._entities = entities
        self._redirects = redirects

    def canonical(self, title: str) -> str:
        """Returns the title at the end of the redirects; where they go in a circle, the one before it closes."""
        seen = {title}
        while (target := self._redirects.get(title)) is not None and target not in seen:
            seen.add(target)
            title = target
        return title

    def entity_ids(self, title: str) -> tuple[str, ...]:
        """Returns the entities of a title, or of what it redirects to; () where the table has none."""
        return self._entities.get(title) or self._entities.get(self.canonical(title), ())


def read_titles(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Returns title -> entities of a file `title <tab> entity`; a title with several entities has a line for each.

    Raises:
        UserError: the file cannot be read, or a line is not as it must be.
    """
    entities: dict[str, tuple[str, ...]] = {}
    for title, entity_id in read_pairs(path, what="title and entity"):
        entities[title] = (*entities.get(title, ()), entity_id)
    return entities


def read_redirects(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the redirects of a file `old title <tab> title`.

    Raises:
        UserError: see `read_titles`.
    """
    return dict(read_pairs(path, what="old title and title"))


def read_pairs(path: str | os.PathLike[str], *, what: str) -> list[tuple[str, str]]:
    """Returns the lines of a file with two columns between which there is a tab.

    Raises:
        UserError: the file cannot be read, or a line does not have two columns with text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); give lines of {what} with a tab between") from error
    found = []
    for number, line in enumerate(lines, 1):
        columns = [column.strip() for column in line.split("\t")]
        if columns == [""]:
            continue
        if len(columns) != 2 or not all(columns):
            raise UserError(f"{path}, line {number}: {line[:60]!r}; each line is {what} with a tab between")
        found.append((columns[0], columns[1]))
    return found
