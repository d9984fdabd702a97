"""The encoder of a run, made of its parameters."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from trainer.encoder import Classifier
from trainer.encoder.write import save_encoder
from trainer.run import Run
from trainer.state import State


def write_encoder(path: str, run: Run, state: State, resolved: dict[str, Any]) -> str:
    """Writes the encoder, in process 0, and returns its hash; in other processes, returns an empty text."""
    params = _on_host(state.params)
    if jax.process_index() != 0:
        return ""
    classifier = None
    if run.experiment.classifies:
        classifier = Classifier(
            weights=params["class_vectors"][: run.corpus.num_classes],
            entity_ids=run.corpus.entity_ids,
            scale=float(np.exp(params["log_class_scale"])),
        )
    image, text = run.models.image, run.models.text
    return save_encoder(
        path,
        image_function=lambda p, images: jnp.asarray(image.apply({"params": p}, images)),
        image_params=params["image"],
        preprocessing=run.preprocessing,
        text_function=None if text is None else lambda p, tokens: jnp.asarray(text.apply({"params": p}, tokens)),
        text_params=params.get("text"),
        tokenizer=run.tokenizer,
        context_length=run.experiment.text.context_length if text is not None else None,
        classifier=classifier,
        provenance={**resolved, "packages": {name: version(name) for name in ("jax", "flax", "optax")}},
    )


def _on_host(params: Any) -> Any:
    if jax.process_count() == 1:
        return jax.device_get(params)
    return multihost_utils.process_allgather(params, tiled=True)
