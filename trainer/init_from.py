"""The initial parameters of a run, taken from an encoder or from a checkpoint of another run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import tokenizers

from pipeline.schema import UserError
from trainer import imported_clip
from trainer.checkpoints import read_params, steps_in
from trainer.configs.base import Experiment, fields_of
from trainer.encoder import is_whole
from trainer.files import absolute, as_path, read_locally
from trainer.models.layers import STACKED, stacked, unstacked
from trainer.shapes import Shapes, shapes_of, shapes_that_differ
from trainer.state import State
from trainer.workdir import CHECKPOINTS_FOLDER, CLASSES_FILE, CONFIG_FILE, TOKENIZER_FILE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The parameters that a run starts from."""

    path: str
    params: dict[str, Any]
    """Nested, NumPy: image, and as far as there are: text, log_scale, class_vectors, log_class_scale."""
    entity_ids: tuple[str, ...]
    """Of the class vectors, by row."""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the config that the parameters are for, by dotted name, where the source states them."""


def read_tokenizer(path: str) -> tokenizers.Tokenizer | None:
    """Returns the tokenizer that belongs to the parameters at `path`; None if they have no text tower.

    Raises:
        UserError: there are no parameters at `path`.
    """
    folder, step = _run_and_step(path) if not _is_encoder(path) else (path, None)
    found = as_path(folder, TOKENIZER_FILE)
    if not found.exists():
        return None
    tokenizer = tokenizers.Tokenizer.from_str(found.read_text())
    imported = _imported_from(folder) if step is None else None
    if imported is None:
        return tokenizer
    _check_family(path, imported)
    return imported_clip.with_our_ids(tokenizer, where=f"init_from {path}")


def read_source(path: str) -> Source:
    """Returns the parameters at `path`: an encoder, a checkpoint, or the workdir of a run, whose latest one is taken.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    if _is_encoder(path):
        with read_locally(path) as folder:
            return _read_encoder(path, folder)
    folder, step = _run_and_step(path)
    classes = as_path(folder, CLASSES_FILE)
    entity_ids = tuple(json.loads(classes.read_text())["entity_ids"]) if classes.exists() else ()
    params = read_params(os.path.join(absolute(folder), CHECKPOINTS_FOLDER, str(step)))
    return Source(path=path, params=params, entity_ids=entity_ids)


def check_fields(source: Source, experiment: Experiment) -> None:
    """Checks that the run's towers compute as those that the parameters were trained in.

    Raises:
        UserError: a field of the config has another value; the message says what to set.
    """
    values = {name: value for name, value, _ in fields_of(experiment)}
    contrasts = experiment.contrasts
    wrong = {
        name: value
        for name, value in source.fields.items()
        if values[name] != value and (contrasts or not name.startswith("text."))
    }
    if wrong:
        settings = " ".join(f"--set {name}={value}" for name, value in wrong.items())
        raise UserError(f"init_from {source.path} was trained in towers of another kind; give {settings}")


def with_source(state: State, source: Source, entity_ids: tuple[str, ...]) -> tuple[State, list[str]]:
    """Returns `state` with the parameters of `source`, and lines that say which were taken.

    Class vectors are taken by entity id. Positions of patches are interpolated where the resolution is another one.

    Args:
        state: the state at step 0, on the mesh.
        source: the parameters to take.
        entity_ids: of the run's classes, by class id.

    Raises:
        UserError: a tower of the source has other parameters than this run's.
    """
    params, lines = dict(state.params), []
    there: Shapes = {}
    here: Shapes = {}
    for tower in ("image", "text"):
        if tower not in params:
            continue
        if tower not in source.params:
            lines.append(f"{tower} tower: new, {source.path} has none")
            continue
        given, line = _fitted(source.params[tower], params[tower])
        there |= shapes_of({tower: given})
        here |= shapes_of({tower: params[tower]})
        lines.append(f"{tower} tower: {len(jax.tree.leaves(given))} arrays taken{line}")
        if there == here:
            params[tower] = jax.tree.map(_on_mesh, params[tower], given)
    if difference := shapes_that_differ(there, here):
        raise UserError(
            f"init_from {source.path} does not fit this config ({difference}); give the towers the sizes that they "
            "have there"
        )
    for name in ("log_scale", "log_class_scale"):
        if name in params and name in source.params:
            params[name] = _on_mesh(params[name], np.asarray(source.params[name]))
            lines.append(f"{name}: taken")
    if "class_vectors" in params:
        row_of = {entity_id: row for row, entity_id in enumerate(source.entity_ids)}
        rows = np.asarray([row_of.get(entity_id, -1) for entity_id in entity_ids])
        if "class_vectors" in source.params and (rows >= 0).any():
            _check_width(source, params["class_vectors"].shape[1])
            params["class_vectors"] = _with_rows(params["class_vectors"], source.params["class_vectors"], rows)
        lines.append(f"class vectors: {(rows >= 0).sum()} of {len(rows)} taken by entity id, the others are new")
    return state.replace(params=params), lines


def _is_encoder(path: str) -> bool:
    found: bool = as_path(path, "encoder.json").exists()
    return found


def _run_and_step(path: str) -> tuple[str, int]:
    """Returns the workdir and the step of a checkpoint, or of the latest checkpoint of a run."""
    parent, name = os.path.split(absolute(path.rstrip("/")))
    if name.isdigit() and os.path.basename(parent) == CHECKPOINTS_FOLDER and int(name) in steps_in(parent):
        return os.path.dirname(parent), int(name)
    steps = steps_in(os.path.join(path, CHECKPOINTS_FOLDER))
    if not steps or not as_path(path, CONFIG_FILE).exists():
        raise UserError(
            f"init_from {path} is neither an encoder nor a run with a checkpoint nor a checkpoint; name one of them, "
            "or leave it empty for random parameters"
        )
    return path, max(steps)


def _read_encoder(path: str, folder: str) -> Source:
    """Returns the parameters of the encoder at `path`, whose files lie in `folder`."""
    if not is_whole(folder):
        raise UserError(f"init_from {path} is an encoder whose files do not match its hash; write it again")
    params: dict[str, Any] = {}
    for name, value in safetensors.numpy.load_file(os.path.join(folder, "weights.safetensors")).items():
        *parents, last = name.split("/")
        inner = params
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    fields: dict[str, Any] = {}
    imported = _imported_from(folder)
    if imported:
        params, fields = _of_clip(path, imported, params)
    entity_ids: tuple[str, ...] = ()
    if os.path.exists(os.path.join(folder, "classifier.json")):
        tensors = safetensors.numpy.load_file(os.path.join(folder, "classifier.safetensors"))
        params["class_vectors"], params["log_class_scale"] = tensors["weights"], np.log(tensors["scale"])
        with open(os.path.join(folder, "classifier.json"), encoding="utf-8") as file:
            entity_ids = tuple(json.load(file)["entity_ids"])
    return Source(path=path, params=params, entity_ids=entity_ids, fields=fields)


def _imported_from(path: str) -> dict[str, Any] | None:
    """Returns where the encoder was imported from; None for one that was trained here."""
    metadata = json.loads(as_path(path, "encoder.json").read_text())
    found: dict[str, Any] | None = metadata.get("provenance", {}).get("imported_from")
    return found


def _check_family(path: str, imported: dict[str, Any]) -> None:
    if imported["family"] != "clip":
        raise UserError(
            f"init_from {path} is an imported {imported['family']}, whose layers are not those of our towers; a CLIP "
            "that was imported from the layout of Hugging Face can start a run"
        )


def _of_clip(path: str, imported: dict[str, Any], params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters of an imported CLIP under our names, and the fields of the config that they are for."""
    _check_family(path, imported)
    found = {"image": imported_clip.image_params(params["image"]), "log_scale": imported["log_scale"]}
    if "text" in params:
        found["text"] = imported_clip.text_params(params["text"])
    fields: dict[str, Any] = {"image.pool": "class_token", "image.pre_norm": True, "image.scale_init_by_data": False}
    fields |= {"text.pool": "last"} if "text" in found else {}
    for tower in ("image", "text"):
        if tower in found:
            activation = imported["activation"][tower]
            if activation not in imported_clip.ACTIVATIONS:
                raise UserError(f"init_from {path} has the activation {activation}, which our towers lack")
            fields[f"{tower}.activation"] = imported_clip.ACTIVATIONS[activation]
            for name in ("norm_epsilon", "num_heads"):
                fields[f"{tower}.{name}"] = imported[name][tower]
    return found, fields


def _fitted(given: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns a tower's parameters in the layout and for the resolution of `wanted`, and words on what changed."""
    word = ""
    blocks, are_stacked = given["blocks"], STACKED in wanted["blocks"]
    if are_stacked != (STACKED in blocks):
        given = {**given, "blocks": jax.tree.map(np.asarray, stacked(blocks) if are_stacked else unstacked(blocks))}
    old, new = given["position"].shape, wanted["position"].shape
    if old[1] != new[1] and old[2] == new[2] and "head" in given and "stem" in given:
        num_first = 1 if "class_token" in given else 0
        old_side, new_side = (math.isqrt(shape[1] - num_first) for shape in (old, new))
        first, grid = np.split(given["position"], [num_first], axis=1)
        grid = grid.reshape(1, old_side, old_side, old[2])
        grid = np.asarray(jax.image.resize(grid, (1, new_side, new_side, old[2]), "bicubic"))
        given = {**given, "position": np.concatenate([first, grid.reshape(1, -1, old[2])], axis=1)}
        word = f", positions interpolated from {old_side}x{old_side} to {new_side}x{new_side}"
    return given, word


def _check_width(source: Source, dim: int) -> None:
    if source.params["class_vectors"].shape[1] != dim:
        raise UserError(
            f"init_from {source.path} has class vectors of {source.params['class_vectors'].shape[1]} values, but "
            f"embedding_dim is {dim}; set it to theirs"
        )


def _on_mesh(leaf: jax.Array, value: np.ndarray) -> jax.Array:
    value = np.asarray(value, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])


def _with_rows(vectors: jax.Array, given: np.ndarray, rows: np.ndarray) -> jax.Array:
    """Returns class vectors with those of `given` where `rows`, int [classes], names a row of it and not -1."""
    parts = []
    for shard in vectors.addressable_shards:
        values = np.array(shard.data)
        start = shard.index[0].start or 0
        here = rows[start : start + len(values)]
        values[: len(here)][here >= 0] = given[here[here >= 0]]
        parts.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(vectors.shape, vectors.sharding, parts)
