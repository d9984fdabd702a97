"""The part of the training state that belongs to some of the classes: taken out, updated, and put back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pipeline.schema import UserError
from trainer.losses.collectives import DEVICES
from trainer.losses.sampling import NO_CLASS
from trainer.mesh import is_class_vectors


def taken(tree: Any, class_ids: jax.Array, mesh: Mesh) -> Any:
    """Returns `tree` with the rows of `class_ids` alone in its class vectors and their moments.

    Args:
        tree: the state; its class vectors are sharded by rows over all devices.
        class_ids: int32, sharded over all devices, each on the device that has its row; a row of NO_CLASS is arbitrary.
        mesh: the devices.
    """

    def on_device(vectors: jax.Array, class_ids: jax.Array) -> jax.Array:
        return vectors[_local_rows(vectors, class_ids)]  # of NO_CLASS any row will do

    take = _on_devices(mesh, on_device, 2)
    return _mapped(lambda vectors: take(vectors, class_ids), tree)


def put_back(tree: Any, part: Any, class_ids: jax.Array, mesh: Mesh) -> Any:
    """Returns `part`, but with whole class vectors and moments: those of `tree`, where `part` replaces some rows."""

    def on_device(vectors: jax.Array, rows: jax.Array, class_ids: jax.Array) -> jax.Array:
        places = jnp.where(class_ids == NO_CLASS, len(vectors), _local_rows(vectors, class_ids))
        return vectors.at[places].set(rows, mode="drop")

    put = _on_devices(mesh, on_device, 3)
    return _mapped(lambda rows, vectors: put(vectors, rows, class_ids), part, tree)


def check_rows_are_independent(optimizer: optax.GradientTransformation) -> None:
    """Checks that the optimiser updates each class vector by its own gradient and moments alone.

    Raises:
        UserError: it does not, so it cannot update some of them and leave the others as they are.
    """
    vectors = jnp.arange(6.0).reshape(2, 3)
    # Too small to be clipped by the norm of all gradients together, which the class vectors share with the towers.
    gradients = 1e-6 * jnp.cos(vectors)

    @jax.jit
    def second_update(vectors: jax.Array, gradients: jax.Array) -> jax.Array:
        params = {"class_vectors": vectors}
        state = optimizer.init(params)
        for _ in range(2):  # the first can be at a learning rate of zero
            updates, state = optimizer.update({"class_vectors": gradients}, state, params)
        of_vectors: jax.Array = updates["class_vectors"]
        return of_vectors

    together = second_update(vectors, gradients)
    alone = jnp.concatenate([second_update(vectors[i : i + 1], gradients[i : i + 1]) for i in range(2)])
    if not np.allclose(together, alone, rtol=1e-3, atol=0):
        raise UserError(
            "loss.sample_rate below 1 needs an optimiser that updates each class vector by its own gradient alone, "
            "such as AdamW; use one for the class vectors, or set --set loss.sample_rate=1"
        )


def _local_rows(vectors: jax.Array, class_ids: jax.Array) -> jax.Array:
    return class_ids - jax.lax.axis_index(DEVICES) * len(vectors)


def _on_devices(mesh: Mesh, function: Any, num_arguments: int) -> Any:
    rows = P(DEVICES)
    return jax.shard_map(function, mesh=mesh, in_specs=(rows,) * num_arguments, out_specs=rows)


def _mapped(function: Any, tree: Any, *others: Any) -> Any:
    def of(path: Any, leaf: Any, *rest: Any) -> Any:
        return function(leaf, *rest) if is_class_vectors(path) else leaf

    return jax.tree_util.tree_map_with_path(of, tree, *others)
