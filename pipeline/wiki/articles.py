"""MediaWiki XML dump -> articles: plain text by paragraph, with the spans and targets of the links.

Tables, templates, references, pictures and formulas are dropped; of everything else the words remain.
"""

from __future__ import annotations

import bisect
import bz2
import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import mwparserfromhell
from mwparserfromhell import nodes

from pipeline.schema import UserError

_REMEDY = "give a dump of MediaWiki pages (.xml or .xml.bz2)"
_DROPPED_TAGS = frozenset("ref table gallery math timeline source syntaxhighlight code imagemap score hiero".split())
_LINE_TAGS = frozenset("br li dd dt hr p div blockquote".split())
_LIST_TAGS = frozenset("li dd dt".split())
_LANGUAGE_PREFIX = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?:")
_QUOTES = re.compile(r"'{2,}")  # of bold and italic text
# Empty brackets, marks behind an opening bracket whose words were a template, and runs of blanks.
_REMAINS = re.compile(r"(?P<bracket>\s*\(\s*[;,:]?\s*\)|(?<=\()[\s;,:]+)|(?P<blank>\s+)")
_LIST_MARK = "\x01"  # at the start of a line that is an item of a list
_DEPTH_MAX = 20  # of markup within markup
_PAGES_PER_TASK = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A span `[start, end)` of a text, in characters, that links to the article `title`."""

    start: int
    end: int
    title: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """A text without markup, and its links in order."""

    text: str
    links: tuple[Link, ...]
    is_prose: bool = True  # False: an item of a list


@dataclasses.dataclass(frozen=True, kw_only=True)
class Article:
    """One page of the main namespace."""

    title: str
    redirect: str  # the title that this page redirects to, or ""
    paragraphs: tuple[Passage, ...]  # none of a redirect


def read_articles(
    path: str | os.PathLike[str],
    is_wanted: Callable[[str], bool] = lambda title: True,
    *,
    num_processes: int = 1,
    watch: Callable[[int], None] = lambda size: None,
) -> Iterator[Article]:
    """Yields the articles and redirects of a dump, in its order; a few hundred pages are in memory at a time.

    Args:
        path: `.xml` or `.xml.bz2`.
        is_wanted: says by its title whether an article is read; redirects always are.
        num_processes: that parse markup, which takes most of the time.
        watch: is called with the number of bytes of the file that have been read so far.

    Raises:
        UserError: the file cannot be read, is damaged, or is no dump of MediaWiki.
    """
    try:
        with open(path, "rb") as raw:
            file = cast(IO[bytes], bz2.open(raw)) if os.fspath(path).endswith(".bz2") else raw
            pages = (page for page in _pages(file, path) if page.redirect or is_wanted(page.title))
            for number, article in enumerate(_parsed(pages, num_processes)):
                if number % _PAGES_PER_TASK == 0:
                    watch(raw.tell())
                yield article
    except (OSError, EOFError, ElementTree.ParseError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); {_REMEDY}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Page:
    title: str
    redirect: str
    markup: str
    namespaces: frozenset[str]


def _pages(file: IO[bytes], path: str | os.PathLike[str]) -> Iterator[_Page]:
    namespaces: frozenset[str] = frozenset()
    root: ElementTree.Element | None = None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        name = element.tag.rpartition("}")[2]
        if root is None:
            root = element
            if name != "mediawiki":
                raise UserError(f"{path} starts with <{name}>, not with <mediawiki>; {_REMEDY}")
        if event == "start":
            continue
        if name == "namespaces":
            namespaces = frozenset(one.text.casefold() for one in element if one.text) | {"image"}
        elif name == "page":
            page = {one.tag.rpartition("}")[2]: one for one in element.iter()}
            if page["ns"].text == "0":
                redirect = page["redirect"].get("title", "") if "redirect" in page else ""
                markup = "" if redirect or "text" not in page else page["text"].text or ""
                yield _Page(title=page["title"].text or "", redirect=redirect, markup=markup, namespaces=namespaces)
            root.clear()  # pages that were read would stay in memory


def _parsed(pages: Iterator[_Page], num_processes: int) -> Iterator[Article]:
    if num_processes == 1:
        for page in pages:
            yield _parse([page])[0]
        return
    waiting: collections.deque[concurrent.futures.Future[list[Article]]] = collections.deque()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        while task := list(itertools.islice(pages, _PAGES_PER_TASK)):
            waiting.append(pool.submit(_parse, task))
            if len(waiting) > 2 * num_processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _parse(pages: list[_Page]) -> list[Article]:
    return [
        Article(
            title=page.title,
            redirect=page.redirect,
            paragraphs=tuple(read_markup(page.markup, page.namespaces)),
        )
        for page in pages
    ]


def read_markup(markup: str, namespaces: frozenset[str] = frozenset({"file", "image", "category"})) -> list[Passage]:
    """Returns the paragraphs, items of lists and headings of wiki markup that have text, in order.

    Args:
        markup: of one page.
        namespaces: in lower case; a link into one of them, or to another language, is no link between articles.
    """
    writer = _Writer(namespaces)
    # With style tags, one apostrophe too many makes the parser take half a page for bold.
    writer.add(mwparserfromhell.parse(markup, skip_style_tags=True).nodes)
    return writer.passages()


class _Writer:
    """Collects text and links of a tree of nodes."""

    def __init__(self, namespaces: frozenset[str]) -> None:
        self._namespaces = namespaces
        self._parts: list[str] = []
        self._length = 0
        self._links: list[Link] = []

    def add(self, tree: list[Any], depth: int = 0) -> None:
        if depth > _DEPTH_MAX:
            return
        for node in tree:
            if isinstance(node, nodes.Text):
                self._write(_QUOTES.sub("", node.value))
            elif isinstance(node, nodes.Wikilink):
                self._add_link(node, depth)
            elif isinstance(node, nodes.HTMLEntity):
                self._write(_entity(node))
            elif isinstance(node, nodes.ExternalLink):
                if node.title is not None:
                    self.add(node.title.nodes, depth + 1)
            elif isinstance(node, nodes.Heading):
                self._write("\n")
                self.add(node.title.nodes, depth + 1)
                self._write("\n")
            elif isinstance(node, nodes.Tag):
                self._add_tag(node, depth)
            # Templates, their arguments and comments say nothing here.

    def _add_tag(self, node: nodes.Tag, depth: int) -> None:
        name = str(node.tag).strip().lower()
        if name in _DROPPED_TAGS:
            return
        if name in _LINE_TAGS:
            self._write("\n" + (_LIST_MARK if name in _LIST_TAGS else ""))
        if node.contents is not None:
            self.add(node.contents.nodes, depth + 1)
        if name in _LINE_TAGS and not node.self_closing and not node.wiki_markup:
            self._write("\n")

    def _add_link(self, node: nodes.Wikilink, depth: int) -> None:
        raw = str(node.title).strip()
        if not raw.startswith(":"):
            prefix = raw.partition(":")[0].strip().casefold().replace("_", " ")
            if ":" in raw and (prefix in self._namespaces or _LANGUAGE_PREFIX.match(raw)):
                return  # a picture, a category, the article in another language
        title = clean_title(raw)
        start = self._length
        if node.text is not None:
            self.add(node.text.nodes, depth + 1)
        else:
            self._write(raw.removeprefix(":").replace("_", " "))
        if title and self._length > start and title.partition(":")[0].casefold() not in self._namespaces:
            self._links.append(Link(start=start, end=self._length, title=title))

    def _write(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def passages(self) -> list[Passage]:
        whole, links, found, start, place = "".join(self._parts), self._links, [], 0, 0
        for line in whole.split("\n"):
            end = start + len(line)
            inside = []
            while place < len(links) and links[place].start < end:
                if start <= links[place].start and links[place].end <= end:
                    inside.append(links[place])
                place += 1
            passage = _tidy(line, start, inside)
            if passage.text:
                found.append(passage)
            start = end + 1
        return found


def _tidy(line: str, offset: int, links: list[Link]) -> Passage:
    """Returns the line without what dropped markup leaves, and its links, which move with the text."""
    is_item = line.startswith(_LIST_MARK)
    text = line.replace(_LIST_MARK, " ")
    edges = [(match.start(), match.end(), match.lastgroup == "blank") for match in _REMAINS.finditer(text)]
    parts, starts, lengths = [], [0], [0]  # a kept part starts at starts[i] of the line and at lengths[i] of the text
    for start, end, is_blank in edges:
        parts.append(text[starts[-1] : start])
        lengths.append(lengths[-1] + len(parts[-1]))
        if is_blank and lengths[-1] and end < len(text):
            parts.append(" ")
            lengths[-1] += 1
        starts.append(end)
    parts.append(text[starts[-1] :])
    tidy = "".join(parts)
    found = []
    for link in links:
        start, end = (_moved(edge - offset, starts, lengths) for edge in (link.start, link.end))
        surface = tidy[start:end]
        start += len(surface) - len(surface.lstrip())
        end = start + len(surface.strip())
        if start < end:
            found.append(Link(start=start, end=end, title=link.title))
    return Passage(text=tidy.rstrip(), links=tuple(found), is_prose=not is_item)


def _moved(position: int, starts: list[int], lengths: list[int]) -> int:
    """Returns the place in the text of a position in the line; what lies in a removed part moves to its end."""
    part = bisect.bisect_right(starts, position) - 1
    moved = lengths[part] + position - starts[part]
    return min(moved, lengths[part + 1]) if part + 1 < len(lengths) else moved


def _entity(node: nodes.HTMLEntity) -> str:
    try:
        return str(node.normalize())
    except ValueError:  # the number of no character
        return ""


def clean_title(raw: str) -> str:
    """Returns the title that a link names: no section, blanks for underscores, the first letter a capital."""
    title = " ".join(raw.partition("#")[0].replace("_", " ").split()).removeprefix(":").strip()
    return title[:1].upper() + title[1:]
