"""Muon for matrices and AdamW for the rest, or AdamW for all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from trainer.configs.base import Optimizer
from trainer.muon import muon

# The group of each parameter, by the last part of its name, because its number of axes does not tell: stacked biases
# have two, stacked kernels three. None: the group of matrices, of Muon or of AdamW with weight decay.
_GROUPS: dict[str, str | None] = {
    "kernel": None,
    "bias": "plain",
    "scale": "plain",
    "embedding": "plain",
    "position": "plain",
    "class_token": "plain",
    "log_scale": "plain",
    "log_class_scale": "plain",
    "class_vectors": "classes",
}


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Returns the optimiser. Its learning rates warm up linearly, then fall along half a cosine to zero."""

    def schedule(peak: float) -> optax.Schedule:
        warmup = min(config.warmup_steps, max(1, steps // 2))
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))

    def adamw(peak: float, weight_decay: float) -> optax.GradientTransformation:
        return optax.adamw(schedule(peak), b1=config.b1, b2=config.b2, weight_decay=weight_decay)

    groups = {
        "decayed": adamw(config.learning_rate, config.weight_decay),
        "plain": adamw(config.learning_rate, 0.0),
        "classes": adamw(config.classifier_learning_rate, 0.0),
    }
    if config.kind == "muon":
        groups["muon"] = muon(schedule(config.muon_learning_rate), config.weight_decay)
    matrices = "muon" if config.kind == "muon" else "decayed"

    def group(path: Any, _: Any) -> str:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name not in _GROUPS:
            raise ValueError(f"{jax.tree_util.keystr(path)} has no group of the optimiser; add '{name}' to _GROUPS")
        return _GROUPS[name] or matrices

    update = optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(group, params))
    return optax.chain(_clip_by_norm(config.clip_norm), update) if config.clip_norm else update


def _clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Returns what shrinks all gradients by one factor, so that the norm of all together is at most `limit`.

    optax's own divides them by the norm, and XLA keeps each quotient in memory for the moments that read it: a second
    gradient of the class vectors. A product is computed where it is read.
    """

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, limit / optax.tree.norm(gradients))
        return jax.tree.map(lambda gradient: gradient * factor, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def steps_taken(opt_state: Any) -> jax.Array:
    """Returns how many updates the optimiser made, int32 []: all its parts count them."""
    counts: list[tuple[Any, jax.Array]] = optax.tree.get_all_with_path(opt_state, "count")
    return counts[0][1]
