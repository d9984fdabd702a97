"""How near a text is in meaning to what the knowledge base says of the candidates, by a sentence encoder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

import numpy as np

from pipeline.byte_cache import ByteCache
from pipeline.kb.bag_of_words import split_words
from pipeline.kb.names import head
from pipeline.kb.normalise import WORD
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.evidence import PLACE
from pipeline.linking.picture import NUM_SAMPLES, standing_out
from pipeline.linking.sentences import SentenceEncoder
from pipeline.schema import LinkedMention, Row

MEANING = "meaning"  # the evidence that this module adds
_BLOCK_CHARS = 200  # a mention is read with the blocks of the text that it touches, and with one on both sides (ours)
_LINKS_MAX = 8  # of an entity, whose names are read (ours)
_DECIMALS = 4  # further digits differ between machines
# Categories of Unicode: pictures and arrows, accents that stand alone, small figures, and circles around a character.
_SYMBOLS = ("So", "Sm", "Sk", "No", "Me")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # they choose how a character looks
_CACHE_BYTES = 64 << 20
_ENTRY_BYTES = 300  # of an entry beside its numbers


class TextComparer:
    """Compares texts with entities. It holds the embeddings of entities that were used last.

    Args:
        encoder: embeds both.
        kb: has the names and descriptions of the candidates.
    """

    def __init__(self, encoder: SentenceEncoder, kb: KnowledgeBase):
        self._encoder = encoder
        self._kb = kb
        self._entities: ByteCache[str, np.ndarray] = ByteCache(
            _CACHE_BYTES, lambda _, vector: vector.nbytes + _ENTRY_BYTES
        )
        self._sample: np.ndarray | None = None  # float32 [n, D], embedded when it is first needed

    def add_meaning(self, rows: Sequence[Row], evidence: Sequence[Sequence[np.ndarray]]) -> None:
        """Writes "meaning" into the evidence of each mention of `rows`.

        It is by how many standard deviations the text is nearer to the candidate's description than to those of the
        base's entities, at least 0.

        Args:
            rows: with candidates.
            evidence: of each row and mention, float `[candidates, evidence]`.
        """
        asked = [
            (surroundings(head(row.pair.text), linked), linked, table)
            for row, of_row in zip(rows, evidence, strict=True)
            for linked, table in zip(row.linked, of_row, strict=True)
            if linked.candidates
        ]
        if not asked:
            return
        if self._sample is None:
            self._sample = self._encoder.embed([self._text_of(one) for one in self._kb.sample(NUM_SAMPLES)])
        texts = list({text for text, _, _ in asked})
        of_texts = dict(zip(texts, self._encoder.embed(texts), strict=True))
        of_entities = self._embed_entities({one.entity_id for _, linked, _ in asked for one in linked.candidates})
        for text, linked, table in asked:
            vector = of_texts[text]
            near = np.array([of_entities[one.entity_id] @ vector for one in linked.candidates]).round(_DECIMALS)
            table[:, PLACE[MEANING]] = standing_out(near, (self._sample @ vector).round(_DECIMALS))

    def _embed_entities(self, ids: set[str]) -> dict[str, np.ndarray]:
        """Returns the embeddings `[D]` of entities by id."""
        found, missing = self._entities.find_all(sorted(ids))
        vectors = self._encoder.embed([self._text_of(entity_id) for entity_id in missing])
        for entity_id, row in zip(missing, vectors, strict=True):
            found[entity_id] = row.copy()  # a part of all rows would keep them
            self._entities.put(entity_id, found[entity_id])
        return found

    def _text_of(self, entity_id: str) -> str:
        """Returns what the base says of an entity: its description, and the names of what it links.

        Its own name is left out, also where the description repeats its words: every text with the mention holds them,
        whatever that means there.
        """
        entity = self._kb.entity(entity_id)
        described = without_words(entity.description, split_words(entity.label))
        linked = [name for one in entity.links[:_LINKS_MAX] if (name := self._label_of(one))]
        return readable("; ".join(part for part in (described, ", ".join(linked)) if part) or entity.label)

    def _label_of(self, entity_id: str) -> str:
        try:
            return self._kb.entity(entity_id).label
        except KeyError:  # links may lead out of the base
            return ""


def without_words(text: str, words: Collection[str]) -> str:
    """Returns `text` without each word that `split_words` turns into one of `words`."""

    def kept(found: re.Match[str]) -> str:
        return "" if any(word in words for word in split_words(found[0])) else found[0]

    return " ".join(WORD.sub(kept, text).split())


def surroundings(text: str, linked: LinkedMention) -> str:
    """Returns the part of `text` that tells what a mention means.

    It begins and ends at blocks, so that the mentions of a long text share parts, and these are not many.
    """
    first = linked.mention.start // _BLOCK_CHARS - 1
    last = (linked.mention.end - 1) // _BLOCK_CHARS + 1
    return readable(text[max(first, 0) * _BLOCK_CHARS : (last + 1) * _BLOCK_CHARS])


def readable(text: str) -> str:
    """Returns `text` as a sentence encoder can read it: in plain letters, with blanks around symbols.

    Encoders split at blanks and punctuation. A word that touches an emoji, or is in letters of another style, would be
    unknown to them.
    """
    if text.isascii():  # pragma: no mutate: what follows changes nothing there that an encoder does not part itself
        return text
    parted = (f" {char} " if unicodedata.category(char) in _SYMBOLS else char for char in _SELECTORS.sub(" ", text))
    return unicodedata.normalize("NFKC", "".join(parted))
