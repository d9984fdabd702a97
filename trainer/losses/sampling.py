"""A random sample of the classes for each step, together with the classes of the batch: the same on every mesh."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.losses.collectives import DEVICES, gathered

NO_CLASS = -1

Draw = Callable[[jax.Array, jax.Array], jax.Array]


def make_draw(mesh: Mesh, *, num_classes: int, num_rows: int, rate: float, num_blocks: int) -> Draw:
    """Returns draw(key, labels) -> class ids, int32, sharded over all devices: each class at most once, else NO_CLASS.

    Every label is among them, whatever the labels: the device that holds it keeps as many places for labels as the
    batch has rows. The rest is drawn by block, so that it does not depend on the mesh: of each block of rows, `rate`
    times its rows, rounded up. The block is turned by a random number of rows and divided into as many stretches of
    almost equal length as classes are drawn, and each stretch gives one row at random. So every row has the same
    chance, and none comes twice. `labels` are int32 [B], sharded over all devices, and B is a multiple of their number.

    Args:
        mesh: its size divides `num_blocks`.
        num_classes: classes; rows from there on are padding and not drawn.
        num_rows: of the class vectors, a multiple of `num_blocks`.
        rate: share of the rows to draw, above 0.
        num_blocks: how many parts the rows are divided into.
    """
    block_rows = num_rows // num_blocks
    num_drawn = min(block_rows, math.ceil(rate * block_rows))
    bounds = (np.arange(num_drawn + 1) * block_rows // num_drawn).astype(np.int32)
    starts, lengths = bounds[:-1], np.diff(bounds)

    def drawn_from(block: jax.Array, key: jax.Array) -> jax.Array:
        of_turn, of_rows = jax.random.split(jax.random.fold_in(key, block))
        turn = jax.random.randint(of_turn, (), 0, block_rows)
        rows = starts + jax.random.randint(of_rows, (num_drawn,), 0, lengths)
        return block * block_rows + (rows + turn) % block_rows

    def on_device(key: jax.Array, labels: jax.Array) -> jax.Array:
        blocks = jax.lax.axis_index(DEVICES) * (num_blocks // mesh.size) + jnp.arange(num_blocks // mesh.size)
        drawn = jax.vmap(drawn_from, in_axes=(0, None))(blocks, key).reshape(-1)
        labels = jnp.sort(gathered(labels))
        nearest = labels[jnp.searchsorted(labels, drawn)]  # JAX takes the last one where the place is beyond
        drawn = jnp.where((nearest == drawn) | (drawn >= num_classes), NO_CLASS, drawn)
        first = blocks[0] * block_rows
        here = (first <= labels) & (labels < first + len(blocks) * block_rows)
        again = jnp.concatenate([jnp.zeros(1, bool), labels[1:] == labels[:-1]])
        return jnp.concatenate([drawn, jnp.where(here & ~again, labels, NO_CLASS)])

    rows = P(DEVICES)
    draw: Draw = jax.shard_map(on_device, mesh=mesh, in_specs=(P(), rows), out_specs=rows)
    return draw
