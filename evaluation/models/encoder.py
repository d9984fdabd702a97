"""An encoder artefact as a model that benchmarks measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.models.embed import embed_images, embed_texts, preprocessing_of
from evaluation.models.fine_tune import FineTuneConfig, predictions
from evaluation.protocol import Embedded, Unavailable
from evaluation.sets.images import ImageSet, LabelledImages, read_all

if TYPE_CHECKING:
    from trainer.encoder import Encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderModel:
    """An encoder artefact, and where its embeddings are kept."""

    encoder: Encoder
    cache_dir: Path
    max_unreadable: int = 0
    num_threads: int | None = None

    @property
    def hash(self) -> str:
        """The encoder's own hash."""
        return self.encoder.hash

    def identity(self, embeddings: Mapping[str, str]) -> Mapping[str, Any]:
        """Returns the encoder's own hash, whatever it embedded."""
        return {"hash": self.hash}

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What is done to a picture, as JSON values."""
        return preprocessing_of(self.encoder)

    @property
    def classifier(self) -> Any | None:
        """The encoder's classifier, or None."""
        return self.encoder.classifier

    @property
    def tuner(self) -> EncoderModel:
        """This model itself."""
        return self

    def read(self, images: ImageSet) -> tuple[ImageSet, np.ndarray, str]:
        """Returns what of `images` can be read; see `evaluation.sets.images.read_all`."""
        return read_all(images, max_unreadable=self.max_unreadable, num_threads=self.num_threads)

    def fine_tuned(
        self, train: LabelledImages, scored: ImageSet, num_classes: int, config: FineTuneConfig
    ) -> np.ndarray:
        """Returns the classes of `scored`, int64 `[n]`; see `evaluation.models.fine_tune.predictions`."""
        return predictions(self.encoder, train, scored, num_classes, config, cache_dir=self.cache_dir)

    def embed(self, images: ImageSet) -> Embedded:
        """Returns the embeddings of `images`; see `evaluation.models.embed.embed_images`."""
        return embed_images(
            self.encoder,
            images,
            cache_dir=self.cache_dir,
            max_unreadable=self.max_unreadable,
            num_threads=self.num_threads,
        )

    def known_ids(self, name: str) -> None:
        """Returns None: an encoder needs the pictures."""
        return None

    def embed_texts(self, name: str, texts: Sequence[str]) -> Embedded:
        """Returns the embeddings of all `texts`.

        Raises:
            Unavailable: the encoder has no text function.
        """
        if not self.encoder.has_text:
            raise Unavailable("the encoder has no text function; give one of the contrastive or multitask recipe")
        vectors = embed_texts(self.encoder, name, texts, cache_dir=self.cache_dir)
        return Embedded(vectors=vectors, positions=np.arange(len(texts)))
