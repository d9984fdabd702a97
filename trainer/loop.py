"""The loop over the steps of a run, with its logs and checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from trainer.augment import make_augment
from trainer.checkpoints import Checkpoints, NotFiniteError
from trainer.data import ReadExample, batches
from trainer.flops import step_flops
from trainer.held_out import HeldOut
from trainer.logs import Logs
from trainer.mesh import batch_sharding
from trainer.peak import peak_flops
from trainer.processes import say
from trainer.profiling import Profile
from trainer.recent_steps import RecentSteps
from trainer.run import Run
from trainer.skipped import SkippedRecords
from trainer.state import State, make_models
from trainer.termination import Terminated, Termination
from trainer.train_step import make_train_step


def take_steps(run: Run, state: State, first_step: int, checkpoints: Checkpoints, profiled: range) -> None:
    """Takes the steps after `first_step`; the last one has a checkpoint. Logs and checkpoints are closed at the end.

    Args:
        run: the parts of the run.
        state: that of `first_step`.
        first_step: the step that the run goes on from, or 0.
        checkpoints: those of the run.
        profiled: the steps that a trace is written of.

    Raises:
        UserError: a number is not finite, or too many records are damaged.
        Terminated: SIGTERM ended the run; its state is saved.
    """
    experiment = run.experiment
    records = run.corpus.records
    read = ReadExample(records, run.example, experiment.data.num_skippable)
    iterator = batches(experiment, read, jax.process_index(), jax.process_count(), first_step)
    rows = batch_sharding(run.devices)
    augment = make_augment(experiment.augment, run.preprocessing, experiment.seed, rows)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    models = make_models(experiment, run.devices)
    say(f"attention of the {models.attention}")
    train_step = make_train_step(experiment, models, run.optimizer, run.devices, shardings, run.corpus.num_classes)
    used = ["pixels"] + ["class_ids"] * experiment.classifies
    used += ["tokens", "text_groups", "image_groups"] * experiment.contrasts
    used += ["weights"] * bool(experiment.data.weight_column)
    peak_steps = peak_flops(run.devices, experiment.dtype) / step_flops(experiment, run.corpus.num_classes)
    logs = Logs(
        run.workdir,
        first_step=first_step,
        steps=experiment.steps,
        batch_size=experiment.data.batch_size,
        peak_steps=peak_steps,
    )
    recent = RecentSteps(run.workdir, records, run.abstract.params)
    arrays = [name for name in used if name != "pixels"]
    held_out = HeldOut(run, read, arrays) if experiment.evaluate_every else None
    skipped = SkippedRecords(run.workdir, read, experiment.data.num_skippable)

    def save(step: int, state: State) -> None:
        try:
            checkpoints.save(step, state)
        except NotFiniteError as error:
            raise recent.stopped(step, str(error)) from None

    with (
        _closing(iterator, logs, checkpoints),
        Termination() as termination,
        Profile(run.workdir, profiled, first_step) as profile,
    ):
        for step in range(first_step + 1, experiment.steps + 1):
            profile.begin(step, state)
            with logs.waiting():
                local = None if termination.is_due(step) else _next(iterator, termination)
            if local is None:
                if step - 1 > (checkpoints.latest_step() or 0):
                    recent.looked_at()
                    save(step - 1, state)
                raise Terminated(step - 1)
            skipped.note(local["drawn"], local["read"])
            batch = {name: jax.make_array_from_process_local_data(rows, local[name]) for name in used}
            batch["images"] = augment(batch.pop("pixels"), jnp.int32(step))
            state, metrics = train_step(state, batch)
            recent.add(step, metrics, local["read"])
            due = step % experiment.checkpoint_every == 0 or step == experiment.steps
            measures = held_out is not None and (step % experiment.evaluate_every == 0 or step == experiment.steps)
            if due or measures or step % experiment.log_every == 0:
                # This raises if a number is not finite, so no checkpoint of such a state is written.
                written = recent.looked_at()
                if experiment.data.num_skippable:
                    written["skipped_records"] = skipped.count()
                if held_out is not None and measures:
                    written |= held_out.measured(state.params)
                logs.write(step, written)
            if due:
                save(step, state)
            profile.end(step, state)


def _next(iterator: Iterator[dict[str, Any]], termination: Termination) -> dict[str, Any] | None:
    """Returns the next batch; None where SIGTERM ended the processes that read it."""
    try:
        return next(iterator)
    except Exception:
        if termination.is_signalled:
            return None
        raise


@contextlib.contextmanager
def _closing(iterator: Any, logs: Logs, checkpoints: Checkpoints) -> Iterator[None]:
    """Closes all at the end, once the checkpoints are on disk."""
    try:
        yield
    except Terminated:
        pass_on = True
        raise
    except BaseException:
        # Else this process would wait for others, which wait for it.
        pass_on = not jax.distributed.is_initialized()
        raise
    else:
        pass_on = True
    finally:
        if pass_on:
            iterator.close()
            logs.close()
            checkpoints.wait()
            checkpoints.close()
