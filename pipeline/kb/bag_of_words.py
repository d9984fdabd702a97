"""Texts as sets of hashed words and character n-grams, from which the closeness of a text to an entity is computed.

Nothing is learned but the inverse document frequencies, which come from the knowledge base itself.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
import zlib
from collections.abc import Iterable

import numpy as np

from pipeline.kb.function_words import function_words_of_all
from pipeline.kb.normalise import WORD

NUM_BUCKETS = 1 << 24  # of the document frequencies; words in the same bucket share a count
_NGRAM_LENGTH = 4
_NGRAM_SHARE_MIN = 0.6  # below it, shared n-grams are chance
_NGRAM_CREDIT = 0.7  # a word known by its n-grams alone ("banking" for "bank") counts less than the word


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """One word, hashed; `ngrams` is empty for words that are too short to compare by n-grams."""

    key: int
    ngrams: tuple[int, ...]


def split_words(text: str) -> list[str]:
    """Returns the words of `text`, casefolded (NFKC), plural endings cut, function words left out, in order."""
    left_out = function_words_of_all()
    return [_stem(word) for word in WORD.findall(fold(text)) if word not in left_out]


def fold(text: str) -> str:
    """Returns `text` as its words are compared."""
    return unicodedata.normalize("NFKC", text).casefold()


def hash_word(word: str) -> Word:
    """Returns the hashes of `word` and of its character n-grams; equal on every machine."""
    key = zlib.crc32(word.encode())
    if len(word) <= _NGRAM_LENGTH:
        return Word(key, ())
    padded = f"^{word}"
    ngrams = (padded[i : i + _NGRAM_LENGTH] for i in range(len(padded) - _NGRAM_LENGTH + 1))
    return Word(key, tuple(zlib.crc32(b"#" + ngram.encode()) for ngram in ngrams))


def hash_words(texts: Iterable[str]) -> set[Word]:
    """Returns the distinct words of `texts`, hashed."""
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
    counts = document_counts.astype(np.float64)
    return np.log1p((num_documents - counts + 0.5) / (counts + 0.5)).astype(np.float32)


def word_credit(word: Word, document: frozenset[int]) -> float:
    """Returns how far `document` holds `word`, in [0, 1]: 1 for the word itself, less for most of its n-grams."""
    if word.key in document:
        return 1.0
    if not word.ngrams:
        return 0.0
    share = sum(ngram in document for ngram in word.ngrams) / len(word.ngrams)
    return _NGRAM_CREDIT * share if share >= _NGRAM_SHARE_MIN else 0.0


def explained_share(words: list[tuple[Word, float]], document: frozenset[int]) -> float:
    """Returns the share of the weighted `words` that `document` explains, in [0, 1]; 0 where they weigh nothing."""
    total = math.fsum(weight for _, weight in words)
    if total <= 0.0:
        return 0.0
    return math.fsum(weight * word_credit(word, document) for word, weight in words) / total


def _stem(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-3] + "y" if word.endswith("ies") else word[:-1]
    return word
