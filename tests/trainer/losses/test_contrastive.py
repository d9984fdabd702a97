import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.losses.contrastive import contrastive_loss
from trainer.mesh import batch_sharding, make_mesh

MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
BATCH, DIM = 16, 5


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


@pytest.mark.parametrize("mesh", MESHES)
def test_contrastive_loss_is_the_naive_one_on_every_mesh_in_value_and_gradient(mesh):
    random = np.random.default_rng(1)
    images, texts = (random.normal(size=(BATCH, DIM)).astype(np.float32) for _ in range(2))
    classes = [random.choice(6, random.integers(1, 4), replace=False).tolist() for _ in range(BATCH)]
    image_groups = np.asarray([(own + [-1, -1, -1])[:3] for own in classes], np.int32)
    text_groups = np.asarray([own[0] for own in classes], np.int32)

    same = np.asarray([[i != j and text_groups[j] in classes[i] for j in range(BATCH)] for i in range(BATCH)])

    def naive(images, texts, scale):
        exponentials = jnp.where(same, 0.0, jnp.exp(scale * images @ texts.T))
        right = jnp.diag(exponentials)
        shares = jnp.log(right / exponentials.sum(axis=1)) + jnp.log(right / exponentials.sum(axis=0))
        return -shares.mean() / 2

    scale = jnp.float32(1.5)
    rows = batch_sharding(make_mesh(*mesh))
    placed = [jax.device_put(value, rows) for value in (images, texts)]
    groups = [jax.device_put(value, rows) for value in (image_groups, text_groups)]
    loss = jax.jit(jax.value_and_grad(contrastive_loss, argnums=(0, 1, 2)))
    value, gradients = loss(*placed, scale, *groups)
    expected, expected_gradients = jax.jit(jax.value_and_grad(naive, argnums=(0, 1, 2)))(images, texts, scale)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_matrix_products_are_precise_on_every_platform():
    values, groups = jnp.ones((BATCH, DIM)), jnp.arange(BATCH)
    arguments = values, values, jnp.float32(3.0), groups[:, None], groups
    text = str(jax.make_jaxpr(jax.grad(contrastive_loss, argnums=(0, 1)))(*arguments))
    found = re.findall(r"dot_general\[.*?precision=(\S+, \S+|None)", text, re.S)
    assert set(found) == {"(Precision.HIGHEST, Precision.HIGHEST)"}
