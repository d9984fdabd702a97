"""Counts how texts use names, without labels; the texts to be mined serve best.

Where a text has a name that only one entity has, the words beside it count for that entity.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.kb.names import find_names, head, spellings
from pipeline.kb.store import KnowledgeBase
from pipeline.kb.usage import KINDS_KEY, SEVERAL, entity_key, name_key, word_key, words_beside

_NAME_MIN = 0.1  # how often a string must be a name to count for a proper name (ours)
_SMALL_NAME_MIN = 0.5  # where it is written small (ours)


def count_usage(texts: Iterable[str], kb: KnowledgeBase) -> Iterator[tuple[bytes, bytes]]:
    """Returns the keys and values that `pipeline.kb.usage.Usage` reads.

    Memory grows with the distinct pairs of entity and word: about 1 kB per text.
    """
    names: dict[str, dict[int, int]] = defaultdict(dict)  # entity id -> word -> its name there, or SEVERAL
    num_texts = 0
    for text in texts:
        num_texts += 1
        text = head(text)
        for start, end in find_names(text, kb):
            entity_id = _only_meaning(text[start:end], kb)
            if entity_id is not None and (beside := words_beside(text, start, end)):
                key, words = name_key(text[start:end]), names[entity_id]
                for word in beside:
                    words[word] = key if words.get(word, key) == key else SEVERAL
    kinds: Counter[str] = Counter()
    num_beside: Counter[int] = Counter()
    of_word: dict[int, Counter[str]] = defaultdict(Counter)
    for entity_id, words in names.items():
        types = set(kb.entity(entity_id).types)
        kinds.update(types)
        num_beside.update(words.keys())
        for word in words:
            of_word[word].update(types)
        yield entity_key(entity_id), np.array(sorted(words.items()), "<u4").tobytes()
    order = sorted(kinds)
    place = {kind: position for position, kind in enumerate(order)}
    counted = {"num_texts": num_texts, "num_entities": len(names), "kinds": [[kind, kinds[kind]] for kind in order]}
    yield KINDS_KEY, json.dumps(counted).encode()
    for word, counts in of_word.items():
        pairs = sorted((place[kind], count) for kind, count in counts.items())
        yield word_key(word), np.array([num_beside[word], *(one for pair in pairs for one in pair)], "<u4").tobytes()


def _only_meaning(surface: str, kb: KnowledgeBase) -> str | None:
    """Returns the one entity that a name means; None if there are several, or if it is hardly a name here.

    Most texts with the words "vector" or "next" do not mean the brands of that name, and would blur what is known of
    brands. How often a string is a name counts for proper names alone: a common noun is written as any word.
    """
    ids = set()
    for spelling in spellings(surface, kb):
        alias = kb.alias(spelling.key)
        if alias is None:
            continue
        for entry in alias.entries:
            if not spelling.allows(entry.is_name):
                continue
            ids.add(entry.entity_id)
            least = _SMALL_NAME_MIN if surface.islower() else _NAME_MIN
            if entry.is_name and alias.link_probability < least:
                return None
    return ids.pop() if len(ids) == 1 else None
