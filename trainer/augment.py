"""Mild variation of training pictures, in a jit of its own: fused with the training step it is much slower on CPU."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from trainer.configs.base import Augment
from trainer.encoder import Preprocessing

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)


def make_augment(
    config: Augment, preprocessing: Preprocessing, seed: int, sharding: NamedSharding
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns augment(uint8 pixels [B, S, S, 3], step) -> normalised float32 of that shape.

    What it does is a function of seed and step alone, so that a resumed run goes on exactly. Pictures are not flipped:
    letters and flags would become others.
    """

    def augment(pixels: jax.Array, step: jax.Array) -> jax.Array:
        images = pixels.astype(jnp.float32) / 255
        count, size = images.shape[:2]
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 8)

        def uniform(index: int, bound: float) -> jax.Array:
            return jax.random.uniform(keys[index], (count,), minval=-bound, maxval=bound)

        zoom, stretch = uniform(0, config.zoom), uniform(1, config.stretch)
        rows = _resampling(zoom + stretch, uniform(2, config.shift), size)
        columns = _resampling(zoom - stretch, uniform(3, config.shift), size)
        images = jnp.einsum("bij,bjkc->bikc", rows, images)
        images = jnp.einsum("blk,bikc->bilc", columns, images)

        def per_image(values: jax.Array) -> jax.Array:
            return values[:, None, None, None]

        mean = images.mean(axis=(1, 2, 3), keepdims=True)
        images = mean + (images - mean) * per_image(1 + uniform(4, config.contrast))
        images = images * per_image(1 + uniform(5, config.brightness))
        grey = (images * _LUMA).sum(axis=-1, keepdims=True)
        kept = 1 + uniform(6, config.saturation)
        kept = jnp.where(jax.random.bernoulli(keys[7], config.grey_probability, (count,)), 0.0, kept)
        images = jnp.clip(grey + (images - grey) * per_image(kept), 0, 1)
        mean_colour, std_colour = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
        return (images - mean_colour) / std_colour

    return jax.jit(augment, in_shardings=(sharding, None), out_shardings=sharding)


def _resampling(log_scale: jax.Array, shift: jax.Array, size: int) -> jax.Array:
    """Returns [B, S, S] matrices that scale by exp(log_scale) about the centre and move by a share `shift` of the side.

    Interpolation is linear; what lies outside repeats the border.
    """
    centre = (size - 1) / 2
    wanted = (jnp.arange(size) - centre) * jnp.exp(log_scale)[:, None] + centre + shift[:, None] * size
    wanted = jnp.clip(wanted, 0, size - 1)
    return jnp.maximum(0, 1 - jnp.abs(wanted[:, :, None] - jnp.arange(size)))
