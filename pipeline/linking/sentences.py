"""Sentence encoders: models that embed texts so that those with like meanings lie near each other."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engine.devices import batches_of_one_length, torch_device
from pipeline.schema import UserError
from pipeline.storage.fingerprints import sha256_of_file
from pipeline.storage.local_copy import local_copy

TOKENS_MAX = 128  # of one text; longer ones are cut
_MODULES = "modules.json"  # of a folder in the layout of sentence-transformers


class SentenceEncoder:
    """A model of sentence-transformers.

    Args:
        model: a SentenceTransformer.
    """

    def __init__(self, model: Any):
        self._model = model
        self._tokens_max = min(TOKENS_MAX, model.max_seq_length or TOKENS_MAX)
        model.max_seq_length = self._tokens_max
        self.device = str(model.device)
        """torch's name of the device that it runs on, such as "cpu"."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the embeddings of `texts`, float32 `[n, D]`, of length 1.

        Each distinct text is embedded once, together with other texts of the same number of tokens, and every
        call of that number has as many. So no token is padded, and an embedding does not depend on the other texts.

        Raises:
            UserError: an embedding is not finite.
        """
        if not texts:
            return np.zeros((0, 0), np.float32)
        distinct = sorted(set(texts))
        tokens = self._model.tokenizer(distinct, truncation=True, max_length=self._tokens_max)["input_ids"]
        parts: list[tuple[list[int], np.ndarray]] = []
        for batch in batches_of_one_length([len(ids) for ids in tokens], device=self.device):
            vectors = self._model.encode(
                [distinct[place] for place in batch],
                batch_size=len(batch),
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            parts.append((batch, vectors))
        found = np.zeros((len(distinct), parts[0][1].shape[1]), np.float32)
        for batch, vectors in parts:
            found[batch] = vectors
        if not np.isfinite(found).all():
            raise UserError("--sentence-encoder: an embedding is not finite; the model is damaged")
        places = {text: place for place, text in enumerate(distinct)}
        return found[[places[text] for text in texts]]


@functools.lru_cache(maxsize=1)
def load_sentence_encoder(name: str) -> SentenceEncoder:
    """Returns the sentence encoder called `name` (a folder, or a model of the hub), one for the whole process.

    Of a folder in a store it loads a copy. It runs where the tagger does: see `torch_device`.

    Raises:
        UserError: there is no such model.
    """
    folder = local_copy(name)
    _check_folder(folder)
    os.environ.setdefault("USE_TF", "0")  # transformers would load TensorFlow, and refuse its Keras
    from sentence_transformers import SentenceTransformer  # takes seconds: only where an encoder is used

    device = torch_device()
    try:
        return SentenceEncoder(SentenceTransformer(folder, device=device))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--sentence-encoder {name}: cannot be loaded ({reason}); give another model") from None


def sentence_encoder_fingerprint(name: str) -> str:
    """Returns a hash of the files of the model; of a hub name, which has no files here, the name.

    Raises:
        UserError: `name` looks like the path of a folder, and there is no such model.
    """
    copy = local_copy(name)
    _check_folder(copy)
    folder = Path(copy)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        digest.update(f"{path.relative_to(folder)} {sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def _check_folder(folder: str) -> None:
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, _MODULES)):
            raise UserError(
                f"--sentence-encoder {folder}: has no {_MODULES}; give a folder that sentence-transformers has saved"
            )
    elif folder.startswith((".", os.sep)) or folder.count("/") > 1 or os.path.exists(folder):  # no name of the hub
        raise UserError(
            f"--sentence-encoder {folder}: is no folder; give one that sentence-transformers has saved, or leave it out"
        )
