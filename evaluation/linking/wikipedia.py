"""Wikipedia's links as labels: what an article links is what its words name.

The links are removed and the text is plain. A link to an article whose entity the base has is a mention of it; a
link to any other article is a name that the base lacks. Wikipedia links a name once and common words never, so spans
without a link say nothing, with one exception: a word in lower case that the base knows only as a proper name, in an
article that never links it, is a common word, and no mention of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from evaluation.linking.gold import GoldMention, GoldText
from pipeline.wiki.articles import Article, Passage
from pipeline.wiki.sentences import split_sentences

WORDS_MAX = 4  # of a spelling that may be a common word
KIND = "wikipedia"
NamesOf = Callable[[str], list[tuple[int, int]]]  # text to the spans that the base knows as proper names alone


def wikipedia_texts(
    articles: Iterable[Article],
    entities_of: Callable[[str], Iterable[str]],
    *,
    half: str,
    names_in: NamesOf | None = None,
) -> list[GoldText]:
    """Returns the sentences of `articles` that have a label.

    Args:
        articles: of one half.
        entities_of: title to the ids of its entities in the base; none: the base lacks it.
        half: of the articles.
        names_in: finds the spans of proper names of the base, for common words; None: there are none.
    """
    texts = []
    for article in articles:
        linked = {
            passage.text[link.start : link.end].casefold() for passage in article.paragraphs for link in passage.links
        }
        sentences = [sentence for paragraph in article.paragraphs for sentence in split_sentences(paragraph)]
        for number, sentence in enumerate(sentences, 1):
            mentions = _mentions(sentence, entities_of)
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
    for link in sorted(sentence.links, key=lambda one: (one.start, -one.end)):
        if not found or link.start >= found[-1].end:
            surface = sentence.text[link.start : link.end]
            found.append(
                GoldMention(
                    start=link.start,
                    end=link.end,
                    entity_ids=frozenset(entities_of(link.title)),
                    kind="noun" if surface.islower() else "name",
                )
            )
    return found


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
