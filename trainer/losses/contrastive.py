"""Symmetric InfoNCE between the images and the texts of the whole batch.

Each device compares its own images with the texts of all devices, one tile of texts at a time; the backward pass
computes the logits again. So there is no matrix of batch x batch on any device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.losses.collectives import DEVICES, gathered, summed_and_split
from trainer.losses.tiles import add_exponents, num_tiles, power_of_two, tile_rows
from trainer.losses.weights import shares

_MASKED = -1e30
TILE_BYTES = 8 * 2**20  # ours: of a tile's logits
_LEAST_TILE = 128  # ours: texts; with fewer, a product would mostly wait for the images

_Residuals = tuple[jax.Array | None, ...]  # the loss's arguments, and the log-sum-exps of images and texts
ContrastiveLoss = Callable[..., jax.Array]


def sharded_contrastive(mesh: Mesh, *, tile_texts: int = 0) -> ContrastiveLoss:
    """Returns loss(images, texts, scale, image_groups, text_groups, weights=None), differentiable in the first three.

    The loss is the mean of the image-to-text and the text-to-image cross-entropy over the whole batch. It takes

        images: float32 [B, D], L2-normalised.
        texts: float32 [B, D], L2-normalised; row i belongs to image i.
        scale: float32 [], above 0; logits are `scale * cosine`.
        image_groups: int32 [B, G], the groups (entities, or texts) of each image, padded with -1. An image and another
            row's text that is of one of its groups do not count as negatives of each other, in either direction.
        text_groups: int32 [B], the group of each text; not negative.
        weights: float32 [B], not negative, of the pairs: the mean is `sum(weight * cross-entropy) / sum(weight)`, and 0
            where all weights are. As a negative of others, a pair counts whatever it weighs. None: all are equal.

    all but the scale sharded over all devices on axis 0, and returns float32 [], in nats, replicated.

    Args:
        mesh: has the axes `data` and `model`.
        tile_texts: how many texts' logits are in memory at once, per device; 0: chosen by the rows of a device.
    """
    rows, whole = P(DEVICES), P()
    # The check needs each carry of a loop to vary over the axes from the start, as the zeros here do not.
    on_devices = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    inputs = (rows, rows, whole, rows, rows, rows)
    sharded_forward = on_devices(
        functools.partial(_forward, tile_texts), in_specs=inputs, out_specs=(whole, rows, whole)
    )
    sharded_backward = on_devices(
        functools.partial(_backward, tile_texts), in_specs=(*inputs, rows, whole, whole), out_specs=(rows, rows, whole)
    )

    @jax.custom_vjp
    def loss(*arguments: jax.Array | None) -> jax.Array:
        value: jax.Array = sharded_forward(*arguments)[0]
        return value

    def loss_forward(*arguments: jax.Array | None) -> tuple[jax.Array, _Residuals]:
        value, *log_sums = sharded_forward(*arguments)
        return value, (*arguments, *log_sums)

    def loss_backward(residuals: _Residuals, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        # Groups and weights have no gradient.
        return *sharded_backward(*residuals, cotangent), None, None, None

    loss.defvjp(loss_forward, loss_backward)

    def loss_of(
        images: jax.Array,
        texts: jax.Array,
        scale: jax.Array,
        image_groups: jax.Array,
        text_groups: jax.Array,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        value: jax.Array = loss(images, texts, scale, image_groups, text_groups, weights)
        return value

    return loss_of


def _forward(
    tile_texts: int,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    image_groups: jax.Array,
    text_groups: jax.Array,
    weights: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the mean loss, the log-sum-exp of each of one device's images, and that of each text of the batch."""
    right = scale * (images * texts).sum(axis=1)
    texts, text_groups = gathered(texts), gathered(text_groups)
    size, count = _tiling(tile_texts, images, texts)

    def add_tile(number: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        image_largest, image_total, text_largest, text_total = sums
        rows, _, logits, _ = _tile(number, size, images, texts, scale, image_groups, text_groups)
        image_largest, image_total = add_exponents(image_largest, image_total, logits)
        largest = logits.max(axis=1)
        of_texts = jnp.exp(logits - largest[:, None]).sum(axis=1)
        return (
            image_largest,
            image_total,
            jax.lax.dynamic_update_slice_in_dim(text_largest, largest, rows[0], axis=0),
            jax.lax.dynamic_update_slice_in_dim(text_total, of_texts, rows[0], axis=0),
        )

    of_images, of_texts = jnp.zeros(len(images)), jnp.zeros(len(texts))
    start = (of_images + _MASKED, of_images, of_texts, of_texts)
    image_largest, image_total, text_largest, text_total = jax.lax.fori_loop(0, count, add_tile, start)
    image_log_sum = image_largest + jnp.log(image_total)
    largest_of_all = jax.lax.pmax(text_largest, DEVICES)
    text_total = jax.lax.psum(text_total * jnp.exp(text_largest - largest_of_all), DEVICES)
    text_log_sum = largest_of_all + jnp.log(text_total)
    share = shares(weights, len(texts))
    of_all_images = jax.lax.psum((_own_rows(share, len(images)) * (image_log_sum - 2 * right)).sum(), DEVICES)
    return (of_all_images + (share * text_log_sum).sum()) / 2, image_log_sum, text_log_sum


def _backward(
    tile_texts: int,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    image_groups: jax.Array,
    text_groups: jax.Array,
    weights: jax.Array | None,
    image_log_sum: jax.Array,
    text_log_sum: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of the mean loss: of one device's images, of its texts, and of the scale."""
    texts, text_groups = gathered(texts), gathered(text_groups)
    size, count = _tiling(tile_texts, images, texts)
    share = scale * cotangent / 2 * shares(weights, len(texts))
    image_share = _own_rows(share, len(images))[None]

    def add_tile(number: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        to_images, to_texts = sums
        rows, tile, logits, own = _tile(number, size, images, texts, scale, image_groups, text_groups)
        log_sum = jax.lax.dynamic_slice_in_dim(text_log_sum, rows[0], size)
        text_share = _from_row(share, rows[0], size)
        to_logits = image_share * (jnp.exp(logits - image_log_sum[None]) - jnp.where(own, 2.0, 0.0))
        to_logits += text_share[:, None] * jnp.exp(logits - log_sum[:, None])
        to_tile = _product(to_logits, images)
        return (
            to_images + _product(to_logits.T, tile),
            jax.lax.dynamic_update_slice_in_dim(to_texts, to_tile, rows[0], axis=0),
        )

    start = (jnp.zeros_like(images), jnp.zeros_like(texts))
    to_images, to_texts = jax.lax.fori_loop(0, count, add_tile, start)
    to_scale = jax.lax.psum((to_images * images).sum(), DEVICES) / scale
    return to_images, summed_and_split(to_texts), to_scale


def _own_rows(share: jax.Array, count: int) -> jax.Array:
    """Returns the shares of the `count` rows of a device, as `_from_row` does."""
    return _from_row(share, jax.lax.axis_index(DEVICES) * count, count)


def _from_row(share: jax.Array, row: jax.Array, count: int) -> jax.Array:
    """Returns the shares of `count` rows from `row` on, float32 [count]; [1] if all rows have the same."""
    return share if len(share) == 1 else jax.lax.dynamic_slice_in_dim(share, row, count)


def _tiling(tile_texts: int, images: jax.Array, texts: jax.Array) -> tuple[int, int]:
    """Returns the texts of a tile, and how many tiles there are."""
    chosen = max(_LEAST_TILE, power_of_two(TILE_BYTES // (4 * len(images))))
    size = min(tile_texts or chosen, len(texts))
    return size, num_tiles(len(texts), size)


def _tile(
    number: jax.Array,
    size: int,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    image_groups: jax.Array,
    text_groups: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns a tile of the texts: its rows [T], the texts [T, D], the logits [T, b], and which pairs belong together.

    b are the images of one device.
    """
    rows, counted = tile_rows(number, size, len(texts))
    tile = jax.lax.dynamic_slice_in_dim(texts, rows[0], size)
    groups = jax.lax.dynamic_slice_in_dim(text_groups, rows[0], size)
    image_rows = jax.lax.axis_index(DEVICES) * len(images) + jnp.arange(len(images))
    own = rows[:, None] == image_rows[None]
    left_out = jnp.zeros_like(own)
    for of_images in image_groups.T:
        left_out |= groups[:, None] == of_images[None]
    left_out = (left_out & ~own) | ~counted[:, None]
    logits = jnp.where(left_out, _MASKED, scale * _product(tile, images.T))
    return rows, tile, logits, own & counted[:, None]


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the matrix product; at default precision, accelerators would round the factors to bfloat16 or TF32."""
    product: jax.Array = jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
    return product
