"""Checkpoints of the state. They are written in the background and can be restored on any mesh."""

from __future__ import annotations

import os
import shutil

import jax
import orbax.checkpoint as ocp

from pipeline.schema import UserError
from pipeline.storage.disk import one_line
from trainer.state import State
from trainer.workdir import CHECKPOINTS_FOLDER


class Checkpoints:
    """The checkpoints of one run, under `<workdir>/checkpoints`."""

    def __init__(self, workdir: str, kept: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, enable_async_checkpointing=True)
        self._workdir = workdir
        self._directory = os.path.abspath(os.path.join(workdir, CHECKPOINTS_FOLDER))
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint; None if there are none."""
        step: int | None = self._manager.latest_step()
        return step

    def check_room(self, state: State) -> None:
        """Checks that the disk has room for one more checkpoint of `state`, whose leaves may be abstract.

        It is called before each write, because a write that fails half-way raises its error in another thread.

        Raises:
            UserError: the disk has too little room.
        """
        needed_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free_bytes = shutil.disk_usage(self._workdir).free
        if free_bytes < needed_bytes:
            raise UserError(
                f"--workdir {self._workdir} has {free_bytes / 1e9:.2f} GB free, but a checkpoint needs "
                f"{needed_bytes / 1e9:.2f} GB; free some space, or choose another --workdir"
            )

    def save(self, step: int, state: State) -> None:
        """Starts to write `state`, and returns once it has been copied.

        Raises:
            UserError: the disk has no room for it.
        """
        self.check_room(state)
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, abstract: State) -> State:
        """Returns the state of `step`, with the shapes and shardings of `abstract`.

        Class vectors were padded for the mesh that they were saved from. The restore is not `strict`, so that rows of
        zeros are added, or padding is removed, where this mesh needs another number of rows. All other shapes follow
        from the config, which does not change within a run.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        try:
            state: State = self._manager.restore(step, args=ocp.args.StandardRestore(abstract, strict=False))
        except Exception as error:  # a damaged checkpoint raises errors of many types
            cause = f"{type(error).__name__}: {one_line(error)[:200]}"
            raise UserError(
                f"checkpoint {self._directory}/{step} cannot be read ({cause}); "
                "if it is damaged, move it away: the run then resumes from the checkpoint before it"
            ) from error
        return state

    def wait(self) -> None:
        """Returns once all checkpoints are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
