"""Symmetric InfoNCE between images and texts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_MASKED = -1e30


def contrastive_loss(images: jax.Array, texts: jax.Array, scale: jax.Array, groups: jax.Array) -> jax.Array:
    """Returns the mean of the image-to-text and the text-to-image cross-entropy over the whole batch.

    Args:
        images: [B, D], L2-normalised.
        texts: [B, D], L2-normalised; row i belongs to image i.
        scale: scalar, logits are `scale * cosine`.
        groups: int [B]; two rows of one group (one entity, or one text) are no negatives of each other.
    """
    own = jnp.eye(len(groups), dtype=bool)
    same = (groups[:, None] == groups[None, :]) & ~own
    logits = jnp.where(same, _MASKED, scale * (images @ texts.T))
    right = scale * (images * texts).sum(axis=1)
    image_to_text = jax.nn.logsumexp(logits, axis=1) - right
    text_to_image = jax.nn.logsumexp(logits, axis=0) - right
    return 0.5 * (image_to_text.mean() + text_to_image.mean())
