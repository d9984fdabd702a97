"""Paragraphs -> passages of about a sentence, as long as a caption is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.wiki.articles import Link, Passage

CHARS_MAX = 300
_END = re.compile(r"(?<=[a-z\d)\]\"\u201d%][.!?])\s+(?=[A-Z\"\u201c(])")
_CUT = re.compile(r"(?<=[,;:])\s+|\s+")


def split_sentences(paragraph: Passage, *, chars_max: int = CHARS_MAX) -> Iterator[Passage]:
    """Yields the sentences of a paragraph, in order, with their links.

    A sentence is longer than `chars_max` only where there is no blank outside a link to cut it at; no link is cut.
    """
    start = 0
    for end, following in _cuts(paragraph, chars_max):
        links = tuple(
            Link(start=one.start - start, end=one.end - start, title=one.title)
            for one in paragraph.links
            if start <= one.start and one.end <= end
        )
        if end > start:
            yield Passage(text=paragraph.text[start:end], links=links, is_prose=paragraph.is_prose)
        start = following


def _cuts(paragraph: Passage, chars_max: int) -> Iterator[tuple[int, int]]:
    """Yields (end of a passage, start of the next)."""
    text, links = paragraph.text, paragraph.links

    def is_outside(place: int) -> bool:
        return not any(one.start < place < one.end for one in links)

    start = 0
    ends = [(match.start(), match.end()) for match in _END.finditer(text) if is_outside(match.start())]
    for end, following in [*ends, (len(text), len(text))]:
        while end - start > chars_max:
            cuts = [match.span() for match in _CUT.finditer(text, start + 1, end) if is_outside(match.start())]
            fitting = [cut for cut in cuts if cut[0] - start <= chars_max]
            if not cuts:
                break
            at_marks = [cut for cut in fitting if text[cut[0] - 1] in ",;:" and cut[0] - start > chars_max // 2]
            cut = (at_marks or fitting or cuts[:1])[-1]
            yield cut
            start = cut[1]
        yield end, following
        start = following
