"""Checkpoints of the state, written in the background; they open on any mesh."""

from __future__ import annotations

import os
import shutil

import jax
import orbax.checkpoint as ocp

from trainer.configs.base import UserError
from trainer.state import State


class Checkpoints:
    """The checkpoints of one run, under `<workdir>/checkpoints`."""

    def __init__(self, workdir: str, kept: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, enable_async_checkpointing=True)
        self._workdir = workdir
        self._directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def check_room(self, state: State) -> None:
        """Returns when the disk has room for one more checkpoint of `state`, whose leaves may be abstract.

        Raises:
            UserError: it has not. Asked first, since a write that fails half-way is told by threads of its own.
        """
        needed_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free_bytes = shutil.disk_usage(self._workdir).free
        if free_bytes < needed_bytes:
            raise UserError(
                f"--workdir {self._workdir} has {free_bytes / 1e9:.2f} GB free, a checkpoint needs "
                f"{needed_bytes / 1e9:.2f} GB; free some space, or choose another --workdir"
            )

    def save(self, step: int, state: State) -> None:
        """Starts to write `state`; returns once it has been copied.

        Raises:
            UserError: the disk has no room for it.
        """
        self.check_room(state)
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, abstract: State) -> State:
        """Returns the state of `step`, laid out as `abstract` is.

        Class vectors are padded to the mesh they were saved from. Not `strict`: where this mesh pads otherwise, rows of
        zeros are added, or padding is cut off. All other shapes are those of the config, which is the run's own.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract, strict=False))
        except Exception as error:  # what is damaged shows in errors of many kinds
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"checkpoint {self._directory}/{step} cannot be read ({type(error).__name__}: {told}); where it is "
                "damaged, move it away, and the run goes on from the one before it"
            ) from error

    def wait(self) -> None:
        """Returns once all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
