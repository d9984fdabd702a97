"""Texts -> mentions: the tagger's names, and the names and common nouns of the knowledge base."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pipeline.kb.names import find_names, head, is_known, own_words
from pipeline.kb.normalise import normalise_alias, strip_possessive
from pipeline.kb.outer import LongerNames
from pipeline.kb.store import KnowledgeBase
from pipeline.row_stage import RowStage
from pipeline.schema import Mention, Rejection, Row
from pipeline.tagger.load import TaggedSpan, device_of, load_tagger, tag_texts

STAGE = "find_mentions"
DICTIONARY_SCORE = 0.6  # of a name that the tagger did not find (ours)
DICTIONARY_SCORE_LOWER = 0.4  # of one in lower case
_TRAILING = " -\u2013\u2014,;:|/"


def find_mentions(text: str, tagged: Sequence[TaggedSpan], kb: KnowledgeBase) -> tuple[Mention, ...]:
    """Returns the mentions in `text`, in order, none overlapping.

    Of the names of the knowledge base the longest is taken; one that the tagger found too, or a part of it, perhaps
    with signs around it or a possessive, gets the tagger's score if that is higher. The tagger's other names are kept
    if they overlap none of these, or if they too are in the base and are longer: a name that the base does not know can
    only be NIL. A longer name that the text writes, or the tagger finds, around one of the base is its `outer`.
    """
    text = head(text)
    spans: dict[tuple[int, int], Mention] = {}
    for start, end in find_names(text, kb):
        surface = text[start:end]
        score = DICTIONARY_SCORE_LOWER if surface.islower() else DICTIONARY_SCORE
        spans[start, end] = Mention(start=start, end=end, surface=surface, score=score, finder="dictionary")
    longer: list[tuple[int, int]] = []
    for start, end, score in tagged:
        end = start + len(text[start:end].rstrip(_TRAILING))  # "Tomato -": the tagger often includes the dash
        surface = text[start:end]
        if not any(map(str.isalnum, surface)) or surface.casefold() in own_words(kb).own:
            continue
        crossing = [key for key in spans if key[0] < end and start < key[1]]
        bare = _bare(surface)
        # The tagger has found this name, perhaps with signs around it or without its last word ("Starbucks" Coffee).
        known = next((key for key in crossing if _holds(key, start, end) or _bare(text[slice(*key)]) == bare), None)
        if known:
            if score > spans[known].score:
                spans[known] = dataclasses.replace(spans[known], score=score, finder="tagger")
            continue
        if any(b - a >= end - start or not is_known(surface, kb) for a, b in crossing):
            longer.append((start, end))
            continue
        for key in crossing:
            del spans[key]
        spans[start, end] = Mention(start=start, end=end, surface=surface, score=score, finder="tagger")
    if spans:
        names = LongerNames(text, own_words(kb).own, lambda surface: is_known(surface, kb), longer)
        for key, one in spans.items():
            if (outer := names.around(*key)) is not None:
                spans[key] = dataclasses.replace(one, outer=outer)
    return tuple(spans[key] for key in sorted(spans))


def _holds(span: tuple[int, int], start: int, end: int) -> bool:
    return span[0] <= start and end <= span[1]


def _bare(surface: str) -> str:
    return strip_possessive(normalise_alias(surface))


def find_rows(rows: Sequence[Row], tagger: Any, kb: KnowledgeBase) -> list[Row | Rejection]:
    """Returns each row with its mentions, or its rejection if it has none ("no_mention"), in order."""
    texts = [head(row.pair.text) for row in rows]
    tagged = tag_texts(tagger, texts)
    found: dict[str, tuple[Mention, ...]] = {}
    outcomes: list[Row | Rejection] = []
    for row, text, spans in zip(rows, texts, tagged, strict=True):
        if text not in found:
            found[text] = find_mentions(text, spans, kb)
        if found[text]:
            outcomes.append(dataclasses.replace(row, mentions=found[text]))
        else:
            outcomes.append(row.rejected(stage=STAGE, reason="no_mention"))
    return outcomes


class FindMentions(RowStage):
    """Keeps the rows whose text has a mention; rejects the others ("no_mention").

    Args:
        kb_path: the knowledge base whose names are looked for.
        ner_model: file or name of a flair SequenceTagger.
    """

    name = STAGE

    def __init__(self, kb_path: str, ner_model: str):
        super().__init__()
        self.kb_path = kb_path
        self.ner_model = ner_model

    def setup(self) -> None:
        self._kb = KnowledgeBase.open(self.kb_path)
        self._tagger = load_tagger(self.ner_model)

    def model(self) -> str:
        return f"tagger on {device_of(self._tagger)}"

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return find_rows(rows, self._tagger, self._kb)

    def further_counts(self, outcomes: Sequence[Row | Rejection]) -> dict[str, int]:
        return {"mentions": sum(len(outcome.mentions) for outcome in outcomes if isinstance(outcome, Row))}
