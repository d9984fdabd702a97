"""Word embeddings that need no vocabulary and no download: sums of hashed spellings, endings and shapes."""

from __future__ import annotations

import functools
import re
import zlib
from typing import Any

import flair
import torch
from flair.data import Sentence
from flair.embeddings import TokenEmbeddings
from flair.embeddings.base import register_embeddings

_CACHED_WORDS = 20_000  # some 5 MB


@register_embeddings
class HashedWordEmbeddings(TokenEmbeddings):
    """Embeds a token as the sum of the learned vectors of its features; with one lookup per batch.

    flair's own character LSTM takes ten times as long, mostly for assignments of single rows.

    Args:
        num_buckets: rows of the table; features with the same row share its vector.
        embedding_length: width of the vectors.
    """

    def __init__(self, num_buckets: int = 1 << 14, embedding_length: int = 64):
        super().__init__()
        self.name = "hashed-words"
        self.static_embeddings = False
        self._num_buckets = num_buckets
        self._embedding_length = embedding_length
        self.table = torch.nn.EmbeddingBag(num_buckets, embedding_length, mode="sum")
        torch.nn.init.normal_(self.table.weight, std=0.3)
        self.to(flair.device)
        self.eval()

    @property
    def embedding_length(self) -> int:
        """The width of the vectors."""
        return self._embedding_length

    def _add_embeddings_internal(self, sentences: list[Sentence]) -> None:
        tokens = [token for sentence in sentences for token in sentence]
        rows = [_rows_of(token.text, self._num_buckets) for token in tokens]
        embedded = self.table(torch.tensor(rows, dtype=torch.long, device=flair.device))
        for token, embedding in zip(tokens, embedded, strict=True):
            token.set_embedding(self.name, embedding)

    def to_params(self) -> dict[str, Any]:
        """Returns the arguments that build this object again."""
        return {"num_buckets": self._num_buckets, "embedding_length": self._embedding_length}

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> HashedWordEmbeddings:
        """Returns the object that `to_params` described."""
        return cls(**params)


@functools.lru_cache(_CACHED_WORDS)
def _rows_of(word: str, num_buckets: int) -> tuple[int, ...]:
    """Returns the rows of the features of `word`."""
    return tuple(zlib.crc32(one.encode()) % num_buckets for one in features(word))


def features(word: str) -> tuple[str, ...]:
    """Returns six features of `word`: itself, in lower case, both ends, its shape, its length."""
    lower = word.lower()
    shape = re.sub(r"(.)\1+", r"\1", "".join(_sign(character) for character in word))
    return (f"w{word}", f"l{lower}", f"p{lower[:3]}", f"s{lower[-3:]}", f"x{shape}", f"n{min(len(word), 8)}{shape[:1]}")


def _sign(character: str) -> str:
    if character.isupper():
        return "A"
    if character.isdigit():
        return "0"
    return "a" if character.isalpha() else character
