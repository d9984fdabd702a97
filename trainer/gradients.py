"""Gradients of the objective over the whole batch, with the towers run on all of it or on one part after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainer.mesh import DATA_AXIS, MODEL_AXIS
from trainer.objective import Arrays, Objective

TOWERS = ("image", "text")

Params = dict[str, Any]
Embed = Callable[[Params, Arrays], Arrays]


def gradients_of(
    objective: Objective, embed: Embed, params: Params, batch: Arrays, *, micro_batches: int, mesh: Mesh, shardings: Any
) -> tuple[Params, Arrays]:
    """Returns the gradients of the objective in the parameters, and its metrics.

    With several micro-batches, the towers first embed them one after the other and keep nothing else. Then the losses
    see the whole batch at once, as a contrastive loss must. Last, each micro-batch goes through the towers again, and
    backward from the gradients of its embeddings. That takes one more forward pass, and the activations of one
    micro-batch instead of those of the batch.

    Args:
        objective: (params, embeddings, batch) -> (loss, metrics).
        embed: (params, batch) -> embeddings, each row from its own row of the batch; it reads the `TOWERS` alone.
        params: the parameters.
        batch: arrays [B, ...], sharded over all devices on axis 0; `micro_batches` times the devices divides B.
        micro_batches: how many parts the towers take the batch in.
        mesh: the devices.
        shardings: of the parameters, which their gradients are summed up in.
    """
    if micro_batches == 1:

        def whole(params: Params) -> tuple[jax.Array, Arrays]:
            return objective(params, embed(params, batch), batch)

        of_whole: tuple[Params, Arrays] = jax.grad(whole, has_aux=True)(params)
        return of_whole

    towers = {name: params[name] for name in TOWERS if name in params}
    others = {name: value for name, value in params.items() if name not in towers}
    parts = {name: _split(values, micro_batches, mesh) for name, values in batch.items()}
    _, embedded = jax.lax.scan(lambda none, part: (none, embed(towers, part)), None, parts)
    embeddings = {name: _joined(values, mesh) for name, values in embedded.items()}
    of_losses = jax.grad(objective, argnums=(0, 1), has_aux=True)
    (of_others, to_embeddings), metrics = of_losses(others, embeddings, batch)
    to_parts = {name: _split(values, micro_batches, mesh) for name, values in to_embeddings.items()}

    def add_part(total: Params, part: tuple[Arrays, Arrays]) -> tuple[Params, None]:
        inputs, to_outputs = part
        (of_part,) = jax.vjp(lambda towers: embed(towers, inputs), towers)[1](to_outputs)
        return in_shards(jax.tree.map(jnp.add, total, of_part)), None

    def in_shards(total: Params) -> Params:
        sharded: Params = jax.lax.with_sharding_constraint(total, {name: shardings[name] for name in towers})
        return sharded

    of_towers, _ = jax.lax.scan(add_part, in_shards(jax.tree.map(jnp.zeros_like, towers)), (parts, to_parts))
    return {**of_others, **of_towers}, metrics


def _split(values: jax.Array, count: int, mesh: Mesh) -> jax.Array:
    """Returns [B, ...] as [count, B / count, ...]: of each device's rows, every part has as many."""
    parts = values.reshape(mesh.size, count, -1, *values.shape[1:]).swapaxes(0, 1)
    return _placed(parts.reshape(count, -1, *values.shape[1:]), P(None, (DATA_AXIS, MODEL_AXIS)), mesh)


def _joined(parts: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns what `_split` got."""
    rows = parts.reshape(len(parts), mesh.size, -1, *parts.shape[2:]).swapaxes(0, 1)
    return _placed(rows.reshape(-1, *parts.shape[2:]), P((DATA_AXIS, MODEL_AXIS)), mesh)


def _placed(values: jax.Array, spec: P, mesh: Mesh) -> jax.Array:
    placed: jax.Array = jax.lax.with_sharding_constraint(values, NamedSharding(mesh, spec))
    return placed
