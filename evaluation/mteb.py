"""An encoder as a model of the package `mteb`, whose image tasks (MIEB) then measure it.

`mteb` fetches the data of its tasks itself, and keeps its own results. Its extra is `pip install '.[mteb]'`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

# Beside TensorFlow, transformers would ask for a version of Keras that TensorFlow no longer has.
os.environ.setdefault("USE_TF", "0")

from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from evaluation.models.embed import BATCH_SIZE, load_encoder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType

_BATCHES_AT_ONCE = 4  # for each device, so that pictures are decoded while it computes


class EncoderForMteb(AbsEncoder):
    """An encoder on disk, for `mteb.evaluate`.

    An input with a picture and a text is represented by the sum of both embeddings, as in `mteb`'s wrapper of CLIP;
    here each of them has length 1.
    """

    def __init__(
        self, model_name: str | os.PathLike[str], revision: str | None = None, *, device: str | None = None, **_: Any
    ) -> None:
        """Loads the encoder.

        Args:
            model_name: its directory.
            revision: not used; the encoder's hash is the revision that `mteb` files results under.
            device: not used; all local devices of JAX share the batches.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        self.model = load_encoder(model_name)
        has_text = self.model.has_text
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": f"mofi/{self.model.hash[:12]}",
                "revision": self.model.hash,
                "modalities": ["image", "text"] if has_text else ["image"],
                "embed_dim": self.model.embedding_dim,
                "max_tokens": self.model.context_length,
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["JAX"],
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata | None = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> np.ndarray:
        """Returns float32 `[n, dim]` of all rows of `inputs`, batches with the columns `text` or `image` or both.

        Raises:
            ValueError: there is neither, or the encoder has no text tower.
        """
        groups = _groups(inputs, BATCH_SIZE * self.model.num_devices * _BATCHES_AT_ONCE)
        rows = [self._embed(group) for group in groups]
        return np.concatenate(rows) if rows else np.zeros((0, self.model.embedding_dim), np.float32)

    def _embed(self, group: Mapping[str, list[Any]]) -> np.ndarray:
        parts = []
        if "text" in group:
            parts.append(self.model.embed_texts(group["text"]))
        if "image" in group:
            parts.append(self.model.embed_pictures(group["image"]))
        if not parts:
            raise ValueError("the task has inputs without text and image; an encoder embeds nothing else")
        total: np.ndarray = np.sum(parts, axis=0)
        return total


def _groups(batches: Iterable[Mapping[str, Any]], num_rows: int) -> Iterator[dict[str, list[Any]]]:
    """Yields the columns `text` and `image` of several batches together, of `num_rows` or more but for the last."""
    group: dict[str, list[Any]] = {}
    for batch in batches:
        columns = {name: batch[name] for name in ("text", "image") if name in batch}
        for name, values in columns.items():
            group.setdefault(name, []).extend(values)
        if not columns or len(next(iter(group.values()))) >= num_rows:
            yield group
            group = {}
    if group:
        yield group
