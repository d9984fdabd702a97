"""Wikipedia's links as labels: what an article links is what its words name.

The links are removed and the text is plain. A link to an article whose entity the base has is a mention of it; a
link to any other article is a name that the base lacks. It is no label if its words are the title of an article whose
entity the base has, and the link is an aside (`pipeline.wiki.titles.is_aside`): "Grenada" names the country, also where
it links the article about the capture of Grenada.

Wikipedia links a name once and common words never, so spans without a link say nothing, with one exception: a word in
lower case that the base knows only as a proper name, in an article that never links it, is a common word, and no
mention of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from evaluation.linking.gold import GoldMention, GoldText
from pipeline.wiki.articles import Article, Passage
from pipeline.wiki.sentences import split_sentences
from pipeline.wiki.titles import is_aside

WORDS_MAX = 4  # of a spelling that may be a common word
KIND = "wikipedia"
_WORD = re.compile(r"[^\W\d_]+")
_WORD_CHARS_MIN = 4  # shorter words of a name ("The", "Sir") are often words of other names
NamesOf = Callable[[str], list[tuple[int, int]]]  # text to the spans that the base knows as proper names alone


def wikipedia_texts(
    articles: Iterable[Article],
    entities_of: Callable[[str], Iterable[str]],
    *,
    half: str,
    names_in: NamesOf | None = None,
    with_repeated: bool = False,
) -> list[GoldText]:
    """Returns the sentences of `articles` that have a label.

    Args:
        articles: of one half.
        entities_of: title to the ids of its entities in the base; none: the base lacks it.
        half: of the articles.
        names_in: finds the spans of proper names of the base, for common words; None: there are none.
        with_repeated: whether names that the article links elsewhere are labels too, and parts of such names; see
            `RepeatedNames`. They are likely, not certain: for a fit, not for measuring.
    """
    texts = []
    for article in articles:
        repeated = RepeatedNames(article, entities_of) if with_repeated else None
        linked = {
            passage.text[link.start : link.end].casefold() for passage in article.paragraphs for link in passage.links
        }
        sentences = [sentence for paragraph in article.paragraphs for sentence in split_sentences(paragraph)]
        for number, sentence in enumerate(sentences, 1):
            mentions = _mentions(sentence, entities_of)
            if repeated is not None:
                mentions += repeated.in_sentence(sentence)
            if names_in is not None:
                mentions += _common_words(sentence, linked, names_in)
            if mentions:
                texts.append(
                    GoldText(
                        text_id=f"{article.title}#{number}",
                        text=sentence.text,
                        group=article.title,
                        half=half,
                        kind=KIND,
                        mentions=tuple(sorted(mentions, key=lambda one: one.start)),
                    )
                )
    return texts


def _mentions(sentence: Passage, entities_of: Callable[[str], Iterable[str]]) -> list[GoldMention]:
    """Returns the links; one within another, which broken markup makes, is left out."""
    found: list[GoldMention] = []
    done = 0
    for link in sorted(sentence.links, key=lambda one: (one.start, -one.end)):
        if link.start >= done:
            done = link.end
            surface = sentence.text[link.start : link.end]
            if not is_aside(link.title, surface, entities_of):
                entity_ids = frozenset(entities_of(link.title))
                kind: Literal["name", "noun"] = "noun" if surface.islower() else "name"
                found.append(GoldMention(start=link.start, end=link.end, entity_ids=entity_ids, kind=kind))
    return found


class RepeatedNames:
    """The names that an article links, where they occur again without a link; Wikipedia links a name once.

    - A capitalised spelling of a link, or the article's own title, means that article again.
    - A capitalised word of such a name of several words ("Lincoln" of Abraham Lincoln) means it too: it is a name that
      the base lacks. It is no label if the base has what any of the names with that word means, or what an article
      with that title is about ("Ohio" of Ohio River).

    Args:
        article: the article.
        entities_of: title to the ids of its entities in the base.
    """

    def __init__(self, article: Article, entities_of: Callable[[str], Iterable[str]]):
        titles: dict[str, set[str]] = {article.title.partition(" (")[0]: {article.title}}
        for paragraph in article.paragraphs:
            for link in paragraph.links:
                surface = paragraph.text[link.start : link.end]
                if not is_aside(link.title, surface, entities_of):
                    titles.setdefault(surface, set()).add(link.title)
        self._meant: dict[str, frozenset[str]] = {}
        of_word: dict[str, set[str]] = {}
        for name, of_name in titles.items():
            ids = frozenset(one for title in of_name for one in entities_of(title))
            if len(of_name) == 1 and name[:1].isupper():
                self._meant[name] = ids
            words = _WORD.findall(name)
            for word in words:
                if word[0].isupper() and len(word) >= _WORD_CHARS_MIN:
                    of_word.setdefault(word, set()).update(ids or {""})
        for word, meanings in of_word.items():
            if meanings == {""} and not any(entities_of(word)):
                self._meant.setdefault(word, frozenset())
        longest_first = sorted(self._meant, key=lambda name: (-len(name), name))
        # No word may go on before or behind a name, which may end in a dot.
        names = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(rf"(?<!\w)(?:{names})(?!\w)") if names else None

    def in_sentence(self, sentence: Passage) -> list[GoldMention]:
        """Returns the repeated names of `sentence`, outside its links."""
        if self._pattern is None:
            return []
        return [
            GoldMention(start=match.start(), end=match.end(), entity_ids=self._meant[match[0]], kind="name")
            for match in self._pattern.finditer(sentence.text)
            if all(match.end() <= link.start or link.end <= match.start() for link in sentence.links)
        ]


def _common_words(sentence: Passage, linked: set[str], names_in: NamesOf) -> list[GoldMention]:
    found = []
    for start, end in names_in(sentence.text):
        surface = sentence.text[start:end]
        is_free = all(end <= link.start or link.end <= start for link in sentence.links)
        if surface.islower() and surface.casefold() not in linked and is_free:
            found.append(GoldMention(start=start, end=end, entity_ids=frozenset(), kind="noun"))
    return found


def label_counts(texts: Sequence[GoldText]) -> dict[str, int]:
    """Returns how many texts and labels of each kind there are."""
    mentions = [mention for text in texts for mention in text.mentions]
    return {
        "texts": len(texts),
        "articles": len({text.group for text in texts}),
        "in the base": sum(bool(one.entity_ids) for one in mentions),
        "outside the base": sum(not one.entity_ids for one in mentions),
    }
