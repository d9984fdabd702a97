"""The two kinds of model that a benchmark can be given: an encoder, or embeddings that someone else made."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.benchmark import Embedded, Unavailable
from evaluation.embed import check_embeddings, embed_images, preprocessing_of
from evaluation.errors import UserError
from evaluation.images import ImageSet

if TYPE_CHECKING:
    from trainer.encoder import Encoder

_TEXTS_AT_A_TIME = 4096


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

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What is done to a picture, as JSON values."""
        return preprocessing_of(self.encoder)

    @property
    def classifier(self) -> Any | None:
        """The encoder's classifier, or None."""
        return self.encoder.classifier

    def embed(self, images: ImageSet) -> Embedded:
        """Returns the embeddings of `images`; see `evaluation.embed.embed_images`."""
        return embed_images(
            self.encoder,
            images,
            cache_dir=self.cache_dir,
            max_unreadable=self.max_unreadable,
            num_threads=self.num_threads,
        )

    def embed_texts(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 `[n, dim]`, L2-normalised.

        Raises:
            Unavailable: the encoder has no text function.
        """
        if not self.encoder.has_text:
            raise Unavailable("the encoder has no text function; give one of the contrastive or multitask recipe")
        rows = []
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            some = list(texts[start : start + _TEXTS_AT_A_TIME])
            rows.append(check_embeddings(self.encoder.embed_texts(some), np.array(some, dtype=object)))
        return np.concatenate(rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingsModel:
    """Embeddings from a folder: `<set>.npy` `[n, dim]` of any float type and `<set>.ids`, one id a line.

    Rows are matched to pictures by id, so their order is free; an id that the benchmark does not ask for is an error.
    """

    folder: Path

    @property
    def hash(self) -> str:
        """Of names, sizes and times of the files."""
        stated = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(self.folder.glob("*.npy"))]
        return hashlib.sha256(repr(stated).encode()).hexdigest()

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """Not known."""
        return {"embeddings": "ready-made"}

    @property
    def classifier(self) -> None:
        """There is none."""
        return None

    @property
    def encoder(self) -> Any:
        """There is none."""
        raise Unavailable("ready embeddings cannot be fine-tuned; give an encoder")

    def embed(self, images: ImageSet) -> Embedded:
        """Returns the rows of `<images.name>.npy` in the order of `images`.

        Raises:
            Unavailable: there is no such file.
            UserError: ids differ from the set's, or a row is not finite or a zero vector.
        """
        return Embedded(
            vectors=self._rows(images.name, [str(one) for one in images.ids]),
            positions=np.arange(len(images)),
            num_unreadable=0,
        )

    def embed_texts(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """Returns the rows of `<name>.npy`, whose ids are the texts."""
        unique = list(dict.fromkeys(texts))
        rows = self._rows(name, unique)
        place = {text: position for position, text in enumerate(unique)}
        return rows[[place[text] for text in texts]]

    def _rows(self, name: str, wanted: Sequence[str]) -> np.ndarray:
        path, ids_path = self.folder / f"{name}.npy", self.folder / f"{name}.ids"
        for one in (path, ids_path):
            if not one.exists():
                raise Unavailable(f"{one} is not there; write {name}.npy [n, dim] and {name}.ids, one id a line")
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is no array ({error}); write it with numpy.save") from error
        ids = ids_path.read_text(encoding="utf-8").splitlines()
        if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating) or len(vectors) != len(ids):
            raise UserError(
                f"{path} has shape {vectors.shape} of {vectors.dtype}, and {ids_path.name} has {len(ids)} lines; "
                "floats [n, dim] and n ids are needed"
            )
        place = {one: position for position, one in enumerate(ids)}
        if len(place) != len(ids):
            raise UserError(f"{ids_path} names an id twice; each row needs one of its own")
        missing = [one for one in wanted if one not in place]
        if missing:
            raise UserError(f"{ids_path} lacks {len(missing)} ids, {missing[0]!r} first; embed them too")
        if len(ids) != len(wanted):
            surplus = sorted(set(ids) - set(wanted))
            raise UserError(
                f"{ids_path} has {len(surplus)} ids that {name} does not, {surplus[0]!r} first; leave them out"
            )
        order = np.array([place[one] for one in wanted])
        return check_embeddings(vectors[order], np.array(wanted, dtype=object))
