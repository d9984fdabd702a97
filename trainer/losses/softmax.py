"""Exact softmax over very many classes, its rows sharded over the mesh's `model` axis.

No tensor of batch x classes exists, forward or backward: logits are made one tile of classes at a time, and the
backward pass makes them again. (A scan alone would save nothing: autodiff keeps every tile.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

DATA, MODEL = "data", "model"
_MASKED = -1e30  # finite, so that a shard of nothing but padding gives no NaN

LossFunction = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def sharded_softmax(mesh: Mesh, *, num_classes: int, margin: float = 0.0, tile_classes: int = 4096) -> LossFunction:
    """Returns loss(embeddings, class_vectors, scale, labels): mean cross-entropy, differentiable in the first three.

    The logit of class c is `scale * (embedding . vector_c - margin * [c is the label])`. The loss takes embeddings
    [B, D] and labels int [B], both sharded over data x model, class vectors [C', D] sharded over model, and a scalar
    scale. C' is `num_classes` rounded up to a multiple of the model axis; the rows above are padding.
    """
    rows, classes = P((DATA, MODEL)), P(MODEL)

    def forward(embeddings: jax.Array, vectors: jax.Array, scale: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        batch_size = embeddings.shape[0] * mesh.shape[DATA] * mesh.shape[MODEL]
        embeddings, labels = _gathered(embeddings), _gathered(labels)
        tiles, first_class = _tiles(vectors, tile_classes), _first_class(vectors)

        def add_tile(carry: Any, tile: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            largest, total, right = carry
            logits, hit, _ = _logits(embeddings, labels, scale, *tile, vectors.shape[0], first_class)
            new_largest = jnp.maximum(largest, logits.max(axis=1))
            total = total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[:, None]).sum(axis=1)
            return (new_largest, total, right + jnp.where(hit, logits, 0.0).sum(axis=1)), None

        empty = jnp.zeros(embeddings.shape[0], jnp.float32)
        (largest, total, right), _ = jax.lax.scan(add_tile, (empty + _MASKED, empty, empty), tiles)
        largest_of_all = jax.lax.pmax(largest, MODEL)
        total = jax.lax.psum(total * jnp.exp(largest - largest_of_all), MODEL)
        log_sum = largest_of_all + jnp.log(total)
        right = jax.lax.psum(right, MODEL)
        return jax.lax.psum((log_sum - right).sum(), DATA) / batch_size, log_sum

    def backward(
        embeddings: jax.Array,
        vectors: jax.Array,
        scale: jax.Array,
        labels: jax.Array,
        log_sum: jax.Array,
        cotangent: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch_size = embeddings.shape[0] * mesh.shape[DATA] * mesh.shape[MODEL]
        embeddings, labels = _gathered(embeddings), _gathered(labels)
        tiles, first_class = _tiles(vectors, tile_classes), _first_class(vectors)

        def add_tile(carry: Any, tile: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            to_embeddings, to_scale = carry
            logits, hit, cosines = _logits(embeddings, labels, scale, *tile, vectors.shape[0], first_class)
            to_logits = (jnp.exp(logits - log_sum[:, None]) - hit) * (cotangent / batch_size)
            to_scale = to_scale + (to_logits * (cosines - margin * hit)).sum()
            to_cosines = to_logits * scale
            return (to_embeddings + _product(to_cosines, tile[1]), to_scale), _product(to_cosines.T, embeddings)

        start = (jnp.zeros_like(embeddings), jnp.zeros((), jnp.float32))
        (to_embeddings, to_scale), to_tiles = jax.lax.scan(add_tile, start, tiles)
        to_vectors = to_tiles.reshape(-1, vectors.shape[1])[: vectors.shape[0]]
        return (
            jax.lax.psum_scatter(to_embeddings, MODEL, scatter_dimension=0, tiled=True),
            jax.lax.psum(to_vectors, DATA),
            jax.lax.psum(to_scale, (DATA, MODEL)),
        )

    def _logits(
        embeddings: jax.Array,
        labels: jax.Array,
        scale: jax.Array,
        start: jax.Array,
        tile: jax.Array,
        shard_rows: int,
        first_class: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        row = start + jnp.arange(tile.shape[0])
        class_id = first_class + row
        exists = (row < shard_rows) & (class_id < num_classes)
        hit = (labels[:, None] == class_id[None, :]) & exists
        cosines = _product(embeddings, tile.T)
        return jnp.where(exists, scale * (cosines - margin * hit), _MASKED), hit, cosines

    sharded_forward = jax.shard_map(
        forward, mesh=mesh, in_specs=(rows, classes, P(), rows), out_specs=(P(), P(DATA)), check_vma=False
    )
    sharded_backward = jax.shard_map(
        backward,
        mesh=mesh,
        in_specs=(rows, classes, P(), rows, P(DATA), P()),
        out_specs=(rows, classes, P()),
        check_vma=False,
    )

    @jax.custom_vjp
    def loss(embeddings: jax.Array, vectors: jax.Array, scale: jax.Array, labels: jax.Array) -> jax.Array:
        return sharded_forward(embeddings, vectors, scale, labels)[0]

    def loss_forward(
        embeddings: jax.Array, vectors: jax.Array, scale: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Any]:
        value, log_sum = sharded_forward(embeddings, vectors, scale, labels)
        return value, (embeddings, vectors, scale, labels, log_sum)

    def loss_backward(residuals: Any, cotangent: jax.Array) -> tuple[Any, Any, Any, None]:
        to_embeddings, to_vectors, to_scale = sharded_backward(
            residuals[0], residuals[1], residuals[2], residuals[3], residuals[4], cotangent
        )
        return to_embeddings, to_vectors, to_scale, None

    loss.defvjp(loss_forward, loss_backward)
    return loss


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the matrix product; on TPU of three passes of bfloat16 (not one: too coarse, nor six: too slow)."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGH)


def _gathered(values: jax.Array) -> jax.Array:
    return jax.lax.all_gather(values, MODEL, axis=0, tiled=True)


def _first_class(vectors: jax.Array) -> jax.Array:
    return jax.lax.axis_index(MODEL) * vectors.shape[0]


def _tiles(vectors: jax.Array, tile_classes: int) -> tuple[jax.Array, jax.Array]:
    """Returns each tile's first row [N] and the tiles [N, T, D]; the last one is filled up with zeros."""
    size = min(tile_classes, vectors.shape[0])
    count = -(-vectors.shape[0] // size)
    filled = jnp.pad(vectors, ((0, count * size - vectors.shape[0]), (0, 0)))
    return jnp.arange(count) * size, filled.reshape(count, size, vectors.shape[1])
