"""The objective of an experiment: the weighted sum of its losses, as a function of a batch's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from trainer.configs.base import Experiment
from trainer.losses.contrastive import sharded_contrastive
from trainer.losses.softmax import sharded_softmax

Arrays = dict[str, jax.Array]
Objective = Callable[..., tuple[jax.Array, Arrays]]


def make_objective(experiment: Experiment, mesh: Mesh, num_classes: int) -> Objective:
    """Returns objective(params, embeddings, batch) -> (loss, metrics), the losses over the whole batch.

    Of the parameters it reads the class vectors and the scales; its argument `class_ids` says which classes the vectors
    are of, if not of all. `embeddings` holds `images` and, as the losses need, `texts`, float32 [B, D], L2-normalised,
    sharded over all devices. Where the batch holds `weights`, float32 [B], both losses are means weighted by them.
    """
    weights = experiment.loss
    softmax = contrastive = None
    if experiment.classifies:
        softmax = sharded_softmax(
            mesh,
            num_classes=num_classes,
            tile_classes=weights.tile_classes,
            margin=weights.class_margin,
            dtype=weights.class_dtype,
        )
    if experiment.contrasts:
        contrastive = sharded_contrastive(mesh)

    def objective(
        params: dict[str, Any], embeddings: Arrays, batch: Arrays, class_ids: jax.Array | None = None
    ) -> tuple[jax.Array, Arrays]:
        total, metrics = jnp.zeros(()), Arrays()
        images = embeddings["images"]
        if softmax is not None:
            scale = jnp.exp(params["log_class_scale"])
            if not weights.class_scale_learned:
                scale = jax.lax.stop_gradient(scale)
            loss = softmax(images, params["class_vectors"], scale, batch["class_ids"], class_ids, batch.get("weights"))
            metrics |= {"classification_loss": loss, "class_scale": scale}
            total += weights.classification_weight * loss
        if contrastive is not None:
            scale = jnp.exp(params["log_scale"])
            groups = batch["image_groups"], batch["text_groups"]
            loss = contrastive(images, embeddings["texts"], scale, *groups, batch.get("weights"))
            metrics |= {"contrastive_loss": loss, "contrastive_scale": scale}
            total += weights.contrastive_weight * loss
        return total, {"loss": total, **metrics}

    return objective
