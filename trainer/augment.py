"""Mild random changes of training images, in a jit of their own: fused with the training step they are slow on CPU."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from trainer.configs.base import Augment
from trainer.encoder import Preprocessing

_LUMA = np.asarray([[[[0.299, 0.587, 0.114]]]], np.float32)  # of ITU-R BT.601


def make_augment(
    config: Augment, preprocessing: Preprocessing, seed: int, sharding: NamedSharding
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns augment(uint8 pixels [B, S, S, 3], step) -> normalised float32 of that shape.

    The changes depend only on seed and step, so a resumed run repeats them exactly. Images are not flipped, because
    that changes the meaning of letters and flags.
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
        mean_colour, std_colour = (np.asarray([[[v]]], np.float32) for v in (preprocessing.mean, preprocessing.std))
        return (images - mean_colour) / std_colour

    return jax.jit(augment, in_shardings=(sharding, None), out_shardings=sharding)


def _resampling(log_scale: jax.Array, shift: jax.Array, size: int) -> jax.Array:
    """Returns matrices float32 [B, S, S] that resample a line of S pixels, one matrix per image.

    Pixel i of the result reads the line at `(i - centre) * exp(log_scale) + centre + shift * S`, by linear
    interpolation; positions beyond the ends read the border.

    Args:
        log_scale: float32 [B]; above 0 the image shrinks.
        shift: float32 [B], as a share of the side; above 0 the content moves towards the first pixel.
        size: S.
    """
    centre = (size - 1) / 2
    pixels = jnp.arange(size, dtype=jnp.float32)
    wanted = (pixels - centre)[None, :] * jnp.exp(log_scale)[:, None] + centre + shift[:, None] * size
    wanted = jnp.clip(wanted, 0, size - 1)
    return jnp.maximum(0, 1 - jnp.abs(wanted[:, :, None] - pixels[None, None, :]))
