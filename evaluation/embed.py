"""Pictures to embeddings, through the encoder artefact, cached on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import zipfile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from evaluation.errors import UserError
from evaluation.pictures import Pictures

if TYPE_CHECKING:
    from trainer.encoder import Encoder

BATCH_SIZE = 64  # one fixed shape: the model compiles once, and a row does not depend on its neighbours


class ImageEncoder(Protocol):
    """What embedding pictures needs of an encoder."""

    hash: str

    def preprocess(self, picture: Image.Image, /) -> np.ndarray: ...

    def embed_images(self, images: np.ndarray, /) -> np.ndarray: ...


def load_encoder(path: str | os.PathLike[str]) -> Encoder:
    """Returns the encoder in directory `path`.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    # jax takes seconds to import, and most of the evaluation needs none of it.
    from trainer.encoder import Encoder

    try:
        return Encoder.load(path, batch_size=BATCH_SIZE)
    except ValueError as error:
        raise UserError(str(error)) from error


def preprocessing_of(encoder: Any) -> dict[str, Any]:
    """Returns the encoder's preprocessing as JSON values; empty for one that states none."""
    stated = getattr(encoder, "preprocessing", None)
    return dataclasses.asdict(stated) if dataclasses.is_dataclass(stated) and not isinstance(stated, type) else {}


def embed_pictures(encoder: ImageEncoder, pictures: Pictures, *, cache_dir: str, title: str = "") -> np.ndarray:
    """Returns float32 `[n, dim]`, L2-normalised, in the order of `pictures`.

    What was embedded is kept under `cache_dir` by encoder hash, data hash and preprocessing, and read from there.

    Args:
        encoder: usually a `trainer.encoder.Encoder`.
        pictures: all of them are embedded.
        cache_dir: made if need be.
        title: what the progress bar says.

    Raises:
        UserError: a picture cannot be read, or an embedding is not finite or a zero vector; nothing is cached then.
    """
    key = json.dumps(
        {
            "encoder": encoder.hash,
            "data": pictures.data_hash,
            "preprocessing": preprocessing_of(encoder),
            "batch_size": BATCH_SIZE,
        },
        sort_keys=True,
    )
    path = os.path.join(cache_dir, f"embeddings-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz")
    cached = _read_cache(path, key, len(pictures))
    if cached is not None:
        return cached
    rows = []
    with tqdm(
        total=len(pictures), desc=f"embed {title}".strip(), unit="img", file=sys.stderr, disable=None
    ) as progress:
        for start in range(0, len(pictures), BATCH_SIZE):
            positions = range(start, min(start + BATCH_SIZE, len(pictures)))
            batch = np.stack([encoder.preprocess(pictures.open(position)) for position in positions])
            padding = [(0, BATCH_SIZE - len(batch))] + [(0, 0)] * (batch.ndim - 1)
            embedded = np.asarray(encoder.embed_images(np.pad(batch, padding)), np.float32)[: len(batch)]
            rows.append(check_embeddings(embedded, pictures.image_ids[start : start + len(batch)]))
            progress.update(len(batch))
    embeddings = np.concatenate(rows)
    os.makedirs(cache_dir, exist_ok=True)
    # A name that no other process uses, then a rename: a kill leaves no half file under the name that is read.
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, embeddings=embeddings, key=np.array(key))
    os.replace(temporary, path)
    return embeddings


def check_embeddings(embeddings: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns `embeddings`, float32 `[n, dim]`, at length 1.

    Raises:
        UserError: a row is not finite, or a zero vector; the message names its id.
    """
    norms = np.linalg.norm(embeddings, axis=1)
    for wrong, what in ((~np.isfinite(norms), "is not finite"), (norms < 1e-6, "is a zero vector")):
        if wrong.any():
            first = ids[np.flatnonzero(wrong)[0]]
            raise UserError(
                f"the embedding of {first} {what} ({int(wrong.sum())} of {len(norms)} in its batch); "
                "the encoder is broken: train or export it again"
            )
    return embeddings / norms[:, None]


def _read_cache(path: str, key: str, num_pictures: int) -> np.ndarray | None:
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as cached:
            embeddings = cached["embeddings"]
            fits = str(cached["key"]) == key and len(embeddings) == num_pictures
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"warning: {path} cannot be read ({error}); embedding again", file=sys.stderr)
        return None
    return embeddings if fits else None
