"""Muon for matrices and AdamW for the rest, or AdamW for all."""

from __future__ import annotations

from typing import Any

import jax
import optax

from trainer.configs.base import Optimizer


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
        groups["muon"] = optax.contrib.muon(schedule(config.muon_learning_rate), weight_decay=config.weight_decay)

    def group(path: Any, leaf: Any) -> str:
        name = jax.tree_util.keystr(path)
        if "class_vectors" in name:
            return "classes"
        if leaf.ndim < 2 or any(part in name for part in ("position", "class_token", "table")):
            return "plain"
        return "muon" if config.kind == "muon" else "decayed"

    update = optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(group, params))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update) if config.clip_norm else update
