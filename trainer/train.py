"""Trains an encoder: `python -m trainer.train --config NAME --data DIR --workdir DIR --mesh AxB`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
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
import orbax.checkpoint as ocp
import tokenizers
import tyro
from absl import logging as absl_logging
from jax.experimental import multihost_utils

from trainer.augment import make_augment
from trainer.checkpoints import Checkpoints
from trainer.configs.base import Experiment, UserError, check, fields_of, override
from trainer.configs.experiments import EXPERIMENTS, get_experiment
from trainer.data import Corpus, batches, first_images, make_example, make_tokenizer, open_corpus
from trainer.encoder import Classifier, Preprocessing, is_whole
from trainer.encoder.write import save_encoder
from trainer.logs import Logs
from trainer.mesh import batch_sharding, check_batch, described, make_mesh, parse_mesh, prepare_devices
from trainer.optimizer import make_optimizer
from trainer.state import Models, State, abstract_state, init_state, make_models
from trainer.train_step import make_train_step

_INIT_IMAGES = 256  # images over which the start is scaled
_PATIENCE_SEC = 24 * 3600  # with a process that trains the tokenizer or writes the encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Trains an encoder; a run that was stopped goes on where its last checkpoint is."""

    config: str
    """Experiment, by name."""
    data: str
    """Directory of the set."""
    workdir: str
    """Directory for checkpoints, logs and the encoder; made if need be."""
    mesh: str = "1x1"
    """Devices of all processes, data x model. With no accelerator they are simulated on the CPU."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field to change, e.g. steps=100; may be repeated."""
    distributed: bool = False
    """Join the other processes of a TPU pod, Slurm or Open MPI job first (jax.distributed); all share the workdir."""
    coordinator: str | None = None
    """HOST:PORT of process 0, to start the processes by hand: each gets the same command but for --process-id."""
    num_processes: int | None = None
    """With --coordinator: how many processes there are."""
    process_id: int | None = None
    """With --coordinator: which one this is, from 0 on."""


def train(experiment: Experiment, *, data: str, workdir: str, mesh: str) -> str:
    """Returns the directory of the trained encoder.

    Args:
        experiment: what to train.
        data: directory of the set.
        workdir: where checkpoints, logs and the encoder go.
        mesh: `AxB`, data x model.

    Raises:
        UserError: the parts do not fit each other, or the loss is not finite.
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

    preprocessing = Preprocessing(image_size_px=experiment.image.image_size_px, antialias=experiment.image.antialias)
    tokenizer = (
        _tokenizer(corpus, experiment, os.path.join(workdir, "tokenizer.json")) if experiment.contrasts else None
    )
    example = make_example(corpus, experiment, preprocessing, tokenizer)
    models = make_models(experiment)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    abstract = abstract_state(experiment, models, optimizer, devices, corpus.num_classes)

    _write_config(workdir, resolved)
    checkpoints = Checkpoints(workdir, experiment.checkpoints_kept)
    checkpoints.check_room(abstract)
    first_step = checkpoints.latest_step() or 0
    if first_step:
        state = checkpoints.restore(first_step, abstract)
        _say(f"resumed {workdir} at step {first_step}")
    else:
        images = min(_INIT_IMAGES, corpus.image_set.num_records)
        state = init_state(
            experiment, models, optimizer, devices, corpus.num_classes, first_images(corpus, example, images)
        )
    iterator = batches(corpus, experiment, example, jax.process_index(), jax.process_count(), first_step)
    rows = batch_sharding(devices)
    augment = make_augment(experiment.augment, preprocessing, experiment.seed, rows)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    train_step = make_train_step(experiment, models, optimizer, devices, shardings, corpus.num_classes)
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
                # A state that is not finite never reaches a checkpoint: this raises first.
                logs.write(step, {name: float(value) for name, value in metrics.items()})
            if due:
                checkpoints.save(step, state)
    except BaseException:
        if not jax.distributed.is_initialized():  # else this process would wait for others, which wait for it
            _close(iterator, logs, checkpoints)
        raise
    _close(iterator, logs, checkpoints)
    encoder_hash = _save(encoder_path, experiment, models, state, corpus, preprocessing, tokenizer, resolved)
    _say(f"wrote {encoder_path} (hash {encoder_hash[:12]})")
    _wait_for_all("encoder")
    return encoder_path


def _close(iterator: Any, logs: Logs, checkpoints: Checkpoints) -> None:
    iterator.close()
    logs.close()
    checkpoints.wait()
    checkpoints.close()


def _wait_for_all(name: str) -> None:
    """Returns when all processes have come here. Collectives, and the end of a process, give up after minutes."""
    if jax.process_count() > 1:
        ocp.multihost.sync_global_processes(name, timeout=_PATIENCE_SEC, processes=set(range(jax.process_count())))


def _say(text: str) -> None:
    """Prints a line, in process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _tokenizer(corpus: Corpus, experiment: Experiment, path: str) -> tokenizers.Tokenizer:
    """Returns the run's tokenizer, trained once, by process 0, and kept at `path`."""
    if jax.process_index() == 0 and not os.path.exists(path):
        make_tokenizer(corpus, experiment).save(path + ".part")
        os.replace(path + ".part", path)
    _wait_for_all("tokenizer")
    return tokenizers.Tokenizer.from_file(path)


def _is_finished(workdir: str, resolved: dict[str, Any]) -> bool:
    """Returns whether the encoder is there, and whole; raises UserError if `workdir` holds another run."""
    path = os.path.join(workdir, "config.json")
    resolved = json.loads(json.dumps(resolved))
    if not os.path.exists(path):
        left = os.path.join(workdir, "checkpoints")
        if os.path.isdir(left) and os.listdir(left):
            raise UserError(
                f"{left} is of a run whose config.json is missing; put it back, or choose another --workdir"
            )
        if jax.process_index() == 0:
            # A start that came to nothing may have left its tokenizer.
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(workdir, "tokenizer.json"))
        os.makedirs(workdir, exist_ok=True)
        return False
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    if before["data"] != resolved["data"]:
        raise UserError(f"{workdir} holds a run on other data; choose another --workdir, or delete this one")
    old_config, new_config = _what_is_learned(before["config"]), _what_is_learned(resolved["config"])
    if old_config != new_config:
        name, old, new = _first_difference(old_config, new_config)
        raise UserError(
            f"{workdir} holds a run with {name}={old}, this one has {new}; choose another --workdir, or delete this one"
        )
    return is_whole(os.path.join(workdir, "encoder"))


def _what_is_learned(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config but for the fields that change only how: reading, memory, and what is written when."""
    others = {"log_every", "checkpoint_every", "checkpoints_kept", "remat"}
    of_parts = {"data": {"workers", "threads", "prefetch"}, "loss": {"tile_classes"}}
    kept = {name: value for name, value in config.items() if name not in others}
    for part, fields in of_parts.items():
        kept[part] = {name: value for name, value in config[part].items() if name not in fields}
    return kept


def _write_config(workdir: str, resolved: dict[str, Any]) -> None:
    """Writes what the run is, once nothing in its options stands in its way any more."""
    path = os.path.join(workdir, "config.json")
    if jax.process_index() == 0 and not os.path.exists(path):
        with open(path + ".part", "w", encoding="utf-8") as file:
            json.dump(resolved, file, indent=1)
        os.replace(path + ".part", path)


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before != after:
            if isinstance(before, dict) and isinstance(after, dict):
                return _first_difference(before, after, f"{prefix}{name}.")
            return prefix + name, before, after
    raise ValueError("no difference")


def _save(
    path: str,
    experiment: Experiment,
    models: Models,
    state: State,
    corpus: Corpus,
    preprocessing: Preprocessing,
    tokenizer: Any,
    resolved: dict[str, Any],
) -> str:
    params = _on_host(state.params)
    classifier = None
    if experiment.classifies:
        classifier = Classifier(
            weights=params["class_vectors"][: corpus.num_classes],
            entity_ids=corpus.entity_ids,
            scale=float(np.exp(params["log_class_scale"])),
        )
    if jax.process_index() != 0:
        return ""
    text = models.text
    return save_encoder(
        path,
        image_function=lambda p, images: jnp.asarray(models.image.apply({"params": p}, images)),
        image_params=params["image"],
        preprocessing=preprocessing,
        text_function=None if text is None else lambda p, tokens: jnp.asarray(text.apply({"params": p}, tokens)),
        text_params=params.get("text"),
        tokenizer=tokenizer,
        context_length=experiment.text.context_length if text is not None else None,
        classifier=classifier,
        provenance={**resolved, "packages": {name: version(name) for name in ("jax", "flax", "optax")}},
    )


def _on_host(params: Any) -> Any:
    if jax.process_count() == 1:
        return jax.device_get(params)
    return multihost_utils.process_allgather(params, tiled=True)


def _description(arguments: Sequence[str]) -> str:
    """Returns what `--help` says of the fields, with the values of the config that the arguments name."""
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
        try:
            train(experiment, data=options.data, workdir=options.workdir, mesh=options.mesh)
        except Exception as error:
            told = _disk_error(error, options.workdir)
            if told is None:
                raise
            raise told from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(2)
    except Exception:
        traceback.print_exc()
        _leave(1)


def _leave(status: int) -> NoReturn:
    """Ends this process; among several at once, for a usual end waits for the others, and they wait for this one."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _join_others(options: Options) -> None:
    """Joins the other processes where the options ask for it; raises UserError when they cannot be found."""
    by_hand = (options.coordinator, options.num_processes, options.process_id)
    if by_hand != (None, None, None) and None in by_hand:
        raise UserError("--coordinator, --num-processes and --process-id go together; give all three, or --distributed")
    if not options.distributed and options.coordinator is None:
        return
    if options.coordinator is not None and not re.fullmatch(r".+:\d+", options.coordinator):
        raise UserError(f"--coordinator {options.coordinator} is not HOST:PORT, e.g. --coordinator host0:8476")
    try:
        jax.distributed.initialize(*by_hand)
    except (RuntimeError, ValueError) as error:
        first_line = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(
            f"cannot join the other processes ({first_line}); give each --coordinator, --num-processes and "
            "--process-id, and start all within five minutes"
        ) from error


def _disk_error(error: BaseException, workdir: str) -> UserError | None:
    """Returns the user's view of an error that a full or closed disk caused; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        number = _disk_number(cause, os.path.abspath(workdir))
        if number is not None:
            words = os.strerror(number)
            return UserError(f"--workdir {workdir} cannot be written ({words}); free some space or choose another")
        cause = cause.__cause__ or cause.__context__
    return None


def _disk_number(error: BaseException, workdir: str) -> int | None:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    if isinstance(error, OSError) and isinstance(error.filename, str):
        # Within the workdir, or a folder above it that could not be made.
        path = os.path.abspath(error.filename)
        near = os.path.commonpath([path, workdir]) in (path, workdir)
        return error.errno if near and error.errno in (*full, errno.EACCES, errno.ENOTDIR, errno.ENOENT) else None
    # TensorStore and safetensors hand on the system's words, not its numbers.
    return next((number for number in full if os.strerror(number) in str(error)), None)


if __name__ == "__main__":
    main()
