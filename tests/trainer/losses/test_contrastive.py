import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.losses.contrastive import sharded_contrastive
from trainer.mesh import batch_sharding, make_mesh

MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
BATCH, DIM = 16, 5


@jax.jit
def contrastive_loss(*arguments):
    return sharded_contrastive(make_mesh(1, 1), tile_texts=3)(*arguments)


def test_contrastive_loss_of_two_pairs_equals_the_hand_computed_value():
    images = texts = jnp.eye(2)
    value = contrastive_loss(images, texts, jnp.float32(3.0), jnp.asarray([[0], [1]]), jnp.asarray([0, 1]))
    assert float(value) == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-6)


def test_two_images_of_one_entity_do_not_count_as_negatives_of_each_other():
    images = texts = jnp.eye(2)
    value = contrastive_loss(images, texts, jnp.float32(3.0), jnp.asarray([[7], [7]]), jnp.asarray([7, 7]))
    assert float(value) == pytest.approx(0, abs=1e-6)


def test_an_image_of_two_entities_does_not_count_as_negative_of_a_text_of_either():
    images = texts = jnp.eye(2)
    # Image 0 is of 5 and 6 and drew 5; text 1 is of 6. So row 0 has one logit, and column 1 has one; row 1 and
    # column 0 keep their negative: image 1 is of 6 alone, text 0 of 5.
    value = contrastive_loss(images, texts, jnp.float32(3.0), jnp.asarray([[5, 6], [6, -1]]), jnp.asarray([5, 6]))
    assert float(value) == pytest.approx(0.5 * math.log(1 + math.exp(-3)), rel=1e-6)


def test_a_pair_that_weighs_three_times_as_much_counts_three_times():
    # The cosines are 1 and 0 of image 0, and 1 / sqrt 2 twice of image 1. By rows, pair 0 has log(1 + e^-3) and pair 1
    # log 2; by columns, log(1 + e^(3 / sqrt 2 - 3)) and log(1 + e^(-3 / sqrt 2)).
    images, texts = jnp.asarray([[1.0, 0.0], [math.sqrt(0.5)] * 2]), jnp.eye(2)
    groups = jnp.arange(2)
    up = 3 / math.sqrt(2)
    first = (math.log1p(math.exp(-3)) + math.log1p(math.exp(up - 3))) / 2
    second = (math.log(2) + math.log1p(math.exp(-up))) / 2
    for weights in ([3.0, 1.0], [0.6, 0.2]):  # only their ratio counts
        arguments = images, texts, jnp.float32(3.0), groups[:, None], groups, jnp.asarray(weights)
        assert float(contrastive_loss(*arguments)) == pytest.approx((3 * first + second) / 4, rel=1e-6)


def test_weights_of_zero_give_a_loss_and_gradients_of_zero():
    images, groups = jnp.eye(2), jnp.arange(2)
    arguments = images, images, jnp.float32(3.0), groups[:, None], groups, jnp.zeros(2)
    value, gradients = jax.value_and_grad(contrastive_loss, argnums=(0, 1, 2))(*arguments)
    assert float(value) == 0 and all((gradient == 0).all() for gradient in gradients)


def naive(images, texts, scale, image_groups, text_groups, weights=None):
    own = jnp.eye(len(texts), dtype=bool)
    same = (image_groups[:, None, :] == text_groups[None, :, None]).any(axis=2) & ~own
    exponentials = jnp.where(same, 0.0, jnp.exp(scale * images @ texts.T))
    right = jnp.diag(exponentials)
    shares = jnp.log(right / exponentials.sum(axis=1)) + jnp.log(right / exponentials.sum(axis=0))
    return -jnp.average(shares, weights=weights) / 2


def twice(loss):
    """Value and gradients of twice the loss, so that the gradient that comes in is not 1."""
    return jax.jit(jax.value_and_grad(lambda *arguments: 2 * loss(*arguments), argnums=(0, 1, 2)))


naive_value_and_gradients = twice(naive)


# A tile of 16 holds all texts, tiles of 3 share rows with others, and 0 chooses.
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    ("tile_texts", "weighted"),
    [(0, False), (1, False), (3, False), (8, False), (15, False), (16, False), (3, True), (16, True)],
)
def test_contrastive_loss_is_the_naive_one_in_value_and_gradient(mesh, tile_texts, weighted):
    random = np.random.default_rng(1)
    images, texts = (random.normal(size=(BATCH, DIM)).astype(np.float32) for _ in range(2))
    classes = [random.choice(6, random.integers(1, 4), replace=False).tolist() for _ in range(BATCH)]
    image_groups = np.asarray([(own + [-1, -1, -1])[:3] for own in classes], np.int32)
    text_groups = np.asarray([own[0] for own in classes], np.int32)
    scale = jnp.float32(1.5)
    rows = batch_sharding(make_mesh(*mesh))
    placed = [jax.device_put(value, rows) for value in (images, texts)]
    others = [image_groups, text_groups]
    if weighted:
        others.append(random.uniform(0, 2, BATCH).astype(np.float32) * (np.arange(BATCH) % 5 > 0))  # some are zero
    loss = twice(sharded_contrastive(make_mesh(*mesh), tile_texts=tile_texts))
    value, gradients = loss(*placed, scale, *(jax.device_put(value, rows) for value in others))
    expected, expected_gradients = naive_value_and_gradients(images, texts, scale, *others)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_logits_of_a_hundred_and_of_minus_a_hundred_do_not_overflow():
    # The logits are 100 and -100 in row 0, and -100 and 100 in row 1.
    images, groups = jnp.asarray([[1.0], [-1.0]]), jnp.arange(2)
    value = contrastive_loss(images, images, jnp.float32(100.0), groups[:, None], groups)
    assert float(value) == 0  # log(1 + e^-200)
    value = contrastive_loss(images, -images, jnp.float32(100.0), groups[:, None], groups)
    assert float(value) == 200


def test_temporaries_of_a_large_batch_are_a_twentieth_of_the_naive_ones():
    batch, dim, floats, ints = 8192, 512, jnp.float32, jnp.int32
    kinds = [((batch, dim), floats), ((batch, dim), floats), ((), floats), ((batch, 8), ints), ((batch,), ints)]
    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in kinds]
    ours, expected = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile().memory_analysis()
        for loss in (sharded_contrastive(make_mesh(1, 1)), naive)
    )
    assert ours.temp_size_in_bytes <= 0.05 * expected.temp_size_in_bytes


# 8 MiB hold 256 texts' logits of 8,192 images. Of 100,000 images they hold 20, fewer than the least tile.
@pytest.mark.parametrize(
    ("batch", "settings", "tile"),
    [(16, {"tile_texts": 3}, 3), (16, {}, 16), (8192, {}, 256), (100_000, {}, 128), (100_000, {"tile_texts": 64}, 64)],
)
def test_logits_of_one_tile_are_in_memory_forward_and_backward(batch, settings, tile):
    kinds = [((batch, DIM), jnp.float32)] * 2 + [((), jnp.float32), ((batch, 1), jnp.int32), ((batch,), jnp.int32)]
    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in kinds]
    loss = sharded_contrastive(make_mesh(1, 1), **settings)
    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*shapes))
    # Each of the two passes computes them; the backward pass has two products of other shapes more.
    of_logits = re.findall(rf"f32\[(\d+),{batch}\] = dot_general", program)
    assert of_logits == [str(tile)] * 2


def test_matrix_products_are_precise_on_every_platform():
    values, groups = jnp.ones((BATCH, DIM)), jnp.arange(BATCH)
    arguments = values, values, jnp.float32(3.0), groups[:, None], groups
    text = str(jax.make_jaxpr(jax.grad(contrastive_loss, argnums=(0, 1)))(*arguments))
    found = re.findall(r"dot_general\[.*?precision=(\S+, \S+|None)", text, re.S)
    assert set(found) == {"(Precision.HIGHEST, Precision.HIGHEST)"}
