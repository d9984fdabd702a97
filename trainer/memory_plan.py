"""What a training step needs of each device: memory and collectives, from shapes and shardings alone.

State and batch are exact. Activations are those that JAX keeps for the backward pass; what a compiler fuses or
schedules otherwise, and its workspace, are not known here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from trainer.configs.base import Experiment
from trainer.losses.contrastive import TILE_BYTES
from trainer.losses.softmax import chosen_tile
from trainer.mesh import DATA_AXIS, MODEL_AXIS, AnyMesh
from trainer.models.layers import STACKED
from trainer.optimizer import make_optimizer
from trainer.placement import device_bytes
from trainer.state import State, abstract_state, make_models

Remat = Literal["none", "light", "dots", "full"]
_CLASSES = "class_vectors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes per device. What grows with the batch is given per image of a device's share of the batch."""

    fixed: dict[str, int]  # by what it is for
    per_image: dict[str, float]

    def total(self, images: int) -> int:
        """Returns the bytes of a device whose share of the batch is `images`."""
        return sum(self.fixed.values()) + math.ceil(images * sum(self.per_image.values()))

    def most_images(self, device_bytes: int) -> int:
        """Returns the largest share of the batch for which `device_bytes` suffice; 0 if there is none."""
        return max(0, math.floor((device_bytes - sum(self.fixed.values())) / sum(self.per_image.values())))


def planned_state(experiment: Experiment, mesh: AnyMesh, num_classes: int) -> State:
    """Returns the shapes and shardings of the state of a run."""
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    return abstract_state(experiment, make_models(experiment), optimizer, mesh, num_classes)


def planned_memory(experiment: Experiment, state: State, mesh: AnyMesh) -> Memory:
    """Returns what each device needs, where `state` is that of `planned_state`."""
    classes = device_bytes(state.params.get(_CLASSES, ()))
    moments = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if _is_of_classes(path)]
    fixed = {
        "parameters of the towers": device_bytes(state.params) - classes,
        "optimiser of the towers": device_bytes(state.opt_state) - device_bytes(moments),
        "class vectors": classes,
        "optimiser of the class vectors": device_bytes(moments),
        "gradients": device_bytes(state.params),
        "parameters gathered for use, and their gradients": 2 * _gathered_bytes(experiment, state.params),
        "tiles of the losses": _tile_bytes(experiment, state),
    }
    image = experiment.image
    # The towers take one micro-batch after the other.
    kept, block = (count / experiment.micro_batches for count in (_kept_bytes(experiment), _block_bytes(experiment)))
    # Each device holds the embeddings of the whole batch, and their gradients.
    embeddings = (1 + experiment.contrasts) * 2 * 4 * experiment.embedding_dim * mesh.size
    per_image = {
        "batch": 4.0 * (3 * image.image_size_px**2 + experiment.contrasts * experiment.text.context_length),
        f"activations kept (remat={experiment.remat})": kept,
        "activations of one block": block,
        "embeddings of the whole batch, gathered": float(embeddings),
    }
    return Memory(fixed=fixed, per_image=per_image)


def _tile_bytes(experiment: Experiment, state: State) -> int:
    """Returns the bytes of the logits that an accelerator holds at once, and of their gradient."""
    found = 2 * TILE_BYTES if experiment.contrasts else 0
    if experiment.classifies:
        vectors = state.params[_CLASSES]
        rows, dim = vectors.sharding.shard_shape(vectors.shape)
        batch_size = experiment.data.batch_size
        found += 2 * 4 * batch_size * min(rows, experiment.loss.tile_classes or chosen_tile(batch_size, dim, "gpu"))
    return found


def _is_of_classes(path: Any) -> bool:
    return jax.tree_util.keystr(path[-1:], simple=True) == _CLASSES


def _gathered_bytes(experiment: Experiment, params: dict[str, Any]) -> int:
    """Returns the bytes of the split parameters that a device holds whole at once."""
    whole, layers = 0, {"image": 0, "text": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [jax.tree_util.keystr((part,), simple=True) for part in path]
        if names[-1] == _CLASSES or leaf.sharding.shard_shape(leaf.shape) == leaf.shape:
            continue
        if STACKED in names:  # only kernels are split
            layers[names[0]] += leaf.size // leaf.shape[0] * jnp.dtype(experiment.dtype).itemsize
        else:
            whole += leaf.size * leaf.dtype.itemsize
    return whole + max(layers.values())


@functools.cache
def _kept_bytes(experiment: Experiment) -> float:
    """Returns the bytes that the backward pass of the towers keeps per image and its text, beyond parameters."""
    models = make_models(experiment)
    size = experiment.image.image_size_px
    towers: list[tuple[Any, tuple[int, ...], Any]] = [(models.image, (size, size, 3), jnp.float32)]
    if models.text is not None:
        towers.append((models.text, (experiment.text.context_length,), jnp.int32))

    def kept(model: Any, shape: tuple[int, ...], dtype: Any, batch: int) -> int:
        inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
        params = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
        residuals = jax.eval_shape(
            lambda params, inputs: jax.vjp(lambda params: model.apply({"params": params}, inputs), params)[1],
            params,
            inputs,
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    return float(sum(kept(*tower, batch=3) - kept(*tower, batch=2) for tower in towers))


def _block_bytes(experiment: Experiment) -> float:
    """Returns what one block of the larger tower keeps per image, which its backward pass needs again."""

    def kept(image_depth: int, text_depth: int) -> float:
        return _kept_bytes(
            dataclasses.replace(
                experiment,
                remat="none",
                image=dataclasses.replace(experiment.image, depth=image_depth),
                text=dataclasses.replace(experiment.text, depth=text_depth),
            )
        )

    base = kept(1, 1)
    return max(kept(2, 1) - base, kept(1, 2) - base)


def planned_collectives(experiment: Experiment, state: State, mesh: AnyMesh) -> dict[str, int]:
    """Returns the bytes that each device gathers or sums per step, by what they are for.

    Counted is the size of the result: of a gathered parameter, all of it; of a summed gradient, the part that a device
    keeps after it is summed and split over `model`, or all of it. Compilers for the CPU sum all of it instead. The rows
    of the token table have few gradients each, so XLA exchanges these instead of their sums.
    """
    item = jnp.dtype(experiment.dtype).itemsize
    # With micro-batches, the towers first embed each, and later run it again for its gradients.
    parts = experiment.micro_batches
    runs = parts * (2 if parts > 1 else 1)
    gathered = scattered = summed = exchanged = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        names = [jax.tree_util.keystr((part,), simple=True) for part in path]
        if names[-1] == _CLASSES:
            continue
        stacked = STACKED in names
        size = leaf.size * (item if stacked and names[-1] == "kernel" else leaf.dtype.itemsize)
        part = size * math.prod(leaf.sharding.shard_shape(leaf.shape)) // leaf.size
        if part < size:
            gathered += (runs + parts * stacked) * size  # scanned blocks: once more for the backward pass
            if names[-1] == "embedding":
                exchanged += _exchanged_bytes(experiment, leaf, mesh)
            else:
                scattered += parts * part
            summed += parts * part if mesh.shape[DATA_AXIS] > 1 else 0
        elif mesh.size > 1:
            summed += parts * size
    embeddings = (1 + experiment.contrasts) * 4 * experiment.embedding_dim * experiment.data.batch_size
    found = {
        f"all-gather over {MODEL_AXIS}: parameters, before use": gathered,
        f"reduce-scatter over {MODEL_AXIS}: gradients": scattered,
        f"exchanged over {MODEL_AXIS}: gradients by token": exchanged,
        "all-reduce: gradients": summed,
        "all-gather over all: embeddings": embeddings if mesh.size > 1 else 0,
        "reduce-scatter over all: gradients of the embeddings": embeddings // mesh.size if mesh.size > 1 else 0,
    }
    return {name: count for name, count in found.items() if count}


def _exchanged_bytes(experiment: Experiment, table: Any, mesh: AnyMesh) -> int:
    """Returns the bytes of the tokens, and of their gradients, that a device gets from those it shares the table with.

    A device that keeps some rows of the table gets the whole gradients; one that keeps some columns gets these.
    """
    tokens: int = experiment.data.batch_size // mesh.shape[DATA_AXIS] * experiment.text.context_length
    columns: int = table.sharding.shard_shape(table.shape)[1]
    return 4 * tokens * (1 + columns)
