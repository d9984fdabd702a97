"""One training step, with losses, gradients and update in one jit over the mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from trainer.configs.base import LARGEST_SCALE, Experiment
from trainer.encoder.write import l2_normalise
from trainer.finite import finite_leaves
from trainer.losses.contrastive import contrastive_loss
from trainer.losses.softmax import sharded_softmax
from trainer.mesh import batch_sharding, replicated
from trainer.state import Models, State

# Of each array of the parameters, in the order of the tree: whether its gradient, and its new value, are finite.
FINITE_GRADIENTS, FINITE_PARAMS = "finite_gradients", "finite_params"
_SCALES = ("log_scale", "log_class_scale")

TrainStep = Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]]


def make_train_step(
    experiment: Experiment,
    models: Models,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shardings: Any,
    num_classes: int,
) -> TrainStep:
    """Returns step(state, batch) -> (state, metrics); the state that is passed in is donated.

    Metrics are scalars but for `FINITE_GRADIENTS` and `FINITE_PARAMS`, bool [number of arrays of the parameters].

    A batch holds `images` float32 [B, S, S, 3] and, as the losses need, `class_ids` int32 [B], or `tokens` int32
    [B, L], `text_groups` int32 [B] and `image_groups` int32 [B, G], all sharded over all devices.
    """
    weights = experiment.loss
    softmax = None
    if experiment.classifies:
        softmax = sharded_softmax(
            mesh,
            num_classes=num_classes,
            tile_classes=weights.tile_classes,
            margin=weights.class_margin,
            dtype=weights.class_dtype,
        )
    rows = batch_sharding(mesh)

    def losses(params: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        # FSDP: towers are stored in shards and gathered when used. Without this, XLA would split activations instead.
        params = {
            name: value if name == "class_vectors" else jax.lax.with_sharding_constraint(value, replicated(mesh))
            for name, value in params.items()
        }
        images = l2_normalise(jnp.asarray(models.image.apply({"params": params["image"]}, batch["images"])))
        images = jax.lax.with_sharding_constraint(images, rows)
        total, metrics = jnp.zeros(()), {}
        if softmax is not None:
            scale = jnp.exp(params["log_class_scale"])
            if not weights.class_scale_learned:
                scale = jax.lax.stop_gradient(scale)
            metrics["classification_loss"] = softmax(images, params["class_vectors"], scale, batch["class_ids"])
            metrics["class_scale"] = scale
            total += weights.classification_weight * metrics["classification_loss"]
        if models.text is not None:
            texts = l2_normalise(jnp.asarray(models.text.apply({"params": params["text"]}, batch["tokens"])))
            texts = jax.lax.with_sharding_constraint(texts, rows)
            scale = jnp.exp(params["log_scale"])
            metrics["contrastive_loss"] = contrastive_loss(
                images, texts, scale, batch["image_groups"], batch["text_groups"]
            )
            metrics["contrastive_scale"] = scale
            total += weights.contrastive_weight * metrics["contrastive_loss"]
        return total, {"loss": total, **metrics}

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        gradients, metrics = jax.grad(losses, has_aux=True)(state.params, batch)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics[FINITE_GRADIENTS] = finite_leaves(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Not in the loss, where a scale at its limit would have no gradient and could never decrease.
        params |= {name: jnp.minimum(params[name], math.log(LARGEST_SCALE)) for name in _SCALES if name in params}
        metrics[FINITE_PARAMS] = finite_leaves(params)
        return State(params=params, opt_state=opt_state), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, rows),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
