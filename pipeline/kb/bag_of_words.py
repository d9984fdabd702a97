"""Texts as sets of hashed words, from which the closeness of a text to an entity is computed.

Nothing is learned but the inverse document frequencies, which come from the knowledge base itself.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable

import numpy as np

from pipeline.kb.function_words import function_words_of_all
from pipeline.kb.normalise import find_words

NUM_BUCKETS = 1 << 24  # of the document frequencies; words in the same bucket share a count


def split_words(text: str) -> list[str]:
    """Returns the words of `text`, casefolded (NFKC), plural endings cut, function words left out, in order."""
    left_out = function_words_of_all()
    return [_stem(word) for word in find_words(fold(text)) if word not in left_out]


def fold(text: str) -> str:
    """Returns `text` as its words are compared."""
    if text.isascii():  # pragma: no mutate: what follows does the same to it, but slower
        return text.lower()
    return unicodedata.normalize("NFKC", text).casefold()


def hash_word(word: str) -> int:
    """Returns the key of `word`, a hash of 32 bits; equal on every machine."""
    return zlib.crc32(word.encode())


def hash_words(texts: Iterable[str]) -> set[int]:
    """Returns the keys of the distinct words of `texts`."""
    return {hash_word(word) for text in texts for word in split_words(text)}


def bucket_of(key: int) -> int:
    """Returns which document frequency a word's key counts in, in [0, NUM_BUCKETS)."""
    return key % NUM_BUCKETS


def buckets_of(keys: np.ndarray) -> np.ndarray:
    """Returns `bucket_of` for each of `keys`, uint64 `[n]`."""
    return keys.astype(np.uint64) % np.uint64(NUM_BUCKETS)


def inverse_document_frequency(document_counts: np.ndarray, num_documents: int) -> np.ndarray:
    """Returns float32 `[n]`: ln(1 + (N - n + 0.5) / (n + 0.5)) as in BM25, for each count n of documents, at least 1.

    A word that no entity's document holds has no count and no weight: it is no evidence for or against any of them.
    """
    counts = document_counts.astype(np.float64)  # pragma: no mutate: None means float64 too
    return np.log1p((num_documents - counts + 0.5) / (counts + 0.5)).astype(np.float32)


def _stem(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-3] + "y" if word.endswith("ies") else word[:-1]
    return word
