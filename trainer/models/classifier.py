"""The entity classifier: one vector per class, with rows of padding so that all devices hold as many."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def init_classifier(key: jax.Array, num_classes: int, padded_classes: int, dim: int, std: float) -> jax.Array:
    """Returns class vectors float32 [padded_classes, D]; the vectors of real classes do not depend on the padding."""
    vectors = std * jax.random.normal(key, (num_classes, dim), jnp.float32)
    return jnp.pad(vectors, ((0, padded_classes - num_classes), (0, 0)))


def padded(num_classes: int, num_devices: int) -> int:
    """Returns the smallest multiple of `num_devices` that holds all classes."""
    return -(-num_classes // num_devices) * num_devices
