"""Word embeddings that need no vocabulary and no download: sums of hashed spellings, endings, shapes and uses."""

from __future__ import annotations

import re
import zlib
from typing import Any

import flair
import torch
from flair.data import Sentence
from flair.embeddings import TokenEmbeddings
from flair.embeddings.base import register_embeddings

from pipeline.tagger.word_use import WordUse

_CACHED_WORDS = 20_000  # some 5 MB


@register_embeddings
class HashedWordEmbeddings(TokenEmbeddings):
    """Embeds a token as the sum of the learned vectors of its features; with one lookup per batch.

    flair's own character LSTM takes ten times as long, mostly for assignments of single rows.

    Args:
        num_buckets: rows of the table; features with the same row share its vector.
        embedding_length: width of the vectors.
        hashes: of the words whose use is known; see `WordUse`.
        uses: see `WordUse`.
    """

    def __init__(
        self, num_buckets: int = 1 << 14, embedding_length: int = 64, hashes: bytes = b"", uses: bytes = b""
    ) -> None:
        super().__init__()
        self.name = "hashed-words"
        self.static_embeddings = False
        self._num_buckets = num_buckets
        self._embedding_length = embedding_length
        self._word_use = WordUse(hashes, uses)
        self._rows_of: dict[str, tuple[int, ...]] = {}
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
        rows = [self._rows(token.text) for token in tokens]
        embedded = self.table(torch.tensor(rows, dtype=torch.long, device=flair.device))
        for token, embedding in zip(tokens, embedded, strict=True):
            token.set_embedding(self.name, embedding)

    def to_params(self) -> dict[str, Any]:
        """Returns the arguments that build this object again."""
        return {
            "num_buckets": self._num_buckets,
            "embedding_length": self._embedding_length,
            "hashes": self._word_use.hashes,
            "uses": self._word_use.uses,
        }

    def _rows(self, word: str) -> tuple[int, ...]:
        """Returns the rows of the features of `word`."""
        if word not in self._rows_of:
            if len(self._rows_of) >= _CACHED_WORDS:
                self._rows_of.clear()
            rows = (zlib.crc32(one.encode()) % self._num_buckets for one in features(word, self._word_use))
            self._rows_of[word] = tuple(rows)
        return self._rows_of[word]

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> HashedWordEmbeddings:
        """Returns the object that `to_params` described."""
        return cls(**params)


def features(word: str, word_use: WordUse) -> tuple[str, ...]:
    """Returns the features of `word`: itself, in lower case, both ends, shape, length; frequency and share of capitals.

    The last two are joined with the word's first sign: "Best" is written otherwise than "best" usually is. Where no
    words are known, as in taggers that were trained before, they are left out.
    """
    lower = word.lower()
    shape = re.sub(r"(.)\1+", r"\1", "".join(_sign(character) for character in word))
    spelling = (
        f"w{word}",
        f"l{lower}",
        f"p{lower[:3]}",
        f"s{lower[-3:]}",
        f"x{shape}",
        f"n{min(len(word), 8)}{shape[:1]}",
    )
    if not word_use.hashes:
        return spelling
    use = word_use.of(word)
    frequency, capitals = ("", "") if use is None else use
    return (*spelling, f"f{frequency}{shape[:1]}", f"c{capitals}{shape[:1]}")


def _sign(character: str) -> str:
    if character.isupper():
        return "A"
    if character.isdigit():
        return "0"
    return "a" if character.isalpha() else character
