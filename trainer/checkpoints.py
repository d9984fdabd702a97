"""Checkpoints of state and data position, written in the background; they open on any mesh."""

from __future__ import annotations

import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from trainer.configs.base import UserError
from trainer.mesh import is_class_vectors, replicated
from trainer.state import State


class Checkpoints:
    """The checkpoints of one run, under `<workdir>/checkpoints`."""

    def __init__(self, workdir: str, kept: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, enable_async_checkpointing=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._workdir = workdir
        directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
        self._manager = ocp.CheckpointManager(directory, item_handlers=handlers, options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def check_room(self, state: State) -> None:
        """Returns when the disk has room for one more checkpoint.

        Raises:
            UserError: it has not. Asked first, since a write that fails half-way is told by threads of its own.
        """
        needed_bytes = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        )
        free_bytes = shutil.disk_usage(self._workdir).free
        if free_bytes < needed_bytes:
            raise UserError(
                f"--workdir {self._workdir} has {free_bytes / 1e9:.2f} GB free, a checkpoint needs "
                f"{needed_bytes / 1e9:.2f} GB; free some space, or choose another --workdir"
            )

    def save(self, step: int, state: State, position: dict[str, Any]) -> None:
        """Starts to write `state` and the data iterator's state; returns once the state has been copied.

        Raises:
            UserError: the disk has no room for it.
        """
        self.check_room(state)
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position))
        self._manager.save(step, args=arguments)

    def restore(self, step: int, target: State, shardings: Any, mesh: Mesh) -> tuple[State, dict[str, Any]]:
        """Returns state and data position of `step`, laid out as `target` is.

        Class vectors are padded to the mesh they were saved from: where this mesh pads otherwise, padding is cut off
        or added.
        """
        rows = self._saved_rows(step)

        def wanted(path: Any, leaf: jax.Array, sharding: Any) -> jax.ShapeDtypeStruct:
            if is_class_vectors(path) and rows != leaf.shape[0]:
                return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=replicated(mesh))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        abstract = jax.tree_util.tree_map_with_path(wanted, target, shardings)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=arguments)

        def fit(path: Any, leaf: jax.Array, like: jax.Array, sharding: Any) -> jax.Array:
            if leaf.shape == like.shape or not is_class_vectors(path):
                return leaf
            missing = max(0, like.shape[0] - leaf.shape[0])
            return jax.device_put(jnp.pad(leaf, ((0, missing), (0, 0)))[: like.shape[0]], sharding)

        return jax.tree_util.tree_map_with_path(fit, restored.state, target, shardings), restored.data

    def _saved_rows(self, step: int) -> int | None:
        vectors = self._manager.item_metadata(step)["state"]["params"].get("class_vectors")
        return None if vectors is None else vectors.shape[0]

    def wait(self) -> None:
        """Returns once all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
