"""The folder of a run: its config, and whether a command may go on in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from pipeline.schema import UserError
from pipeline.storage.file_lock import folder_lock
from pipeline.storage.lock import output_lock
from trainer.configs.base import Experiment
from trainer.encoder import is_whole
from trainer.files import absolute, check_store, in_store, read_locally, write_file

CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.json"
TOKENIZER_FILE = "tokenizer.json"
CHECKPOINTS_FOLDER = "checkpoints"
ENCODER_FOLDER = "encoder"


def check_workdir(workdir: str) -> None:
    """Checks that the folder of a run lies on a disk, or in a store that can be written to, and can hold checkpoints.

    Raises:
        UserError: it does not, or cannot.
    """
    if pattern := re.search(r"[*?[]", absolute(workdir)):
        raise UserError(
            f"--workdir {workdir}: Orbax takes {pattern[0]} for part of a pattern, so it could not read checkpoints "
            f"below {absolute(workdir)} again; choose a path without *, ? and ["
        )
    if in_store(workdir):
        check_store(workdir, option="--workdir")


@contextlib.contextmanager
def only_run_in(workdir: str) -> Iterator[None]:
    """Creates the folder `workdir` if it is missing, and lets no other run work in it meanwhile.

    Of several processes that train together, the first holds the lock for all.

    Raises:
        UserError: another run works in it.
    """
    if jax.process_index() != 0:
        yield
    elif in_store(workdir):
        remedy = "wait until it has ended, or stop it"
        with output_lock(workdir, command="trainer.train", option="--workdir", remedy=remedy):
            yield
    else:
        os.makedirs(workdir, exist_ok=True)
        with folder_lock(workdir, command="trainer.train", option="--workdir"):
            yield


def is_finished(workdir: str, resolved: dict[str, Any]) -> bool:
    """Returns whether the run's encoder is complete.

    Args:
        workdir: the run's folder, which is created if it is missing.
        resolved: `config`, the experiment's fields, and `data`, the fingerprint of the set.

    Raises:
        UserError: `workdir` holds another run.
    """
    folder = epath.Path(workdir)
    resolved = json.loads(json.dumps(resolved))
    if not (folder / CONFIG_FILE).exists():
        left = folder / CHECKPOINTS_FOLDER
        if left.is_dir() and any(left.iterdir()):
            raise UserError(
                f"{left} belongs to a run whose {CONFIG_FILE} is missing; put it back, or choose another --workdir"
            )
        if jax.process_index() == 0:
            # A start that failed can have left these.
            for name in (TOKENIZER_FILE, CLASSES_FILE):
                (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        return False
    before = json.loads((folder / CONFIG_FILE).read_text())
    if before["data"] != resolved["data"]:
        raise UserError(f"--workdir {workdir} holds a run on other data; choose another one, or delete it")
    old_config = _what_is_learned(_with_new_fields(before["config"]))
    new_config = _what_is_learned(resolved["config"])
    if new_config["steps"] > old_config["steps"]:
        old_config["steps"] = new_config["steps"]  # the run is extended
    if old_config != new_config:
        name, old, new = _first_difference(old_config, new_config)
        raise UserError(
            f"--workdir {workdir} holds a run with {name}={old}, but this run has {name}={new}; choose another one, "
            "or delete it"
        )
    if not (folder / ENCODER_FOLDER).is_dir():
        return False
    with read_locally(os.path.join(workdir, ENCODER_FOLDER)) as encoder:
        return is_whole(encoder) and _steps_of(encoder) == new_config["steps"]


def write_config(
    workdir: str, resolved: dict[str, Any], entity_ids: Sequence[str], names: Sequence[str], first_step: int
) -> None:
    """Writes the config of a new or extended run, and its classes, in process 0, once the options have been checked.

    A run is extended by a larger number of steps. The config then says at which step that was, and how many steps the
    run had before.

    Args:
        workdir: the run's folder.
        resolved: `config`, the experiment's fields, and `data`, the fingerprint of the set.
        entity_ids: of the classes, by class id.
        names: of the classes, by class id.
        first_step: the step that the run starts from, or 0.
    """
    if jax.process_index() != 0:
        return
    classes_path = os.path.join(workdir, CLASSES_FILE)
    if not epath.Path(classes_path).exists():
        write_file(classes_path, json.dumps({"entity_ids": list(entity_ids), "names": list(names)}).encode())
    path = os.path.join(workdir, CONFIG_FILE)
    before: dict[str, Any] = json.loads(epath.Path(path).read_text()) if epath.Path(path).exists() else {}
    extended = before.get("extended", [])
    if before:
        steps_before, steps = before["config"]["steps"], resolved["config"]["steps"]
        if steps == steps_before:
            return
        extended = [*extended, {"at_step": first_step, "steps_before": steps_before}]
        print(
            f"extended from {steps_before} to {steps} steps: from step {first_step + 1} on, learning rates are those "
            f"of a run of {steps} steps",
            flush=True,
        )
    content = {**resolved, **({"extended": extended} if extended else {})}
    write_file(path, json.dumps(content, indent=1).encode())


def _steps_of(encoder: str) -> int | None:
    """Returns how many steps an encoder was trained for, by its own words."""
    with open(os.path.join(encoder, "encoder.json"), encoding="utf-8") as file:
        steps: int | None = json.load(file).get("provenance", {}).get("config", {}).get("steps")
    return steps


def _with_new_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a run with the fields that came later, at their defaults, which change nothing."""
    defaults = dataclasses.asdict(Experiment(name=config["name"], steps=config["steps"]))
    parts = {name: {**value, **config.get(name, {})} for name, value in defaults.items() if isinstance(value, dict)}
    if "name_probability" not in config["data"]:  # it was the rest
        parts["data"]["name_probability"] = round(1 - parts["data"]["description_probability"], 9)
    return {**defaults, **config, **parts}


def _what_is_learned(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config without the fields that do not change what is learned: reading, memory, logs, checkpoints."""
    others = {
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "checkpoints_kept",
        "remat",
        "micro_batches",
        "scan_unroll",
        "deterministic",
    }
    of_parts = {"data": {"workers", "threads", "prefetch", "num_skippable"}, "loss": {"tile_classes"}}
    kept = {name: value for name, value in config.items() if name not in others}
    for part, fields in of_parts.items():
        kept[part] = {name: value for name, value in config[part].items() if name not in fields}
    return kept


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any]:
    name = next(name for name in sorted({*old, *new}) if name not in old or name not in new or old[name] != new[name])
    before, after = old.get(name), new.get(name)
    if isinstance(before, dict) and isinstance(after, dict):
        return _first_difference(before, after, f"{prefix}{name}.")
    return prefix + name, before, after
