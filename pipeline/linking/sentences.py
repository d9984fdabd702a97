"""Sentence encoders: models that embed texts so that those with like meanings lie near each other."""

from __future__ import annotations

import collections
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engine.devices import tagger_device, this_worker
from pipeline.schema import UserError
from pipeline.storage.fingerprints import sha256_of_file
from pipeline.storage.local_copy import local_copy
from pipeline.tagger.load import BATCH_SIZES

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

        Each distinct text is embedded once, together with other texts of the same number of tokens, and a call always
        has as many texts. So no token is padded, and an embedding does not depend on the other texts.

        Raises:
            UserError: an embedding is not finite.
        """
        distinct = sorted(set(texts))
        places = {text: place for place, text in enumerate(distinct)}
        size = BATCH_SIZES[self.device.partition(":")[0]]
        found: np.ndarray | None = None
        for chosen in self._batches(distinct, size):
            batch = [distinct[place] for place in chosen]
            vectors = self._model.encode(
                batch + batch[:1] * (size - len(batch)),
                batch_size=size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            if found is None:
                found = np.zeros((len(distinct), vectors.shape[1]), np.float32)
            found[chosen] = vectors[: len(batch)]
        if found is None:
            return np.zeros((0, 0), np.float32)
        if not np.isfinite(found).all():
            raise UserError("--sentence-encoder: an embedding is not finite; the model is damaged")
        return found[[places[text] for text in texts]]

    def _batches(self, texts: Sequence[str], size: int) -> Iterator[list[int]]:
        """Yields the places of texts of one number of tokens, at most `size`."""
        by_length: dict[int, list[int]] = collections.defaultdict(list)
        if texts:
            tokens = self._model.tokenizer(list(texts), truncation=True, max_length=self._tokens_max)["input_ids"]
            for place, ids in enumerate(tokens):
                by_length[len(ids)].append(place)
        for alike in by_length.values():
            for start in range(0, len(alike), size):
                yield alike[start : start + size]


@functools.lru_cache(maxsize=1)
def load_sentence_encoder(name: str) -> SentenceEncoder:
    """Returns the sentence encoder called `name` (a folder, or a model of the hub), one for the whole process.

    Of a folder in a store it loads a copy. It runs where the tagger does: see `pipeline.tagger.load.load_tagger`.

    Raises:
        UserError: there is no such model.
    """
    folder = local_copy(name)
    _check_folder(folder)
    os.environ.setdefault("USE_TF", "0")  # transformers would load TensorFlow, and refuse its Keras
    import torch  # takes seconds: only where an encoder is used
    from sentence_transformers import SentenceTransformer

    wanted = os.environ.get("FLAIR_DEVICE")
    device = tagger_device(num_gpus=torch.cuda.device_count(), worker=this_worker(), wanted=wanted)
    torch.set_num_threads(1)
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
