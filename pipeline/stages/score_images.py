"""Linked mentions -> cosines between the picture and the candidates' texts, which decide where the text left doubt."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.config import DisambiguateConfig
from pipeline.images.decode import decode_image
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.picture import NUM_SAMPLES, answer_by_picture, in_doubt
from pipeline.linking.weights import Weights, read_weights
from pipeline.row_stage import RowStage
from pipeline.schema import LinkedMention, Rejection, Row, UserError, entity_text
from pipeline.storage.local_copy import local_copy
from trainer.encoder import Encoder

STAGE = "score_images"
_CACHED_EMBEDDINGS = 100_000  # of texts, and of pictures: 51 MB each at 128 numbers


class _EmbeddingCache:
    """The embeddings that were used last, by key."""

    def __init__(self, size: int):
        self._size = size
        self._embeddings: collections.OrderedDict[Any, np.ndarray] = collections.OrderedDict()

    def __contains__(self, key: Any) -> bool:
        return key in self._embeddings

    def get(self, key: Any) -> np.ndarray:
        self._embeddings.move_to_end(key)
        return self._embeddings[key]

    def put(self, key: Any, embedding: np.ndarray) -> None:
        self._embeddings[key] = embedding

    def trim(self) -> None:
        """Drops those that were used longest ago; called between batches, so that no batch loses what it needs."""
        while len(self._embeddings) > self._size:
            self._embeddings.popitem(last=False)


class ImageScorer:
    """Embeds pictures and entities, and compares them. It holds the caches; threads use it one at a time.

    Args:
        encoder: with an image and a text function.
        kb: has the names and descriptions of the candidates.
        batch_size: pictures or texts per call; a short batch is padded, so that shapes and results never vary.
        config: which mentions are in doubt, and when the answer is NIL.
        weights: of the evidence.
    """

    def __init__(
        self, encoder: Encoder, kb: KnowledgeBase, batch_size: int, config: DisambiguateConfig, weights: Weights
    ):
        self._encoder = encoder
        self._kb = kb
        self._batch_size = batch_size
        self._config = config
        self._weights = weights
        self._sample: np.ndarray | None = None  # float [n, D], embedded when it is first needed
        self._texts = _EmbeddingCache(_CACHED_EMBEDDINGS)
        self._images = _EmbeddingCache(_CACHED_EMBEDDINGS)
        self._lock = threading.Lock()

    def score_rows(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        """Returns each row with similarities and its picture's size, or its rejection.

        The candidates of a mention that has an entity chosen or is in doubt are scored; other mentions answered NIL are
        not. Those in doubt are then chosen again. A row is rejected if its picture is broken or no entity is left.
        """
        with self._lock:  # one batch must not drop from the caches what another needs
            outcomes, digests = self._embed_images(rows)
            self._embed_texts(outcomes)
            scored = [
                self._score(outcome, self._images.get(digest)) if isinstance(outcome, Row) else outcome
                for outcome, digest in zip(outcomes, digests, strict=True)
            ]
            self._texts.trim()
            self._images.trim()
            return scored

    def _embed_images(self, rows: Sequence[Row]) -> tuple[list[Row | Rejection], list[bytes]]:
        """Returns the rows with their sizes, or their rejections, and the key of each picture in the cache."""
        outcomes: list[Row | Rejection] = []
        digests = [hashlib.sha256(row.pair.image).digest() for row in rows]
        waiting: dict[bytes, np.ndarray] = {}
        for row, digest in zip(rows, digests, strict=True):
            try:
                picture = decode_image(row.pair.image)
            except ValueError:
                outcomes.append(row.rejected(stage=STAGE, reason="broken_image"))
                continue
            if digest not in self._images and digest not in waiting:
                waiting[digest] = self._encoder.preprocess(picture)
            width_px, height_px = picture.size
            outcomes.append(dataclasses.replace(row, width_px=width_px, height_px=height_px))
        for chunk in _chunks(list(waiting), self._batch_size):
            pixels = pad_batch(np.stack([waiting[digest] for digest in chunk]), self._batch_size)
            for digest, embedding in zip(chunk, self._encoder.embed_images(pixels)[: len(chunk)], strict=True):
                self._images.put(digest, embedding)
        return outcomes, digests

    def _embed_texts(self, outcomes: Sequence[Row | Rejection]) -> None:
        """Embeds the candidates of the rows that are kept, where the cache lacks them."""
        mentions = [linked for row in outcomes if isinstance(row, Row) for linked in row.linked]
        needed = {
            candidate.entity_id
            for linked in mentions
            if linked.chosen is not None or in_doubt(linked, self._config, self._weights)
            for candidate in linked.candidates
        }
        for ids in _chunks(sorted(one for one in needed if one not in self._texts), self._batch_size):
            for entity_id, embedding in zip(ids, self._embed_entities(ids), strict=True):
                self._texts.put(entity_id, embedding)
        if self._sample is None and any(in_doubt(linked, self._config, self._weights) for linked in mentions):
            chunks = _chunks(self._kb.sample(NUM_SAMPLES), self._batch_size)
            self._sample = np.concatenate([self._embed_entities(ids) for ids in chunks]).astype(np.float32)

    def _embed_entities(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the embeddings `[len(ids), D]` of at most a batch of entities."""
        entities = [self._kb.entity(entity_id) for entity_id in ids]
        texts = [entity_text(entity.label, entity.description) for entity in entities]
        return self._encoder.embed_texts(texts + [""] * (self._batch_size - len(texts)))[: len(ids)]

    def _score(self, row: Row, image: np.ndarray) -> Row | Rejection:
        linked = tuple(self._score_mention(mention, image) for mention in row.linked)
        row = dataclasses.replace(row, linked=linked)
        if any(mention.chosen is not None for mention in linked):
            return row
        return row.rejected(stage=STAGE, reason="all_nil")

    def _score_mention(self, linked: LinkedMention, image: np.ndarray) -> LinkedMention:
        asks_picture = in_doubt(linked, self._config, self._weights)
        if linked.chosen is None and not asks_picture:
            return linked
        candidates = tuple(
            dataclasses.replace(candidate, similarity=cosine(image, self._texts.get(candidate.entity_id)))
            for candidate in linked.candidates
        )
        linked = dataclasses.replace(linked, candidates=candidates)
        if not asks_picture or self._sample is None:
            return linked
        return answer_by_picture(
            linked,
            self._sample @ image.astype(np.float32),
            weights=self._weights,
            probability_min=self._config.probability_min,
        )


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the cosine of two L2-normalised vectors `[D]`.

    Raises:
        ValueError: it is not finite.
    """
    value = float(np.dot(first.astype(np.float32), second.astype(np.float32)))
    if not np.isfinite(value):
        raise ValueError("an embedding is not finite: the encoder is damaged; train or import it again")
    return value


def pad_batch(batch: np.ndarray, size: int) -> np.ndarray:
    """Returns `batch` `[n, ...]` with zeros added up to `[size, ...]`."""
    if len(batch) == size:
        return batch
    return np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)])


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


@functools.lru_cache(maxsize=2)
def _load_scorer(
    encoder_path: str, kb_path: str, batch_size: int, config: DisambiguateConfig, weights: Weights
) -> ImageScorer:
    """Returns the scorer, one for the whole process.

    Raises:
        UserError: the directory holds no encoder, or one without a text function.
    """
    try:
        encoder = Encoder.load(local_copy(encoder_path), batch_size=batch_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not encoder.has_text:
        raise UserError(f"{encoder_path}: the encoder has no text function; give one trained with a contrastive config")
    return ImageScorer(encoder, KnowledgeBase.open(kb_path), batch_size, config, weights)


class ScoreImages(RowStage):
    """Keeps the rows with an entity and a picture, with similarities; rejects the others ("broken_image", "all_nil").

    Args:
        encoder_path: directory of an encoder with a text function.
        kb_path: the knowledge base that the candidates come from.
        batch_size: pictures or texts per call of the encoder.
        config: the settings of the choice.
    """

    name = STAGE

    def __init__(self, encoder_path: str, kb_path: str, batch_size: int = 64, config: DisambiguateConfig | None = None):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: must be at least 1")
        self.encoder_path = encoder_path
        self.kb_path = kb_path
        self.batch_size = batch_size
        self.config = config or DisambiguateConfig()
        self.weights = read_weights(self.config.weights)

    def setup(self) -> None:
        self._scorer = _load_scorer(self.encoder_path, self.kb_path, self.batch_size, self.config, self.weights)

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return self._scorer.score_rows(rows)

    def further_counts(self, outcomes: Sequence[Row | Rejection]) -> dict[str, int]:
        changed = [linked.chosen != linked.by_text for outcome in outcomes for linked in outcome.linked]
        return {"mentions_changed": sum(changed)}
