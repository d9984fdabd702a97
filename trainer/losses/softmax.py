"""Exact softmax over very many classes, whose vectors are sharded over the mesh's `model` axis.

No tensor of batch x classes exists in the forward or backward pass: logits are computed one tile of classes at a time,
and the backward pass computes them again. (A scan alone would save nothing, because autodiff keeps every tile.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.mesh import DATA_AXIS, MODEL_AXIS

_MASKED = -1e30  # finite, so that a shard that holds only padding gives no NaN

_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]  # the loss's arguments, and log-sum-exps
LossFunction = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def sharded_softmax(mesh: Mesh, *, num_classes: int, tile_classes: int, margin: float = 0.0) -> LossFunction:
    """Returns loss(embeddings, class_vectors, scale, labels) -> mean cross-entropy, differentiable in the first three.

    The logit of class c is `scale * (embedding . vector_c - margin * [c is the label])`. The loss takes

        embeddings: float32 [B, D], sharded over `data` x `model` on axis 0.
        class_vectors: float32 [C', D], sharded over `model` on axis 0. C' is `num_classes` rounded up to a multiple of
            the size of `model`; the added rows are padding, and their gradient is zero.
        scale: float32 [].
        labels: int32 [B] in [0, num_classes), sharded as the embeddings are.

    and returns float32 [], in nats, replicated.

    Args:
        mesh: has the axes `data` and `model`.
        num_classes: C, without padding.
        tile_classes: how many classes' logits are in memory at once, per device.
        margin: is subtracted from the cosine of the label's class.
    """
    rows, classes = P((DATA_AXIS, MODEL_AXIS)), P(MODEL_AXIS)
    settings = _Settings(num_classes, margin, tile_classes, mesh.shape[DATA_AXIS] * mesh.shape[MODEL_AXIS])
    sharded_forward = jax.shard_map(
        functools.partial(_forward, settings),
        mesh=mesh,
        in_specs=(rows, classes, P(), rows),
        out_specs=(P(), P(DATA_AXIS)),
    )
    sharded_backward = jax.shard_map(
        functools.partial(_backward, settings),
        mesh=mesh,
        in_specs=(rows, classes, P(), rows, P(DATA_AXIS), P()),
        out_specs=(rows, classes, P()),
        # The check needs each carry of a scan to vary over the axes from the start, as the zeros here do not.
        check_vma=False,  # pragma: no mutate: None means False
    )

    @jax.custom_vjp
    def loss(embeddings: jax.Array, vectors: jax.Array, scale: jax.Array, labels: jax.Array) -> jax.Array:
        return sharded_forward(embeddings, vectors, scale, labels)[0]

    def loss_forward(
        embeddings: jax.Array, vectors: jax.Array, scale: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, _Residuals]:
        value, log_sum = sharded_forward(embeddings, vectors, scale, labels)
        return value, (embeddings, vectors, scale, labels, log_sum)

    def loss_backward(residuals: _Residuals, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
        return *sharded_backward(*residuals, cotangent), None  # labels have no gradient

    loss.defvjp(loss_forward, loss_backward)
    return loss


@dataclasses.dataclass(frozen=True)
class _Settings:
    num_classes: int
    margin: float
    tile_classes: int
    num_devices: int


def _forward(
    settings: _Settings, embeddings: jax.Array, vectors: jax.Array, scale: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss and each row's log-sum-exp, of one device's rows and class vectors."""
    batch_size = embeddings.shape[0] * settings.num_devices
    embeddings, labels = _gathered(embeddings), _gathered(labels)

    def add_tile(
        carry: tuple[jax.Array, jax.Array, jax.Array], tile: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        largest, total, right = carry
        logits, hit, _ = _logits(settings, embeddings, labels, scale, vectors.shape[0], *tile)
        new_largest = jnp.maximum(largest, logits.max(axis=1))
        total = total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[:, None]).sum(axis=1)
        return (new_largest, total, right + jnp.where(hit, logits, 0.0).sum(axis=1)), None

    empty = jnp.zeros_like(embeddings, shape=len(embeddings))
    start = (empty + _MASKED, empty, empty)
    (largest, total, right), _ = jax.lax.scan(add_tile, start, _tiles(vectors, settings.tile_classes))
    largest_of_all = jax.lax.pmax(largest, MODEL_AXIS)
    total = jax.lax.psum(total * jnp.exp(largest - largest_of_all), MODEL_AXIS)
    log_sum = largest_of_all + jnp.log(total)
    right = jax.lax.psum(right, MODEL_AXIS)
    return jax.lax.psum((log_sum - right).sum(), DATA_AXIS) / batch_size, log_sum


def _backward(
    settings: _Settings,
    embeddings: jax.Array,
    vectors: jax.Array,
    scale: jax.Array,
    labels: jax.Array,
    log_sum: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of the mean loss: of one device's rows, of its class vectors, and of the scale."""
    batch_size = embeddings.shape[0] * settings.num_devices
    embeddings, labels = _gathered(embeddings), _gathered(labels)

    def add_tile(
        carry: tuple[jax.Array, jax.Array], tile: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        to_embeddings, to_scale = carry
        logits, hit, cosines = _logits(settings, embeddings, labels, scale, vectors.shape[0], *tile)
        right = jnp.where(hit, 1.0, 0.0)
        to_logits = (jnp.exp(logits - log_sum[:, None]) - right) * (cotangent / batch_size)
        to_scale = to_scale + (to_logits * (cosines - settings.margin * right)).sum()
        to_cosines = to_logits * scale
        return (to_embeddings + _product(to_cosines, tile[1]), to_scale), _product(to_cosines.T, embeddings)

    start = (jnp.zeros_like(embeddings), jnp.zeros_like(scale))
    (to_embeddings, to_scale), to_tiles = jax.lax.scan(add_tile, start, _tiles(vectors, settings.tile_classes))
    to_vectors = to_tiles.reshape(-1, vectors.shape[1])[: vectors.shape[0]]
    return (
        jax.lax.psum_scatter(to_embeddings, MODEL_AXIS, tiled=True),
        jax.lax.psum(to_vectors, DATA_AXIS),
        jax.lax.psum(to_scale, (DATA_AXIS, MODEL_AXIS)),
    )


def _logits(
    settings: _Settings,
    embeddings: jax.Array,
    labels: jax.Array,
    scale: jax.Array,
    shard_rows: int,
    start: jax.Array,
    tile: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns, each [B, T]: the logits of a tile whose first row is `start`, where the label is hit, the cosines."""
    row = start + jnp.arange(tile.shape[0])
    class_id = jax.lax.axis_index(MODEL_AXIS) * shard_rows + row
    exists = ((row < shard_rows) & (class_id < settings.num_classes))[None, :]
    hit = (labels[:, None] == class_id[None, :]) & exists
    cosines = _product(embeddings, tile.T)
    logits = scale * (cosines - jnp.where(hit, settings.margin, 0.0))
    return jnp.where(exists, logits, _MASKED), hit, cosines


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the matrix product; on TPU with three passes of bfloat16 (one is too coarse, six are too slow)."""
    product: jax.Array = jnp.matmul(left, right, precision=jax.lax.Precision.HIGH)
    return product


def _gathered(values: jax.Array) -> jax.Array:
    """Returns the rows of all devices along `model`, of which each device then holds a copy."""
    rows: jax.Array = jax.lax.all_gather(values, MODEL_AXIS, tiled=True)
    return rows


def _tiles(vectors: jax.Array, tile_classes: int) -> tuple[jax.Array, jax.Array]:
    """Returns each tile's first row, int32 [N], and the tiles [N, T, D]; the last tile is padded with zeros."""
    size = min(tile_classes, vectors.shape[0])
    count = -(-vectors.shape[0] // size)
    filled = jnp.pad(vectors, ((0, count * size - vectors.shape[0]), (0, 0)))
    return jnp.arange(count) * size, filled.reshape(count, size, vectors.shape[1])
