"""The entity classifier: one vector a class, its rows padded so that they divide over the mesh's `model` axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def init_classifier(key: jax.Array, num_classes: int, padded_classes: int, dim: int, std: float) -> jax.Array:
    """Returns class vectors float32 [padded_classes, D]; those of real classes do not depend on the padding."""
    vectors = std * jax.random.normal(key, (num_classes, dim), jnp.float32)
    return jnp.pad(vectors, ((0, padded_classes - num_classes), (0, 0)))


def padded(num_classes: int, model_axis: int) -> int:
    """Returns the smallest multiple of `model_axis` that holds all classes."""
    return -(-num_classes // model_axis) * model_axis
