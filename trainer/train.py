"""Trains an encoder: `python -m trainer.train --config NAME --data DIR --workdir DIR --mesh AxB`."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import jax
import tyro
from absl import logging as absl_logging

from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors
from trainer.checkpoints import Checkpoints
from trainer.compiled import keeping_compiled
from trainer.configs.base import Experiment, check, fields_of, override
from trainer.configs.experiments import EXPERIMENTS, get_experiment
from trainer.data import open_corpus
from trainer.files import in_store, normalised, reporting_store_errors
from trainer.loop import take_steps
from trainer.mesh import check_mesh, described, make_mesh, parse_mesh, prepare_devices
from trainer.placement import placement
from trainer.processes import join_others, leave, say, wait_for_all
from trainer.profiling import parse_profile_steps
from trainer.run import Run, make_run, new_state
from trainer.termination import EXIT_CODE, Terminated
from trainer.workdir import ENCODER_FOLDER, check_workdir, is_finished, only_run_in, write_config
from trainer.write_encoder import write_encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Trains an encoder. Called again with the same options, a stopped run resumes from its last checkpoint."""

    config: str
    """Name of the experiment."""
    data: str
    """Directory of the set, or its address on gs://."""
    workdir: str
    """Directory for checkpoints, logs and the encoder, or its address on gs://; created if it is missing."""
    mesh: str = "1x1"
    """Devices of all processes, data x model. Without an accelerator they are simulated on the CPU."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field of the experiment to change, e.g. steps=100; can be repeated."""
    profile_steps: str | None = None
    """Steps to write a trace of, for TensorBoard's profile plugin: A-B, both included, e.g. 10-15."""
    distributed: bool = False
    """Join the other processes of a TPU pod, Slurm or Open MPI job first (jax.distributed); all share the workdir."""
    coordinator: str | None = None
    """HOST:PORT of process 0, to start the processes by hand: their commands differ only in --process-id."""
    num_processes: int | None = None
    """With --coordinator: the number of processes."""
    process_id: int | None = None
    """With --coordinator: the number of this process, counted from 0."""


def train(experiment: Experiment, *, data: str, workdir: str, mesh: str, profile_steps: str | None = None) -> str:
    """Trains an encoder and returns its directory. A run that is finished is not repeated.

    Args:
        experiment: what to train.
        data: directory of the set, or its address on `gs://`.
        workdir: where checkpoints, logs and the encoder go: a directory, or its address on `gs://`.
        mesh: `AxB`, data x model.
        profile_steps: `A-B`, the steps that a trace is written of; None: none.

    Raises:
        UserError: experiment, data, workdir and mesh do not fit each other, another run works in `workdir`, or a number
            is not finite.
        Terminated: SIGTERM ended the run; its state is saved.
    """
    check(experiment)
    workdir = normalised(workdir)
    check_workdir(workdir)
    profiled = parse_profile_steps(profile_steps, experiment.steps) if profile_steps is not None else range(0)
    num_data, num_model = check_mesh(experiment, mesh)
    corpus = open_corpus(data, experiment)
    resolved = {"config": dataclasses.asdict(experiment), "data": corpus.fingerprint}
    with only_run_in(workdir):
        encoder_path = os.path.join(workdir, ENCODER_FOLDER)
        if is_finished(workdir, resolved):
            say(f"{encoder_path} is already trained with this config on this data; nothing to do")
            return encoder_path
        devices = make_mesh(num_data, num_model)
        say(described(devices))
        with keeping_compiled(workdir):
            _train(make_run(experiment, corpus, devices, workdir), resolved, profiled)
        if jax.process_index() == 0:
            encoder_hash = write_encoder(encoder_path, workdir, experiment.steps)
            say(f"wrote {encoder_path} (hash {encoder_hash[:12]})")
        wait_for_all("encoder")
    return encoder_path


def _train(run: Run, resolved: dict[str, Any], profiled: range) -> None:
    """Takes the steps of the run that are missing. The config `resolved` is written before the first."""
    say(placement(run.abstract))
    checkpoints = Checkpoints(run.workdir, run.experiment.checkpoints_kept)
    checkpoints.check_room(run.abstract)
    restored = checkpoints.restore_latest(run.abstract)
    first_step, state = restored or (0, new_state(run))
    if first_step:
        say(f"resumed {run.workdir} at step {first_step}")
    write_config(run.workdir, resolved, run.corpus.entity_ids, [name for name, _ in run.corpus.texts], first_step)
    take_steps(run, state, first_step, checkpoints, profiled)


def _description(arguments: Sequence[str]) -> str:
    """Returns the part of `--help` on fields, with the values of the config that the arguments name."""
    named = [after for option, after in itertools.pairwise(arguments) if option == "--config" and after in EXPERIMENTS]
    name = named[-1] if named else "multitask_demo"
    fields = "\n".join(
        f"  {field}={value}: {meaning.text}" for field, value, meaning in fields_of(get_experiment(name))
    )
    return f"Configs: {', '.join(EXPERIMENTS)}.\n\nFields for --set, with the values of {name}:\n{fields}"


def main() -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    options = tyro.cli(Options, prog="python -m trainer.train", description=_description(sys.argv))
    try:
        experiment = override(get_experiment(options.config), options.set)
        num_data, num_model = parse_mesh(options.mesh)
        prepare_devices(
            max(1, num_data * num_model // (options.num_processes or 1)), deterministic=experiment.deterministic
        )
        join_others(
            distributed=options.distributed,
            coordinator=options.coordinator,
            num_processes=options.num_processes,
            process_id=options.process_id,
        )
        with (
            reporting_disk_errors(options.workdir, option="--workdir"),
            reporting_store_errors(options.workdir, option="--workdir"),
        ):
            train(
                experiment,
                data=options.data,
                workdir=options.workdir,
                mesh=options.mesh,
                profile_steps=options.profile_steps,
            )
    except Terminated as ended:
        say(str(ended))
        leave(EXIT_CODE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        leave(2, at_once=in_store(options.workdir))
    except Exception:
        traceback.print_exc()
        leave(1)


if __name__ == "__main__":
    main()
