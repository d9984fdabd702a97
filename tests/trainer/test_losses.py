import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from trainer.losses.contrastive import contrastive_loss
from trainer.losses.softmax import sharded_softmax
from trainer.mesh import batch_sharding, make_mesh
from trainer.models.classifier import padded

MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
BATCH, DIM = 16, 5


def inputs(num_classes, num_model):
    keys = jax.random.split(jax.random.key(0), 3)
    embeddings = jax.random.normal(keys[0], (BATCH, DIM))
    vectors = jax.random.normal(keys[1], (num_classes, DIM))
    vectors = jnp.pad(vectors, ((0, padded(num_classes, num_model) - num_classes), (0, 0)))
    return embeddings, vectors, jnp.float32(3.0), jax.random.randint(keys[2], (BATCH,), 0, num_classes)


def naive_softmax(embeddings, vectors, scale, labels, num_classes, margin):
    hit = jax.nn.one_hot(labels, num_classes)
    logits = scale * (embeddings @ vectors[:num_classes].T - margin * hit)
    return -(jax.nn.log_softmax(logits) * hit).sum(axis=1).mean()


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("num_classes", [16, 13, 3])
def test_sharded_softmax_equals_the_naive_one_in_value_and_gradient(mesh, num_classes):
    arguments = inputs(num_classes, mesh[1])
    loss = sharded_softmax(make_mesh(*mesh), num_classes=num_classes, margin=0.2, tile_classes=3)
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arguments)
    naive = jax.jit(jax.value_and_grad(naive_softmax, argnums=(0, 1, 2)), static_argnums=(4, 5))
    expected, expected_gradients = naive(*arguments, num_classes, 0.2)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_sharded_softmax_of_one_row_equals_the_hand_computed_value():
    embeddings = jnp.asarray([[1.0, 0.0]])
    vectors = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    loss = sharded_softmax(make_mesh(1, 1), num_classes=2, tile_classes=4096)
    value = loss(embeddings, vectors, jnp.float32(2.0), jnp.asarray([0]))
    assert float(value) == pytest.approx(math.log(1 + math.exp(-2)))


def test_each_row_is_stabilised_by_its_own_largest_logit():
    # The logits are 100 and 90 in row 0, and -100 and -90 in row 1: beside a logit of 100, those of row 1 would vanish.
    embeddings = jnp.asarray([[1.0], [-1.0]])
    vectors = jnp.asarray([[1.0], [0.9]])
    loss = sharded_softmax(make_mesh(1, 1), num_classes=2, tile_classes=1)
    value = loss(embeddings, vectors, jnp.float32(100.0), jnp.asarray([0, 1]))
    assert float(value) == pytest.approx(math.log1p(math.exp(-10)), rel=0.1)  # float32 keeps 7 digits of 100


def test_class_vectors_and_their_gradient_stay_in_their_shards():
    mesh = make_mesh(2, 4)
    embeddings, vectors, scale, labels = inputs(1000, 4)
    placed = jax.device_put(vectors, NamedSharding(mesh, PartitionSpec("model")))
    gradient = jax.jit(jax.grad(sharded_softmax(mesh, num_classes=1000, tile_classes=100), argnums=1))
    compiled = gradient.lower(embeddings, placed, scale, labels).compile()
    assert f"f32[250,{DIM}]" in compiled.as_text()
    assert f"f32[1000,{DIM}]" not in compiled.as_text()
    of_vectors = compiled(embeddings, placed, scale, labels)
    assert {shard.data.shape for shard in of_vectors.addressable_shards} == {(250, DIM)}


def test_no_array_of_batch_by_classes_exists_forward_or_backward():
    num_classes, tile = 1000, 10
    embeddings, vectors, scale, labels = inputs(num_classes, 1)
    loss = sharded_softmax(make_mesh(1, 1), num_classes=num_classes, tile_classes=tile)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(embeddings, vectors, scale, labels).compile().as_text()
    assert f"[{BATCH},{tile}]" in text
    assert f"[{BATCH},{num_classes}]" not in text
    assert f"[{num_classes // tile},{BATCH},{tile}]" not in text


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


def precisions(function, *arguments):
    """The precisions of all matrix products of a function."""
    found = re.findall(r"dot_general\[.*?precision=(\S+, \S+|None)", str(jax.make_jaxpr(function)(*arguments)), re.S)
    assert found
    return set(found)


def test_matrix_products_of_the_losses_are_precise_on_every_platform():
    embeddings, vectors, scale, labels = inputs(16, 1)
    loss = sharded_softmax(make_mesh(1, 1), num_classes=16, tile_classes=8)
    high = "(Precision.HIGH, Precision.HIGH)"
    assert precisions(jax.grad(loss, argnums=(0, 1, 2)), embeddings, vectors, scale, labels) == {high}
    highest = "(Precision.HIGHEST, Precision.HIGHEST)"
    arguments = embeddings, embeddings, scale, labels[:, None], labels
    assert precisions(jax.grad(contrastive_loss, argnums=(0, 1)), *arguments) == {highest}
