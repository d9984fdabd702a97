"""Linked mentions -> cosines between the picture and the candidates' texts, which decide where the text left doubt."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pipeline.byte_cache import ByteCache
from pipeline.config import DisambiguateConfig, ScoreConfig
from pipeline.engine.devices import encoder_devices, this_worker
from pipeline.images.decode import decode_image, on_white
from pipeline.images.perceptual_hash import perceptual_hash
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.picture import NUM_SAMPLES, answer_by_picture, in_doubt
from pipeline.linking.weights import Weights, weights_of
from pipeline.row_stage import RowStage
from pipeline.schema import LinkedMention, Rejection, Row, UserError, entity_text
from pipeline.storage.local_copy import local_copy
from trainer.encoder import Encoder

STAGE = "score_images"
_CACHE_BYTES = 64 << 20  # of embeddings of texts, and as much of those of pictures
_ENTRY_BYTES = 500  # of an entry beside its numbers: key, objects, and its places in the tables


class _Picture(NamedTuple):
    """What the scorer knows of a picture."""

    width_px: int
    height_px: int
    perceptual_hash: str
    embedding: np.ndarray  # float32 [D]


class _Decoded(NamedTuple):
    width_px: int
    height_px: int
    perceptual_hash: str
    pixels: np.ndarray  # a row for the encoder


class ImageScorer:
    """Embeds pictures and entities, and compares them. It holds the caches, and threads may share it.

    They decode pictures at the same time, and call the encoder one after the other.

    Args:
        encoder: with an image and a text function.
        kb: has the names and descriptions of the candidates.
        score: how many pictures or texts a call has, and whether rows get the embeddings of their pictures. A short
            batch is padded, so that shapes and results never vary.
        config: which mentions are in doubt, and when the answer is NIL.
        weights: of the evidence.
    """

    def __init__(
        self, encoder: Encoder, kb: KnowledgeBase, score: ScoreConfig, config: DisambiguateConfig, weights: Weights
    ):
        self._encoder = encoder
        self._kb = kb
        self._batch_size = score.batch_size
        self._keep_embeddings = score.keep_embeddings
        self._config = config
        self._weights = weights
        self._sample: np.ndarray | None = None  # float [n, D], embedded when it is first needed
        self._texts: ByteCache[str, np.ndarray] = ByteCache(
            _CACHE_BYTES, lambda _, embedding: embedding.nbytes + _ENTRY_BYTES
        )
        self._pictures: ByteCache[bytes, _Picture] = ByteCache(
            _CACHE_BYTES, lambda _, picture: picture.embedding.nbytes + _ENTRY_BYTES
        )
        self._lock = threading.Lock()  # of the encoder

    def score_rows(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        """Returns each row with similarities and what is known of its picture, or its rejection.

        The candidates of a mention that has an entity chosen or is in doubt are scored; other mentions answered NIL are
        not. Those in doubt are then chosen again. A row is rejected if its picture is broken or no entity is left.
        """
        pictures = self._pictures_of([row.pair.image for row in rows])
        doubts = [[in_doubt(linked, self._config, self._weights) for linked in row.linked] for row in rows]
        texts = self._texts_of(
            [
                (linked, doubt)
                for row, picture, of_row in zip(rows, pictures, doubts, strict=True)
                if picture is not None
                for linked, doubt in zip(row.linked, of_row, strict=True)
            ]
        )
        return [
            row.rejected(stage=STAGE, reason="broken_image")
            if picture is None
            else self._score(row, picture, of_row, texts)
            for row, picture, of_row in zip(rows, pictures, doubts, strict=True)
        ]

    def _pictures_of(self, files: Sequence[bytes]) -> list[_Picture | None]:
        """Returns what is known of the picture in each of `files`; None of a broken one.

        Equal files are decoded once. Memory holds the pixels of one batch of the encoder, however many files there are.
        """
        digests = [hashlib.sha256(file).digest() for file in files]
        found: dict[bytes, _Picture | None] = {}
        waiting: dict[bytes, _Decoded] = {}
        for digest, file in zip(digests, files, strict=True):
            if digest in found or digest in waiting:
                continue
            if (picture := self._pictures.find(digest)) is not None or (decoded := self._decode(file)) is None:
                found[digest] = picture
                continue
            waiting[digest] = decoded
            if len(waiting) == self._batch_size:
                found.update(self._embed_pictures(waiting))
                waiting = {}
        if waiting:
            found.update(self._embed_pictures(waiting))
        return [found[digest] for digest in digests]

    def _decode(self, file: bytes) -> _Decoded | None:
        try:
            picture = on_white(decode_image(file))  # once, for the hash and for the encoder
        except ValueError:
            return None
        return _Decoded(*picture.size, perceptual_hash(picture), self._encoder.preprocess(picture))

    def _embed_pictures(self, decoded: Mapping[bytes, _Decoded]) -> dict[bytes, _Picture]:
        """Returns the pictures of at most a batch, which are in the cache too."""
        pixels = pad_batch(np.stack([one.pixels for one in decoded.values()]), self._batch_size)
        with self._lock:
            embeddings = self._encoder.embed_images(pixels)
        pictures = {}
        for (digest, one), embedding in zip(decoded.items(), embeddings, strict=False):
            # A copy: a part of the batch would keep all of it.
            picture = _Picture(one.width_px, one.height_px, one.perceptual_hash, embedding.copy())
            pictures[digest] = picture
            self._pictures.put(digest, picture)
        return pictures

    def _texts_of(self, mentions: Sequence[tuple[LinkedMention, bool]]) -> dict[str, np.ndarray]:
        """Returns the embeddings of the candidates of `mentions` that are to be scored, by id.

        With each mention comes whether it is in doubt.
        """
        needed = {
            candidate.entity_id
            for linked, doubt in mentions
            if linked.chosen is not None or doubt
            for candidate in linked.candidates
        }
        found, missing = self._texts.find_all(sorted(needed))
        for ids in _chunks(missing, self._batch_size):
            for entity_id, row in zip(ids, self._embed_entities(ids), strict=True):
                found[entity_id] = row.copy()
                self._texts.put(entity_id, found[entity_id])
        if self._sample is None and any(doubt for _, doubt in mentions):
            chunks = _chunks(self._kb.sample(NUM_SAMPLES), self._batch_size)
            self._sample = np.concatenate([self._embed_entities(ids) for ids in chunks]).astype(np.float32)
        return found

    def _embed_entities(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the embeddings `[len(ids), D]` of at most a batch of entities."""
        entities = [self._kb.entity(entity_id) for entity_id in ids]
        texts = [entity_text(entity.label, entity.description) for entity in entities]
        with self._lock:
            return self._encoder.embed_texts(texts + [""] * (self._batch_size - len(texts)))[: len(ids)]

    def _score(
        self, row: Row, picture: _Picture, doubts: Sequence[bool], texts: Mapping[str, np.ndarray]
    ) -> Row | Rejection:
        linked = tuple(
            self._score_mention(mention, picture.embedding, texts, asks_picture=doubt)
            for mention, doubt in zip(row.linked, doubts, strict=True)
        )
        row = dataclasses.replace(
            row,
            linked=linked,
            width_px=picture.width_px,
            height_px=picture.height_px,
            perceptual_hash=picture.perceptual_hash,
            embedding=picture.embedding.astype("<f2").tobytes() if self._keep_embeddings else None,
        )
        if any(mention.chosen is not None for mention in linked):
            return row
        return row.rejected(stage=STAGE, reason="all_nil")

    def _score_mention(
        self, linked: LinkedMention, image: np.ndarray, texts: Mapping[str, np.ndarray], *, asks_picture: bool
    ) -> LinkedMention:
        if linked.chosen is None and not asks_picture:
            return linked
        candidates = tuple(
            dataclasses.replace(candidate, similarity=cosine(image, texts[candidate.entity_id]))
            for candidate in linked.candidates
        )
        linked = dataclasses.replace(linked, candidates=candidates)
        if not asks_picture or self._sample is None:
            return linked
        return answer_by_picture(
            linked,
            self._sample @ image.astype(np.float32),
            weights=self._weights,
        )


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the cosine of two L2-normalised vectors `[D]`.

    Raises:
        ValueError: it is not finite.
    """
    value = float(np.dot(first.astype(np.float32, copy=False), second.astype(np.float32, copy=False)))
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


@functools.cache
def _devices() -> list[jax.Device]:
    """Returns the devices that the encoder of this process runs on."""
    # JAX would take most of a GPU's memory at once; the tagger and other processes need some of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return encoder_devices(jax.local_devices(), worker=this_worker())


@functools.lru_cache(maxsize=2)
def _load_scorer(
    encoder_path: str, kb_path: str, score: ScoreConfig, config: DisambiguateConfig, weights: Weights
) -> ImageScorer:
    """Returns the scorer, one for the whole process.

    Raises:
        UserError: the directory holds no encoder, or one without a text function.
    """
    try:
        encoder = Encoder.load(local_copy(encoder_path), batch_size=score.batch_size, devices=_devices())
    except ValueError as error:
        raise UserError(str(error)) from error
    if not encoder.has_text:
        raise UserError(f"{encoder_path}: the encoder has no text function; give one trained with a contrastive config")
    return ImageScorer(encoder, KnowledgeBase.open(kb_path), score, config, weights)


class ScoreImages(RowStage):
    """Keeps the rows with an entity and a picture, with similarities; rejects the others ("broken_image", "all_nil").

    Args:
        encoder_path: directory of an encoder with a text function.
        kb_path: the knowledge base that the candidates come from.
        score: the settings of the encoder's part.
        config: the settings of the choice.
    """

    name = STAGE

    def __init__(self, encoder_path: str, kb_path: str, *, score: ScoreConfig, config: DisambiguateConfig):
        super().__init__()
        if score.batch_size < 1:
            raise ValueError(f"batch_size {score.batch_size}: must be at least 1")
        self.encoder_path = encoder_path
        self.kb_path = kb_path
        self.score = score
        self.config = config
        self.weights = weights_of(self.config)

    def setup(self) -> None:
        self._scorer = _load_scorer(self.encoder_path, self.kb_path, self.score, self.config, self.weights)

    def model(self) -> str:
        return "encoder on " + " and ".join(f"{device.platform}:{device.id}" for device in _devices())

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return self._scorer.score_rows(rows)

    def further_counts(self, outcomes: Sequence[Row | Rejection]) -> dict[str, int]:
        changed = [linked.chosen != linked.by_text for outcome in outcomes for linked in outcome.linked]
        return {"mentions_changed": sum(changed)}
