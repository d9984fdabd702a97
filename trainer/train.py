"""Trains an encoder: `python -m trainer.train --config NAME --data DIR --workdir DIR --mesh AxB`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tokenizers
import tyro
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors, write_whole
from trainer.augment import make_augment
from trainer.checkpoints import Checkpoints
from trainer.configs.base import Experiment, check, fields_of, override
from trainer.configs.experiments import EXPERIMENTS, get_experiment
from trainer.data import Corpus, Example, batches, first_images, make_example, make_tokenizer, open_corpus
from trainer.encoder import Classifier, Preprocessing, is_whole
from trainer.encoder.write import save_encoder
from trainer.logs import Logs
from trainer.mesh import batch_sharding, check_batch, described, make_mesh, parse_mesh, prepare_devices
from trainer.optimizer import make_optimizer
from trainer.state import Models, State, abstract_state, init_state, make_models
from trainer.train_step import make_train_step

_INIT_IMAGES = 256  # images over which the initial parameters are scaled
_PATIENCE_SEC = 24 * 3600  # how long processes wait for the one that trains the tokenizer or writes the encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Trains an encoder. Called again with the same options, a stopped run resumes from its last checkpoint."""

    config: str
    """Name of the experiment."""
    data: str
    """Directory of the set."""
    workdir: str
    """Directory for checkpoints, logs and the encoder; created if it is missing."""
    mesh: str = "1x1"
    """Devices of all processes, data x model. Without an accelerator they are simulated on the CPU."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field of the experiment to change, e.g. steps=100; can be repeated."""
    distributed: bool = False
    """Join the other processes of a TPU pod, Slurm or Open MPI job first (jax.distributed); all share the workdir."""
    coordinator: str | None = None
    """HOST:PORT of process 0, to start the processes by hand: their commands differ only in --process-id."""
    num_processes: int | None = None
    """With --coordinator: the number of processes."""
    process_id: int | None = None
    """With --coordinator: the number of this process, counted from 0."""


def train(experiment: Experiment, *, data: str, workdir: str, mesh: str) -> str:
    """Trains an encoder and returns its directory. A run that is finished is not repeated.

    Args:
        experiment: what to train.
        data: directory of the set.
        workdir: where checkpoints, logs and the encoder go.
        mesh: `AxB`, data x model.

    Raises:
        UserError: experiment, data, workdir and mesh do not fit each other, or the loss is not finite.
    """
    check(experiment)
    num_data, num_model = parse_mesh(mesh)
    check_batch(experiment.data.batch_size, num_data, num_model)
    corpus = open_corpus(data, experiment)
    resolved = {"config": dataclasses.asdict(experiment), "data": corpus.fingerprint}
    encoder_path = os.path.join(workdir, "encoder")
    if _is_finished(workdir, resolved):
        _say(f"{encoder_path} is already trained with this config on this data; nothing to do")
        return encoder_path
    devices = make_mesh(num_data, num_model)
    _say(described(devices))

    run = _make_run(experiment, corpus, devices, workdir)
    _write_config(workdir, resolved)
    checkpoints = Checkpoints(workdir, experiment.checkpoints_kept)
    checkpoints.check_room(run.abstract)
    first_step = checkpoints.latest_step() or 0
    if first_step:
        state = checkpoints.restore(first_step, run.abstract)
        _say(f"resumed {workdir} at step {first_step}")
    else:
        images = first_images(corpus, run.example, min(_INIT_IMAGES, corpus.image_set.num_records))
        state = init_state(experiment, run.models, run.optimizer, devices, corpus.num_classes, images)
    state = _take_steps(run, state, first_step, workdir, checkpoints)
    encoder_hash = _save(encoder_path, run, state, resolved)
    _say(f"wrote {encoder_path} (hash {encoder_hash[:12]})")
    _wait_for_all("encoder")
    return encoder_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """The parts of one run, made from its experiment, data and mesh."""

    experiment: Experiment
    corpus: Corpus
    devices: Mesh
    preprocessing: Preprocessing
    tokenizer: tokenizers.Tokenizer | None
    example: Example
    models: Models
    optimizer: optax.GradientTransformation
    abstract: State  # shapes and shardings of the state


def _make_run(experiment: Experiment, corpus: Corpus, devices: Mesh, workdir: str) -> _Run:
    preprocessing = Preprocessing(image_size_px=experiment.image.image_size_px, antialias=experiment.image.antialias)
    tokenizer = (
        _tokenizer(corpus, experiment, os.path.join(workdir, "tokenizer.json")) if experiment.contrasts else None
    )
    models = make_models(experiment)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    return _Run(
        experiment=experiment,
        corpus=corpus,
        devices=devices,
        preprocessing=preprocessing,
        tokenizer=tokenizer,
        example=make_example(corpus, experiment, preprocessing, tokenizer),
        models=models,
        optimizer=optimizer,
        abstract=abstract_state(experiment, models, optimizer, devices, corpus.num_classes),
    )


def _take_steps(run: _Run, state: State, first_step: int, workdir: str, checkpoints: Checkpoints) -> State:
    """Returns the state after the last step; logs and checkpoints are written on the way, and closed."""
    experiment, corpus = run.experiment, run.corpus
    iterator = batches(corpus, experiment, run.example, jax.process_index(), jax.process_count(), first_step)
    rows = batch_sharding(run.devices)
    augment = make_augment(experiment.augment, run.preprocessing, experiment.seed, rows)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    train_step = make_train_step(experiment, run.models, run.optimizer, run.devices, shardings, corpus.num_classes)
    used = ["pixels"] + ["class_ids"] * experiment.classifies
    used += ["tokens", "text_groups", "image_groups"] * experiment.contrasts
    logs = Logs(workdir, first_step=first_step, steps=experiment.steps, batch_size=experiment.data.batch_size)
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


def _wait_for_all(name: str) -> None:
    """Waits until all processes have called this. Without it, collectives would give up after some minutes."""
    if jax.process_count() > 1:
        ocp.multihost.sync_global_processes(name, timeout=_PATIENCE_SEC, processes=set(range(jax.process_count())))


def _say(text: str) -> None:
    """Prints a line, in process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _tokenizer(corpus: Corpus, experiment: Experiment, path: str) -> tokenizers.Tokenizer:
    """Returns the run's tokenizer, which process 0 trains once and keeps at `path`."""
    if jax.process_index() == 0 and not os.path.exists(path):
        write_whole(path, make_tokenizer(corpus, experiment).to_str(pretty=True).encode())
    _wait_for_all("tokenizer")
    return tokenizers.Tokenizer.from_file(path)


def _is_finished(workdir: str, resolved: dict[str, Any]) -> bool:
    """Returns whether the run's encoder is complete.

    Raises:
        UserError: `workdir` holds another run.
    """
    path = os.path.join(workdir, "config.json")
    resolved = json.loads(json.dumps(resolved))
    if not os.path.exists(path):
        left = os.path.join(workdir, "checkpoints")
        if os.path.isdir(left) and os.listdir(left):
            raise UserError(
                f"{left} belongs to a run whose config.json is missing; put it back, or choose another --workdir"
            )
        if jax.process_index() == 0:
            # A start that failed can have left its tokenizer.
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(workdir, "tokenizer.json"))
        os.makedirs(workdir, exist_ok=True)
        return False
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    if before["data"] != resolved["data"]:
        raise UserError(f"--workdir {workdir} holds a run on other data; choose another one, or delete it")
    old_config, new_config = _what_is_learned(before["config"]), _what_is_learned(resolved["config"])
    if old_config != new_config:
        name, old, new = _first_difference(old_config, new_config)
        raise UserError(
            f"--workdir {workdir} holds a run with {name}={old}, but this run has {name}={new}; choose another one, "
            "or delete it"
        )
    return is_whole(os.path.join(workdir, "encoder"))


def _what_is_learned(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config without the fields that do not change what is learned: reading, memory, logs, checkpoints."""
    others = {"log_every", "checkpoint_every", "checkpoints_kept", "remat"}
    of_parts = {"data": {"workers", "threads", "prefetch"}, "loss": {"tile_classes"}}
    kept = {name: value for name, value in config.items() if name not in others}
    for part, fields in of_parts.items():
        kept[part] = {name: value for name, value in config[part].items() if name not in fields}
    return kept


def _write_config(workdir: str, resolved: dict[str, Any]) -> None:
    """Writes the config of a new run, once its options have been checked."""
    path = os.path.join(workdir, "config.json")
    if jax.process_index() == 0 and not os.path.exists(path):
        write_whole(path, json.dumps(resolved, indent=1).encode())


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before != after:
            if isinstance(before, dict) and isinstance(after, dict):
                return _first_difference(before, after, f"{prefix}{name}.")
            return prefix + name, before, after
    raise ValueError("no difference")


def _save(path: str, run: _Run, state: State, resolved: dict[str, Any]) -> str:
    """Writes the encoder, in process 0, and returns its hash; in other processes, returns an empty text."""
    params = _on_host(state.params)
    if jax.process_index() != 0:
        return ""
    classifier = None
    if run.experiment.classifies:
        classifier = Classifier(
            weights=params["class_vectors"][: run.corpus.num_classes],
            entity_ids=run.corpus.entity_ids,
            scale=float(np.exp(params["log_class_scale"])),
        )
    image, text = run.models.image, run.models.text
    return save_encoder(
        path,
        image_function=lambda p, images: jnp.asarray(image.apply({"params": p}, images)),
        image_params=params["image"],
        preprocessing=run.preprocessing,
        text_function=None if text is None else lambda p, tokens: jnp.asarray(text.apply({"params": p}, tokens)),
        text_params=params.get("text"),
        tokenizer=run.tokenizer,
        context_length=run.experiment.text.context_length if text is not None else None,
        classifier=classifier,
        provenance={**resolved, "packages": {name: version(name) for name in ("jax", "flax", "optax")}},
    )


def _on_host(params: Any) -> Any:
    if jax.process_count() == 1:
        return jax.device_get(params)
    return multihost_utils.process_allgather(params, tiled=True)


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
        prepare_devices(max(1, num_data * num_model // (options.num_processes or 1)))
        _join_others(options)
        with reporting_disk_errors(options.workdir, option="--workdir"):
            train(experiment, data=options.data, workdir=options.workdir, mesh=options.mesh)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(2)
    except Exception:
        traceback.print_exc()
        _leave(1)


def _leave(status: int) -> NoReturn:
    """Ends this process. If it is one of several, it ends at once: a normal exit would wait for the others."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _join_others(options: Options) -> None:
    """Joins the other processes, if the options say that there are any.

    Raises:
        UserError: the options contradict each other, or the processes cannot be joined.
    """
    by_hand = (options.coordinator, options.num_processes, options.process_id)
    if by_hand != (None, None, None) and None in by_hand:
        raise UserError(
            "--coordinator, --num-processes and --process-id belong together; give all three, or --distributed"
        )
    if not options.distributed and options.coordinator is None:
        return
    if options.coordinator is not None and not re.fullmatch(r".+:\d+", options.coordinator):
        raise UserError(f"--coordinator {options.coordinator} is not HOST:PORT, e.g. --coordinator host0:8476")
    try:
        jax.distributed.initialize(*by_hand)
    except (RuntimeError, ValueError) as error:
        first_line = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(
            f"cannot join the other processes ({first_line}); give each process --coordinator, --num-processes and "
            "--process-id, and start all of them within five minutes"
        ) from error


if __name__ == "__main__":
    main()
