"""Sending rows between all devices of the mesh, from inside of a function that runs on each of them."""

from __future__ import annotations

from typing import Final

import jax

from trainer.mesh import DATA_AXIS, MODEL_AXIS

DEVICES: Final = (DATA_AXIS, MODEL_AXIS)


def gathered(rows: jax.Array) -> jax.Array:
    """Returns the rows of all devices, in the order of the batch, of which each device then holds a copy."""
    if jax.lax.axis_size(DEVICES) == 1:
        return rows  # XLA would copy them
    of_all: jax.Array = jax.lax.all_gather(rows, DEVICES, tiled=True)
    return of_all


def summed_and_split(rows: jax.Array) -> jax.Array:
    """Returns a device's own rows of the sum over all devices; the opposite of `gathered`."""
    if jax.lax.axis_size(DEVICES) == 1:
        return rows
    own: jax.Array = jax.lax.psum_scatter(rows, DEVICES, tiled=True)
    return own
