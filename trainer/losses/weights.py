"""The weights of the rows of a batch, as their shares of a weighted mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from trainer.losses.collectives import gathered

_LEAST_SUM = 1e-30  # a batch whose weights are all zero has a loss of zero


def shares(weights: jax.Array | None, num_rows: int) -> jax.Array:
    """Returns what each row's loss is multiplied with so that the sum is the mean: float32 [B], or [1] for all rows.

    It runs on each device. The weighted mean is `sum(weight * loss) / sum(weight)` over the whole batch, so only the
    ratios of weights count.

    Args:
        weights: float32 [b], not negative: those of the device's rows, in the order of the batch; None: all are equal.
        num_rows: B, of the whole batch.
    """
    if weights is None:
        return jnp.full(1, 1 / num_rows)
    weights = gathered(weights)
    return weights / jnp.maximum(weights.sum(), _LEAST_SUM)
