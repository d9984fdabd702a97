"""How rows are divided into tiles of equal size, whatever their number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def num_tiles(num_rows: int, size: int) -> int:
    """Returns how many tiles of `size` rows hold all rows."""
    return -(-num_rows // size)


def tile_rows(number: jax.Array, size: int, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns the rows of a tile, int32 [size], and which of them it counts, bool [size].

    Tile 0 ends with the last row, and the others follow each other from the first row on. So tile 0 can share rows with
    the last of them: it does not count these, and what it writes for them is written over. Nothing has to be padded.

    Args:
        number: of the tile, from 0 to `num_tiles(num_rows, size) - 1`; tiles are taken in this order.
        size: rows of a tile, at most `num_rows`.
        num_rows: of all tiles.
    """
    rows = jnp.where(number == 0, num_rows - size, (number - 1) * size) + jnp.arange(size)
    return rows, (number > 0) | (rows >= (num_rows - 1) // size * size)


def add_exponents(largest: jax.Array, total: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the largest logit of each column so far, and the sum of exp(logit - largest), with one more tile.

    Args:
        largest: float32 [B], before this tile.
        total: float32 [B], before this tile.
        logits: float32 [T, B], of this tile.
    """
    new_largest = jnp.maximum(largest, logits.max(axis=0))
    return new_largest, total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[None]).sum(axis=0)


def add_exponents_at_once(largest: jax.Array, total: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns what `add_exponents` does, but reads the logits once, for GPUs, which wait for their memory here.

    Args:
        largest: float32 [B], before this tile.
        total: float32 [B], before this tile.
        logits: float32 [T, B], of this tile.
    """
    nothing = (np.finfo(np.float32).min, jnp.float32(0))
    of_tile = jax.lax.reduce((logits, jnp.ones_like(logits)), nothing, _of_both, (0,))
    joined: tuple[jax.Array, jax.Array] = _of_both((largest, total), of_tile)
    return joined


def _of_both(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the largest logit, and the sum of exp(logit - largest), of two sets of logits from those of each."""
    smaller = jnp.exp(-jnp.abs(one[0] - other[0]))
    total = jnp.where(one[0] >= other[0], one[1] + other[1] * smaller, one[1] * smaller + other[1])
    return jnp.maximum(one[0], other[0]), total


def power_of_two(limit: int) -> int:
    """Returns the greatest power of two up to `limit`, at least 1."""
    return 1 << max(0, limit.bit_length() - 1)
