"""The loop over the steps of a run, with its logs and checkpoints."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trainer.augment import make_augment
from trainer.checkpoints import Checkpoints
from trainer.data import batches
from trainer.logs import Logs
from trainer.mesh import batch_sharding
from trainer.run import Run
from trainer.state import State
from trainer.train_step import make_train_step


def take_steps(run: Run, state: State, first_step: int, checkpoints: Checkpoints) -> State:
    """Returns the state after the last step; logs and checkpoints are written on the way, and closed."""
    experiment, corpus = run.experiment, run.corpus
    iterator = batches(corpus, experiment, run.example, jax.process_index(), jax.process_count(), first_step)
    rows = batch_sharding(run.devices)
    augment = make_augment(experiment.augment, run.preprocessing, experiment.seed, rows)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    train_step = make_train_step(experiment, run.models, run.optimizer, run.devices, shardings, corpus.num_classes)
    used = ["pixels"] + ["class_ids"] * experiment.classifies
    used += ["tokens", "text_groups", "image_groups"] * experiment.contrasts
    logs = Logs(run.workdir, first_step=first_step, steps=experiment.steps, batch_size=experiment.data.batch_size)
    try:
        for step in range(first_step + 1, experiment.steps + 1):
            local = next(iterator)
            batch = {name: jax.make_array_from_process_local_data(rows, local[name]) for name in used}
            batch["images"] = augment(batch.pop("pixels"), jnp.int32(step))
            state, metrics = train_step(state, batch)
            due = step % experiment.checkpoint_every == 0 or step == experiment.steps
            if due or step % experiment.log_every == 0:
                # This raises if a metric is not finite, so no checkpoint of such a state is written.
                logs.write(step, {name: float(value) for name, value in metrics.items()})
            if due:
                checkpoints.save(step, state)
    except BaseException:
        if not jax.distributed.is_initialized():  # else this process would wait for others, which wait for it
            _close(iterator, logs, checkpoints)
        raise
    _close(iterator, logs, checkpoints)
    return state


def _close(iterator: Any, logs: Logs, checkpoints: Checkpoints) -> None:
    iterator.close()
    logs.close()
    checkpoints.wait()
    checkpoints.close()
