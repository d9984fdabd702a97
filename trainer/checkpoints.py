"""Checkpoints of the state. They are written in the background and can be restored on any mesh."""

from __future__ import annotations

import os
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pipeline.schema import UserError
from pipeline.storage.disk import one_line
from trainer.files import absolute, as_path, in_store, store_error
from trainer.finite import finite_leaves, first_not_finite
from trainer.processes import say, wait_for_all
from trainer.shapes import shapes_of, shapes_that_differ
from trainer.state import State
from trainer.workdir import CHECKPOINTS_FOLDER

DAMAGED_FOLDER = "damaged_checkpoints"
_ITEM = "default"  # where Orbax keeps the one item of a checkpoint


class NotFiniteError(ValueError):
    """A state holds a number that is not finite; `path` is that of the first such array."""

    def __init__(self, path: str):
        super().__init__(f"{path} is not finite")
        self.path = path


class Checkpoints:
    """The checkpoints of one run, under `<workdir>/checkpoints`."""

    def __init__(self, workdir: str, kept: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, cleanup_tmp_directories=True)
        self._workdir = workdir
        self._directory = absolute(os.path.join(workdir, CHECKPOINTS_FOLDER))
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint; None if there are none."""
        step: int | None = self._manager.latest_step()
        return step

    def check_room(self, state: State) -> None:
        """Checks that a disk has room for one more checkpoint of `state`, whose leaves may be abstract.

        It is called before each write, because a write that fails half-way raises its error in another thread.

        Raises:
            UserError: the disk has too little room.
        """
        if in_store(self._workdir):
            return
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
            NotFiniteError: a number of the state is not finite; nothing is written.
            UserError: the disk has no room for it.
        """
        check_finite(state)
        self.check_room(state)
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore_latest(self, abstract: State) -> tuple[int, State] | None:
        """Returns the step and the state of the latest checkpoint that is good; None if there are no checkpoints.

        Later ones that cannot be read, or hold numbers that are not finite, are named and moved out of the way.

        Raises:
            UserError: no checkpoint is good, or the latest is of another architecture or optimiser.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            check_architecture(self._path(step), abstract.params)
            check_optimizer(self._path(step), abstract.opt_state)
            try:
                state = self._restore(step, abstract)
            except Exception as error:  # a damaged checkpoint raises errors of many types
                if in_store(self._workdir) and store_error(error) is not None:
                    raise
                cause = f"{type(error).__name__}: {one_line(error)[:200]}"
            else:
                return step, state
            say(
                f"warning: checkpoint {self._path(step)} is not good ({cause}); it is moved to "
                f"{os.path.join(self._workdir, DAMAGED_FOLDER)}, and the one before it is used"
            )
            self._move_away(step)
        if steps:
            raise UserError(
                f"{self._directory} holds no good checkpoint; {len(steps)} are in "
                f"{os.path.join(self._workdir, DAMAGED_FOLDER)}; choose another --workdir, or give the same command "
                "again to start from the beginning"
            )
        return None

    def _restore(self, step: int, abstract: State) -> State:
        """Returns the state of `step`, with the shapes and shardings of `abstract`.

        Class vectors were padded for the mesh that they were saved from. The restore is not `strict`, so that rows of
        zeros are added, or padding is removed, where this mesh needs another number of rows.
        """
        state: State = self._manager.restore(step, args=ocp.args.StandardRestore(abstract, strict=False))
        check_finite(state)
        return state

    def _move_away(self, step: int) -> None:
        wait_for_all(f"damaged_{step}")
        if jax.process_index() == 0:
            place = epath.Path(self._workdir, DAMAGED_FOLDER, str(step))
            place.rmtree(missing_ok=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            epath.Path(self._path(step)).rename(place)
        wait_for_all(f"moved_{step}")
        self._manager.reload()

    def _path(self, step: int) -> str:
        return os.path.join(self._directory, str(step))

    def wait(self) -> None:
        """Returns once all checkpoints are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def check_finite(state: State) -> None:
    """Checks that all numbers of `state` are finite.

    Raises:
        NotFiniteError: one is not.
    """
    path = first_not_finite(state, _finite_leaves(state))
    if path is not None:
        raise NotFiniteError(path)


_finite_leaves = jax.jit(finite_leaves)


def check_architecture(path: str, params: Any) -> None:
    """Checks that the checkpoint at `path` has parameters of the names and shapes of `params`, class vectors apart.

    Class vectors are padded for the mesh. A checkpoint whose description cannot be read passes: to read it then fails.

    Args:
        path: the folder of one checkpoint.
        params: nested dict of arrays, which may be abstract.

    Raises:
        UserError: they differ.
    """
    try:
        stored = shapes_of(stored_params(path))
    except Exception:  # a damaged checkpoint raises errors of many types
        return
    expected = shapes_of(params)
    stored.pop("class_vectors", None)
    expected.pop("class_vectors", None)
    if difference := shapes_that_differ(stored, expected):
        raise UserError(
            f"checkpoint {path} is of another architecture ({difference}); use the version of the code that wrote it, "
            "or choose another --workdir"
        )


def check_optimizer(path: str, opt_state: Any) -> None:
    """Checks that the optimiser of the checkpoint at `path` keeps arrays of the same names as `opt_state`.

    A checkpoint whose description cannot be read passes: to read it then fails.

    Raises:
        UserError: they differ.
    """
    try:
        stored = _leaf_names(_stored(path)["opt_state"])
    except Exception:  # a damaged checkpoint raises errors of many types
        return
    if difference := sorted(stored ^ _leaf_names(opt_state)):
        raise UserError(
            f"checkpoint {path} is of another optimiser, or of another version of it (of its state, "
            f"{difference[0]} is only {'there' if difference[0] in stored else 'here'}); use the version of the code "
            "that wrote it, or choose another --workdir: --set init_from= begins there with its parameters"
        )


def _leaf_names(tree: Any) -> set[str]:
    """Returns the paths of the arrays of `tree`; a field of a tuple and a key of a dict are named alike."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path in paths}


def steps_in(folder: str) -> list[int]:
    """Returns the steps of the checkpoints in `folder`, in ascending order; unfinished ones do not count."""
    if not as_path(folder).is_dir():
        return []
    return sorted(int(path.name) for path in ocp.utils.checkpoint_steps_paths(folder) if path.name.isdigit())


def stored_params(path: str) -> Any:
    """Returns the shapes and dtypes of the parameters of the checkpoint at `path`, as a nested dict."""
    return _stored(path)["params"]


def _stored(path: str) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(absolute(path), _ITEM)).tree


def read_params(path: str) -> Any:
    """Returns the parameters of the checkpoint at `path` as a nested dict of NumPy arrays, read by this process alone.

    Raises:
        UserError: they cannot be read, or one is not finite.
    """
    only_this = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="read_params"
    )
    try:
        item = {"params": jax.tree.map(lambda _: 0, stored_params(path))}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=only_this)
        with ocp.Checkpointer(handler, multiprocessing_options=only_this) as reader:
            restore = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
            params = reader.restore(absolute(os.path.join(path, _ITEM)), args=restore)["params"]
    except Exception as error:  # a damaged checkpoint raises errors of many types
        if in_store(path) and store_error(error):
            raise  # the store is at fault
        cause = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise UserError(
            f"checkpoint {path} cannot be read ({cause}); if the run goes on, it was perhaps deleted for a later one: "
            "choose that one"
        ) from None
    finite = np.asarray([np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)])
    not_finite = first_not_finite(params, finite)
    if not_finite is not None:
        raise UserError(f"{not_finite} of checkpoint {path} is not finite; choose an earlier one")
    return params
