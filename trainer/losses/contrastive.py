"""Symmetric InfoNCE between images and texts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_MASKED = -1e30


def contrastive_loss(
    images: jax.Array, texts: jax.Array, scale: jax.Array, image_groups: jax.Array, text_groups: jax.Array
) -> jax.Array:
    """Returns the mean of the image-to-text and the text-to-image cross-entropy over the whole batch.

    Args:
        images: float32 [B, D], L2-normalised.
        texts: float32 [B, D], L2-normalised; row i belongs to image i.
        scale: float32 [], logits are `scale * cosine`.
        image_groups: int32 [B, G], the groups (entities, or texts) of each image, padded with -1. An image and another
            row's text that is of one of its groups do not count as negatives of each other, in either direction.
        text_groups: int32 [B], the group of each text; not negative.

    Returns:
        float32 [], in nats.
    """
    own = jnp.eye(len(text_groups), dtype=bool)
    same = jnp.zeros_like(own)
    for groups in image_groups.T:
        same |= groups[:, None] == text_groups[None, :]
    # On accelerators the default precision would round the factors to bfloat16 or TF32.
    cosines = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    logits = jnp.where(same & ~own, _MASKED, scale * cosines)
    right = jnp.where(own, logits, 0).sum(axis=1)  # not a gather, which would move the shards of the logits
    image_to_text = jax.nn.logsumexp(logits, axis=1) - right
    text_to_image = jax.nn.logsumexp(logits, axis=0) - right
    return 0.5 * (image_to_text.mean() + text_to_image.mean())
