"""How texts use names: the words that occur with an entity, and with entities of its kind.

`pipeline.kb.build.count_usage` counts them in texts. They are evidence where several entities share a name:

- *seen*: the share of a text's words that occur with the entity *under another of its names*. Texts with the same name
  prove nothing: they may mean something of that name that the base does not know.
- *kind*: how much likelier the words are with *other* entities of its types than with any entity. It only ever speaks
  for a candidate: that no counted text has "dawn" beside a country says little about "Brazil beach at dawn".
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.byte_cache import Remembered
from pipeline.kb.bag_of_words import hash_word, split_words
from pipeline.kb.normalise import WORD, alias_variants, normalise_alias

SEVERAL = 0  # in place of a name: the word occurs with several names of the entity
KINDS_KEY = b"kinds"
_SMOOTHING = 10.0  # weight of the prior on a kind's words, in entities (ours)
_ENTITIES_MIN = 3  # of a kind, without the one in question; fewer are no evidence (ours)
_EVIDENCE_MAX = 3.0  # of one word, in nats (ours)
_CACHED_BYTES = 32 << 20  # of the words of entities, and as much of the counts of words
_ENTRY_BYTES = 300  # of an entry of these beside its numbers: key, objects, and its place in the table
_INT_BYTES = 32
FILE_WORD = re.compile(r"[a-z]*\d+[a-z\d]*")  # file numbers and sizes: "img2043", "64px"


def words_beside(text: str, start: int, end: int) -> list[int]:
    """Returns the keys of the distinct words of `text` outside `[start, end)`, in order, without those of the name."""
    found = dict.fromkeys(
        word for match in WORD.finditer(text) if match.end() <= start or end <= match.start()
        for word in split_words(match[0]) if not FILE_WORD.fullmatch(word)
    )  # fmt: skip
    name = set(split_words(text[start:end]))
    return [hash_word(word) for word in found if word not in name]


def entity_key(entity_id: str) -> bytes:
    """Returns the key of an entity's words in the store. The value: uint32 pairs of word and name, or `SEVERAL`."""
    return b"entity:" + entity_id.encode()


def word_key(word: int) -> bytes:
    """Returns the key of a word's counts in the store. The value: number of entities, then pairs of kind and number."""
    return b"word:" + struct.pack("<I", word)


def name_key(name: str) -> int:
    """Returns a hash of a name, from 1: equal for its forms with possessive, article, legal form or plural."""
    key = normalise_alias(name)
    return zlib.crc32(min([key, *alias_variants(key)], key=lambda one: (len(one), one)).encode()) or 1


class Usage:
    """The counts that a knowledge base holds; without counts every answer is 0.

    Args:
        get: key -> value, None for an unknown key.
    """

    def __init__(self, get: Callable[[bytes], bytes | None]) -> None:
        self._get = get
        stated = json.loads(get(KINDS_KEY) or b'{"num_texts": 0, "num_entities": 0, "kinds": []}')
        self.num_texts: int = stated["num_texts"]
        self._num_entities: int = stated["num_entities"]
        self._kinds: dict[str, int] = dict(stated["kinds"])
        self._kind_names = list(self._kinds)
        # Bounded by bytes: an entity has from one word to tens of thousands, and a word as many kinds as there are.
        self._of_entity = Remembered(self._read_entity, _CACHED_BYTES, _entity_bytes)
        self._of_word = Remembered(self._read_word, _CACHED_BYTES, _word_bytes)

    def rarity(self, word: int) -> float:
        """Returns ln(1 + (N - n + 0.5) / (n + 0.5)) for a word that n of the N counted entities occur with, in nats.

        It is infinite where no text was counted.
        """
        if not self._num_entities:
            return math.inf
        beside = self._of_word[word][0]
        return math.log1p((self._num_entities - beside + 0.5) / (beside + 0.5))

    def seen_share(self, entity_id: str, words: Sequence[int], name: int) -> float:
        """Returns the share of `words` that occur with the entity under another name than `name`, in [0, 1].

        Args:
            entity_id: the entity.
            words: see `words_beside`.
            name: see `name_key`.
        """
        known = self._of_entity[entity_id]
        if not known or not words:
            return 0.0
        return sum(known.get(word, name) != name for word in words) / len(words)

    def kind_evidence(self, entity_id: str, types: Sequence[str], words: Sequence[int]) -> float:
        """Returns the mean over `words` of ln P(word with a type of the entity) / P(word), in nats, in [0, 3].

        Of several types, each word counts for the one that it makes likeliest. The entity's own texts are left out.
        A negative mean counts as 0.

        Args:
            entity_id: the entity.
            types: its types.
            words: see `words_beside`.
        """
        if not words:
            return 0.0
        own = self._of_entity[entity_id]
        return max(0.0, math.fsum(self._evidence(word, types, own) for word in words) / len(words))

    def _evidence(self, word: int, types: Sequence[str], own: dict[int, int]) -> float:
        beside, by_kind = self._of_word[word]
        # Without the entity itself, if it was counted.
        is_own = word in own
        beside -= is_own
        if beside < 1:
            return 0.0
        chance = (beside + 0.5) / (self._num_entities - bool(own) + 1)
        best = None
        for kind in types:
            num_counted = self._kinds.get(kind, 0)  # pragma: no mutate: 1 is too few too
            num_entities = num_counted - bool(own)
            if num_entities >= _ENTITIES_MIN:
                with_word = by_kind.get(kind, 0) - is_own
                expected = (num_entities + _SMOOTHING) * chance
                value = math.log((with_word + _SMOOTHING * chance) / expected)
                best = value if best is None else max(best, value)
        return 0.0 if best is None else max(-_EVIDENCE_MAX, min(_EVIDENCE_MAX, best))

    def _read_entity(self, entity_id: str) -> dict[int, int]:
        table = np.frombuffer(self._get(entity_key(entity_id)) or b"", "<u4")
        pairs = table.reshape(-1, 2)  # pragma: no mutate: any negative number means the same
        return dict(pairs.tolist())

    def _read_word(self, word: int) -> tuple[int, dict[str, int]]:
        table = np.frombuffer(self._get(word_key(word)) or b"", "<u4").tolist()
        if not table:
            return 0, {}
        return table[0], {self._kind_names[kind]: count for kind, count in zip(table[1::2], table[2::2], strict=True)}


def _entity_bytes(_: str, names: dict[int, int]) -> int:
    return _ENTRY_BYTES + sys.getsizeof(names) + 2 * _INT_BYTES * len(names)


def _word_bytes(_: int, counts: tuple[int, dict[str, int]]) -> int:
    return _ENTRY_BYTES + sys.getsizeof(counts[1]) + _INT_BYTES * len(counts[1])
