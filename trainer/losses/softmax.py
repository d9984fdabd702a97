"""Softmax over very many classes, all or a sample, whose vectors are sharded by rows over all devices of the mesh.

Each device gathers the embeddings of the whole batch and compares them with its own class vectors, one tile of them at
a time; the backward pass computes the logits again. So there is no tensor of batch x classes and no normalised copy of
the class vectors, and nothing of their size is sent. (A scan alone would save nothing: autodiff keeps every tile.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.losses.collectives import DEVICES, gathered, summed_and_split
from trainer.losses.tiles import add_exponents, add_exponents_at_once, num_tiles, power_of_two, tile_rows
from trainer.losses.weights import shares

_MASKED = -1e30  # finite, so that a shard that holds only padding gives no NaN
# Ours, of a tile's logits and class vectors together: on a CPU what its caches hold. On an H200, tiles of half as many
# classes made the loss take a twentieth more time, because many small kernels run for each tile; no TPU was measured.
_CPU_TILE_BYTES, _ACCELERATOR_TILE_BYTES = 8 * 2**20, 2**30
_LEAST_TILE = 1024  # ours: with fewer classes, a product would mostly wait for the embeddings of a large batch
_LARGEST_TILE = 65_536  # ours: 1,024 embeddings took 3 % less time with it than with half of it
_LEAST_SQUARE = 1e-12  # a class vector shorter than its root is not stretched to length 1

_Residuals = tuple[jax.Array | None, ...]  # the loss's arguments, each row's log-sum-exp, and the logit of its label
LossFunction = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    num_classes: int
    tile_classes: int
    margin: float
    dtype: str
    platform: str


def chosen_tile(batch_size: int, dim: int, platform: str) -> int:
    """Returns how many classes a tile has, a power of two: the larger the batch, the fewer.

    Args:
        batch_size: rows of the whole batch, which each device compares with its class vectors.
        dim: of the embeddings.
        platform: of the devices, as JAX names it.
    """
    most = _CPU_TILE_BYTES if platform == "cpu" else _ACCELERATOR_TILE_BYTES
    return min(_LARGEST_TILE, max(_LEAST_TILE, power_of_two(most // (4 * (batch_size + dim)))))


def sharded_softmax(
    mesh: Mesh, *, num_classes: int, tile_classes: int = 0, margin: float = 0.0, dtype: str = "float32"
) -> LossFunction:
    """Returns loss(embeddings, class_vectors, scale, labels, class_ids=None, weights=None) -> mean cross-entropy.

    The logit of class c is `scale * (embedding . vector_c / |vector_c| - margin * [c is the label])`. The loss takes

        embeddings: float32 [B, D], sharded over all devices on axis 0.
        class_vectors: float32 [C', D], of any length, sharded over all devices on axis 0. C' is `num_classes` rounded
            up to a multiple of the number of devices, or more; the added rows are padding, and their gradient is zero.
        scale: float32 [].
        labels: int32 [B] in [0, num_classes), sharded as the embeddings are.

        class_ids: int32 [C'], the class of each class vector, -1 where a row holds none, sharded as they are; no class
            twice, and each label once. None: row c is class c.
        weights: float32 [B], not negative, sharded as the embeddings are: the mean is
            `sum(weight * cross-entropy) / sum(weight)`, and 0 where all weights are. None: all are equal.

    It returns float32 [], in nats, replicated, and is differentiable in the first three.

    Args:
        mesh: has the axes `data` and `model`.
        num_classes: C, without padding; at least 2.
        tile_classes: how many classes' logits are in memory at once, per device; 0: as `chosen_tile` says.
        margin: is subtracted from the cosine of the label's class.
        dtype: of the factors of the matrix products, "float32" or "bfloat16"; they are summed in float32.

    Raises:
        ValueError: there are fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"a softmax over {num_classes} classes has nothing to tell apart; it needs at least 2")
    rows, whole = P(DEVICES), P()
    settings = _Settings(
        num_classes=num_classes,
        tile_classes=tile_classes,
        margin=margin,
        dtype=dtype,
        platform=mesh.devices.flat[0].platform,
    )
    # The check needs each carry of a loop to vary over the axes from the start, as the zeros here do not.
    on_devices = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    inputs = (rows, rows, whole, rows, rows, rows)
    sharded_forward = on_devices(
        functools.partial(_forward, settings), in_specs=inputs, out_specs=(whole, whole, whole)
    )
    sharded_backward = on_devices(
        functools.partial(_backward, settings),
        in_specs=(*inputs, whole, whole, whole),
        out_specs=(rows, rows, whole),
    )

    @jax.custom_vjp
    def loss(*arguments: jax.Array | None) -> jax.Array:
        value: jax.Array = sharded_forward(*arguments)[0]
        return value

    def loss_forward(*arguments: jax.Array | None) -> tuple[jax.Array, _Residuals]:
        value, log_sum, right = sharded_forward(*arguments)
        return value, (*arguments, log_sum, right)

    def loss_backward(residuals: _Residuals, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        # Labels, ids and weights have no gradient.
        return *sharded_backward(*residuals, cotangent), None, None, None

    loss.defvjp(loss_forward, loss_backward)

    def loss_of(
        embeddings: jax.Array,
        class_vectors: jax.Array,
        scale: jax.Array,
        labels: jax.Array,
        class_ids: jax.Array | None = None,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        value: jax.Array = loss(embeddings, class_vectors, scale, labels, class_ids, weights)
        return value

    return loss_of


def _forward(
    settings: _Settings,
    embeddings: jax.Array,
    vectors: jax.Array,
    scale: jax.Array,
    labels: jax.Array,
    class_ids: jax.Array | None,
    weights: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the mean loss, and of each row of the batch the log-sum-exp and the logit of its label."""
    embeddings, labels = gathered(embeddings), gathered(labels)
    size, count = _tiling(settings, embeddings, vectors)
    add = add_exponents_at_once if settings.platform == "gpu" else add_exponents

    def add_tile(number: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        largest, total, right = sums
        tile = _tile(settings, number, size, embeddings, vectors, scale, labels, class_ids)
        largest, total = add(largest, total, tile.logits)
        return largest, total, jnp.maximum(right, _label_logits(tile, labels, class_ids, len(vectors)))

    empty = jnp.zeros(len(embeddings))
    largest, total, right = jax.lax.fori_loop(0, count, add_tile, (empty + _MASKED, empty, empty + _MASKED))
    largest_of_all = jax.lax.pmax(largest, DEVICES)
    total = jax.lax.psum(total * jnp.exp(largest - largest_of_all), DEVICES)
    log_sum = largest_of_all + jnp.log(total)
    right = jax.lax.pmax(right, DEVICES)
    return (shares(weights, len(labels)) * (log_sum - right)).sum(), log_sum, right


def _label_logits(tile: _Tile, labels: jax.Array, class_ids: jax.Array | None, num_rows: int) -> jax.Array:
    """Returns the logits of the labels that a tile counts, float32 [B], and -1e30 for the others.

    Args:
        tile: of one device's class vectors.
        labels: int32 [B].
        class_ids: int32 [num_rows], of the device's class vectors; None: they follow each other.
        num_rows: of the device's class vectors.
    """
    if class_ids is not None:  # then all logits are read again
        return jnp.where(tile.hit, tile.logits, _MASKED).max(axis=0)
    rows = labels - jax.lax.axis_index(DEVICES) * num_rows - tile.start
    here = (0 <= rows) & (rows < len(tile.logits))
    # A row that two tiles share has its logit in the one that counts it, and -1e30 in the other.
    return jnp.where(here, tile.logits[jnp.clip(rows, 0, len(tile.logits) - 1), jnp.arange(len(rows))], _MASKED)


def _backward(
    settings: _Settings,
    embeddings: jax.Array,
    vectors: jax.Array,
    scale: jax.Array,
    labels: jax.Array,
    class_ids: jax.Array | None,
    weights: jax.Array | None,
    log_sum: jax.Array,
    right: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of the mean loss: of one device's rows, of its class vectors, and of the scale."""
    own_embeddings = embeddings
    embeddings, labels = gathered(embeddings), gathered(labels)
    size, count = _tiling(settings, embeddings, vectors)
    share = cotangent * shares(weights, len(labels))

    def add_tile(number: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        to_embeddings, to_vectors = sums
        tile = _tile(settings, number, size, embeddings, vectors, scale, labels, class_ids)
        to_logits = jnp.exp(tile.logits - log_sum[None]) - jnp.where(tile.hit, 1.0, 0.0)
        # Without the scale, and rounded once, so that what is taken away below is of the factors that are multiplied.
        to_products = (to_logits * (share[None] * tile.inverse_norm)).astype(settings.dtype)
        # The length of a vector changes no logit: the part of the gradient along the vector is taken away.
        along = (to_products.astype(jnp.float32) * tile.products).sum(axis=1, keepdims=True) * tile.shrink
        to_tile = scale * (_product(settings, to_products, embeddings) - along * tile.vectors)
        to_embeddings += _product(settings, to_products.T, tile.vectors)
        return to_embeddings, jax.lax.dynamic_update_slice_in_dim(to_vectors, to_tile, tile.start, axis=0)

    nothing = (jnp.zeros_like(embeddings), jnp.zeros_like(vectors))
    to_embeddings, to_vectors = jax.lax.fori_loop(0, count, add_tile, nothing)
    to_embeddings = summed_and_split(to_embeddings)
    to_scale = jax.lax.psum((to_embeddings * own_embeddings).sum(), DEVICES)
    to_scale -= settings.margin * (share * (jnp.exp(right - log_sum) - 1.0)).sum()
    return scale * to_embeddings, to_vectors, to_scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tile:
    start: jax.Array  # its first row among those of the device
    vectors: jax.Array  # [T, D]
    inverse_norm: jax.Array  # [T, 1]
    shrink: jax.Array  # [T, 1], the derivative's factor: inverse_norm squared, or 0 where the length is not changed
    hit: jax.Array  # [T, B], where a row of the batch has its label
    products: jax.Array  # [T, B], of vectors and embeddings
    logits: jax.Array  # [T, B]


def _tiling(settings: _Settings, embeddings: jax.Array, vectors: jax.Array) -> tuple[int, int]:
    """Returns the rows of a tile, and how many tiles there are."""
    size = min(
        settings.tile_classes or chosen_tile(len(embeddings), embeddings.shape[1], settings.platform), vectors.shape[0]
    )
    return size, num_tiles(vectors.shape[0], size)


def _tile(
    settings: _Settings,
    number: jax.Array,
    size: int,
    embeddings: jax.Array,
    vectors: jax.Array,
    scale: jax.Array,
    labels: jax.Array,
    class_ids: jax.Array | None,
) -> _Tile:
    """Returns a tile of one device's class vectors."""
    num_rows = vectors.shape[0]
    rows, counted = tile_rows(number, size, num_rows)
    if class_ids is None:
        class_id = jax.lax.axis_index(DEVICES) * num_rows + rows
    else:
        class_id = jax.lax.dynamic_slice_in_dim(class_ids, rows[0], size)
    exists = (counted & (0 <= class_id) & (class_id < settings.num_classes))[:, None]
    hit = (class_id[:, None] == labels[None]) & exists

    tile = jax.lax.dynamic_slice_in_dim(vectors, rows[0], size)
    square = (tile * tile).sum(axis=1, keepdims=True)
    inverse_norm = jax.lax.rsqrt(jnp.maximum(square, _LEAST_SQUARE))
    products = _product(settings, tile, embeddings.T)
    logits = products * (scale * inverse_norm) + jnp.where(exists, 0.0, _MASKED)
    if settings.margin:
        logits -= jnp.where(hit, scale * settings.margin, 0.0)
    return _Tile(
        start=rows[0],
        vectors=tile,
        inverse_norm=inverse_norm,
        shrink=jnp.where(square > _LEAST_SQUARE, inverse_norm * inverse_norm, 0.0),
        hit=hit,
        products=products,
        logits=logits,
    )


def _product(settings: _Settings, left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the matrix product in float32.

    Factors in float32 are multiplied on TPU with three passes of bfloat16: one is too coarse, six are too slow.
    """
    left, right = left.astype(settings.dtype), right.astype(settings.dtype)
    product: jax.Array = jnp.matmul(left, right, precision=jax.lax.Precision.HIGH, preferred_element_type=jnp.float32)
    return product
