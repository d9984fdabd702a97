import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from trainer.losses import softmax
from trainer.losses.softmax import chosen_tile, sharded_softmax
from trainer.losses.tiles import add_exponents_at_once
from trainer.mesh import batch_sharding, make_mesh
from trainer.models.classifier import padded

MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
BATCH, DIM = 16, 5


def inputs(num_classes, num_devices):
    keys = jax.random.split(jax.random.key(0), 3)
    embeddings = jax.random.normal(keys[0], (BATCH, DIM))
    vectors = jax.random.normal(keys[1], (num_classes, DIM))
    vectors = jnp.pad(vectors, ((0, padded(num_classes, num_devices) - num_classes), (0, 0)))
    return embeddings, vectors, jnp.float32(3.0), jax.random.randint(keys[2], (BATCH,), 0, num_classes)


def weights_of_rows():
    weights = jax.random.uniform(jax.random.key(1), (BATCH,))
    return jnp.where(jnp.arange(BATCH) % 5 == 0, 0, weights)  # some are zero


def naive_softmax(embeddings, vectors, scale, labels, num_classes, margin, weights=None):
    hit = jax.nn.one_hot(labels, num_classes)
    units = vectors[:num_classes] / jnp.linalg.norm(vectors[:num_classes], axis=1, keepdims=True)
    logits = scale * (embeddings @ units.T - margin * hit)
    return -jnp.average((jax.nn.log_softmax(logits) * hit).sum(axis=1), weights=weights)


naive_value_and_gradients = jax.jit(
    jax.value_and_grad(lambda *arguments: 2 * naive_softmax(*arguments), argnums=(0, 1, 2)), static_argnums=(4, 5)
)


def compared(mesh, num_classes, tile_classes, margin=0.2, dtype="float32", weights=None):
    """Value and gradients of twice the loss, so that the gradient that comes in is not 1: ours and the naive one's."""
    arguments = inputs(num_classes, mesh[0] * mesh[1])
    loss = sharded_softmax(
        make_mesh(*mesh), num_classes=num_classes, margin=margin, tile_classes=tile_classes, dtype=dtype
    )
    ours = jax.jit(jax.value_and_grad(lambda *them: 2 * loss(*them), argnums=(0, 1, 2)))(*arguments, None, weights)
    return ours, naive_value_and_gradients(*arguments, num_classes, margin, weights)


# 16 classes need no padding; 61 and 13 do, and tiles of 3 share rows with others; of 3 classes, at least five of eight
# devices hold only padding.
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("num_classes", "weighted"), [(16, False), (61, False), (13, False), (3, False), (13, True)])
def test_sharded_softmax_equals_the_naive_one_in_value_and_gradient(mesh, num_classes, weighted):
    weights = weights_of_rows() if weighted else None
    (value, gradients), (expected, expected_gradients) = compared(mesh, num_classes, 3, weights=weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)])
def test_logits_that_are_read_once_as_on_a_gpu_give_the_same_loss_and_gradient(mesh, monkeypatch):
    expected = compared(mesh, 61, 3)[0]
    monkeypatch.setattr(softmax, "add_exponents", add_exponents_at_once)
    for ours, of_two_readings in zip(*map(jax.tree.leaves, (compared(mesh, 61, 3)[0], expected)), strict=True):
        np.testing.assert_allclose(ours, of_two_readings, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)])
def test_class_ids_say_which_classes_are_compared(mesh):
    class_ids = np.asarray([40, -1, 7, 3, -1, -1, 60, 0, 12, 13, -1, 33, 59, 1, 2, 21], np.int32)
    embeddings, vectors, scale, _ = inputs(16, 1)
    rows = np.arange(16)[class_ids >= 0]
    labels = np.resize([40, 21, 0, 60, 33], BATCH)
    places = np.asarray([class_ids[rows].tolist().index(label) for label in labels])
    expected, of_expected = naive_value_and_gradients(embeddings, vectors[rows], scale, places, len(rows), 0.2)
    loss = sharded_softmax(make_mesh(*mesh), num_classes=61, margin=0.2, tile_classes=3)
    ours = jax.jit(jax.value_and_grad(lambda *them: 2 * loss(*them), argnums=(0, 1, 2)))
    value, (to_embeddings, to_vectors, to_scale) = ours(embeddings, vectors, scale, labels, class_ids)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(to_embeddings, of_expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(to_vectors[rows], of_expected[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(to_scale, of_expected[2], rtol=1e-4, atol=1e-6)
    assert not np.delete(to_vectors, rows, axis=0).any()


@pytest.mark.parametrize("tile_classes", [0, 1, 2, 7, 12, 13, 14])
def test_a_tile_of_any_size_gives_the_same_loss_and_gradient(tile_classes):
    (value, gradients), (expected, expected_gradients) = compared((1, 1), 13, tile_classes)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_factors_in_bfloat16_are_summed_in_float32():
    # bfloat16 keeps 8 bits, so a factor is off by 2^-9 of itself at most; the sum of 5 products is not rounded again.
    (value, gradients), (expected, expected_gradients) = compared((2, 4), 61, 3, dtype="bfloat16")
    assert 1e-7 < abs(value - expected) / expected < 2**-8
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == jnp.float32
        error = np.abs(gradient - expected_gradient).max() / np.abs(expected_gradient).max()
        assert 1e-6 < error < 2**-6


def test_both_factors_of_each_product_are_in_bfloat16():
    loss = sharded_softmax(make_mesh(1, 1), num_classes=16, dtype="bfloat16")
    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*inputs(16, 1)))
    kinds = dict(re.findall(r"(\w+):(\w+)\[", program))
    factors = re.findall(r"dot_general\[.*?\] (\w+) (\w+)", program, re.S)
    assert [(kinds[left], kinds[right]) for left, right in factors] == [("bf16", "bf16")] * 4


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 1e-5), ("bfloat16", 5e-3)])
def test_the_gradient_of_a_class_vector_is_orthogonal_to_it_up_to_the_rounding_of_the_factors(dtype, largest):
    # Embeddings near the vectors of their classes, where little of a gradient is left. Its part along the vector was
    # 1.2e-2 of it where the factors were rounded for the products alone.
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 64)).astype(np.float32)
    labels = random.integers(300, size=64)
    embeddings = vectors[labels] / np.linalg.norm(vectors[labels], axis=1, keepdims=True)
    embeddings += 0.1 / 8 * random.normal(size=embeddings.shape).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    loss = sharded_softmax(make_mesh(1, 1), num_classes=300, tile_classes=64, dtype=dtype)
    gradient = np.asarray(jax.jit(jax.grad(loss, argnums=1))(embeddings, vectors, 16.0, labels))[labels]
    along = np.abs((gradient * vectors[labels]).sum(axis=1))
    lengths = np.linalg.norm(gradient, axis=1) * np.linalg.norm(vectors[labels], axis=1)
    assert (along / lengths).mean() < largest


def test_sharded_softmax_of_one_row_equals_the_hand_computed_value():
    embeddings = jnp.asarray([[1.0, 0.0]])
    vectors = jnp.asarray([[0.1, 0.0], [0.0, 70.0]])  # their lengths do not count
    loss = sharded_softmax(make_mesh(1, 1), num_classes=2)
    value = loss(embeddings, vectors, jnp.float32(2.0), jnp.asarray([0]))
    assert float(value) == pytest.approx(math.log(1 + math.exp(-2)))


def test_a_row_that_weighs_three_times_as_much_counts_three_times():
    # The cosines of row 0 are 1 and 0, and of row 1, whose label is 1 as well, 0 and 1.
    embeddings, vectors = jnp.eye(2), jnp.eye(2)
    loss = sharded_softmax(make_mesh(1, 1), num_classes=2)
    labels, lost, won = jnp.asarray([1, 1]), math.log1p(math.exp(2)), math.log1p(math.exp(-2))
    for weights in ([3.0, 1.0], [0.6, 0.2]):  # only their ratio counts
        value = loss(embeddings, vectors, jnp.float32(2.0), labels, None, jnp.asarray(weights))
        assert float(value) == pytest.approx((3 * lost + won) / 4, rel=1e-6)


def test_weights_of_zero_give_a_loss_and_gradients_of_zero():
    loss = sharded_softmax(make_mesh(1, 1), num_classes=2, margin=0.2)
    arguments = jnp.eye(2), jnp.eye(2), jnp.float32(2.0), jnp.asarray([1, 1]), None, jnp.zeros(2)
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
    assert float(value) == 0 and all((gradient == 0).all() for gradient in gradients)


def test_a_class_vector_of_zeros_has_cosine_zero_and_a_finite_gradient():
    embeddings = jnp.asarray([[1.0, 0.0]])
    vectors = jnp.asarray([[3.0, 0.0], [0.0, 0.0]])
    loss = sharded_softmax(make_mesh(1, 1), num_classes=2)
    value, gradient = jax.value_and_grad(loss, argnums=1)(embeddings, vectors, jnp.float32(2.0), jnp.asarray([0]))
    assert float(value) == pytest.approx(math.log(1 + math.exp(-2)))
    # A vector shorter than 1e-6 is multiplied by 1e6. The second class has probability 1 / (1 + e^2) = 0.1192; times
    # scale and 1e6. The first is at its best direction.
    np.testing.assert_allclose(gradient, [[0, 0], [0.1192029 * 2 * 1e6, 0]], rtol=1e-5, atol=1e-7)


def test_each_row_is_stabilised_by_its_own_largest_logit():
    # The logits are 100 and 90 in row 0, and -100 and -90 in row 1: beside a logit of 100, those of row 1 would vanish.
    embeddings = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]])
    vectors = jnp.asarray([[1.0, 0.0], [0.9, math.sqrt(0.19)]])
    loss = sharded_softmax(make_mesh(1, 1), num_classes=2, tile_classes=1)
    value = loss(embeddings, vectors, jnp.float32(100.0), jnp.asarray([0, 1]))
    assert float(value) == pytest.approx(math.log1p(math.exp(-10)), rel=0.1)  # float32 keeps 7 digits of 100


@pytest.mark.parametrize("num_classes", [0, 1])
def test_fewer_than_two_classes_are_refused(num_classes):
    with pytest.raises(ValueError, match=f"over {num_classes} classes has nothing to tell apart; it needs at least 2"):
        sharded_softmax(make_mesh(1, 1), num_classes=num_classes)


def test_the_tile_shrinks_as_the_batch_grows():
    # 8 MiB hold 2^21 numbers. Of batch and dim 256, a class takes 512: 4,096 classes. Of batch 1,000 and dim 512, it
    # takes 1,512: 1,387 classes, rounded down to a power of two. Large batches keep the least tile.
    assert chosen_tile(256, 256, "cpu") == 4096
    assert chosen_tile(1000, 512, "cpu") == 1024
    assert chosen_tile(32_768, 512, "cpu") == 1024


def test_tiles_are_larger_on_an_accelerator():
    assert chosen_tile(4096, 512, "gpu") == 32_768  # 58,254 would fit
    assert chosen_tile(32_768, 512, "gpu") == 4096  # 8,066 would
    assert chosen_tile(1024, 512, "tpu") == 65_536  # the most


def lowered(num_classes, dim, batch, mesh=(1, 1), function=None, sample=False, **settings):
    """The compiled value and gradient at full size, of which nothing is allocated."""
    devices = make_mesh(*mesh)
    rows = batch_sharding(devices)
    function = function or sharded_softmax(devices, num_classes=num_classes, **settings)
    shapes = [
        jax.ShapeDtypeStruct((batch, dim), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((padded(num_classes, devices.size), dim), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows),
    ]
    if sample:
        shapes.append(jax.ShapeDtypeStruct((padded(num_classes, devices.size),), jnp.int32, sharding=rows))
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2))).lower(*shapes).compile()


def test_at_two_million_classes_temporaries_are_a_hundredth_of_the_naive_ones_and_do_not_grow():
    def naive(*arguments):
        return naive_softmax(*arguments, 2**21, 0.0)

    expected = lowered(2**21, 256, 256, function=naive).memory_analysis().temp_size_in_bytes
    # With 3 classes more, the last tile shares rows with the one before it.
    counts = (2**20, 2**20 + 3, 2**21, 2**21 + 3, 2**22)
    of_a_million, *others = (lowered(count, 256, 256).memory_analysis().temp_size_in_bytes for count in counts)
    assert of_a_million <= 0.01 * expected
    assert max(others) <= 1.01 * of_a_million
    of_a_sample = lowered(200_000, 256, 256, sample=True).memory_analysis().temp_size_in_bytes
    assert of_a_sample <= 1.01 * of_a_million


def collectives(compiled):
    """Of each collective of a compiled program, the kind and the numbers in the largest array that it gives."""
    found = re.findall(
        r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-\w+)\(", compiled.as_text()
    )
    sizes = [
        (kind, max(math.prod(int(n) for n in shape.split(",") if n) for shape in re.findall(r"\[([\d,]*)\]", shapes)))
        for shapes, kind in found
    ]
    assert sizes
    return sizes


@pytest.mark.parametrize("mesh", [(8, 1), (1, 8), (2, 4)])
def test_nothing_of_the_class_vectors_size_is_communicated(mesh):
    batch, dim = 64, 32
    compiled = lowered(65_523, dim, batch, mesh)
    for kind, size in collectives(compiled):
        assert size <= batch * dim, kind
    # Each device takes and gives an eighth of the rows: 65,523 / 8 rounded up.
    assert compiled.memory_analysis().argument_size_in_bytes < 1.01 * 4 * dim * (8191 + batch)


def test_class_vectors_and_their_gradient_stay_in_their_shards():
    mesh = make_mesh(2, 4)
    embeddings, vectors, scale, labels = inputs(1000, 8)
    placed = jax.device_put(vectors, NamedSharding(mesh, PartitionSpec(("data", "model"))))
    gradient = jax.jit(jax.grad(sharded_softmax(mesh, num_classes=1000, tile_classes=100), argnums=1))
    compiled = gradient.lower(embeddings, placed, scale, labels).compile()
    assert f"f32[125,{DIM}]" in compiled.as_text()
    assert f"f32[1000,{DIM}]" not in compiled.as_text()
    of_vectors = compiled(embeddings, placed, scale, labels)
    assert {shard.data.shape for shard in of_vectors.addressable_shards} == {(125, DIM)}


def test_no_array_of_batch_by_classes_exists_forward_or_backward():
    num_classes, tile = 1000, 10
    embeddings, vectors, scale, labels = inputs(num_classes, 1)
    loss = sharded_softmax(make_mesh(1, 1), num_classes=num_classes, tile_classes=tile)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(embeddings, vectors, scale, labels).compile().as_text()
    assert f"[{tile},{BATCH}]" in text
    for shape in (f"[{num_classes},{BATCH}]", f"[{BATCH},{num_classes}]", f"[{num_classes // tile},{tile},{BATCH}]"):
        assert shape not in text


# As `chosen_tile` says of a CPU, or all classes where they are fewer.
@pytest.mark.parametrize(("num_classes", "batch", "dim", "tile"), [(1000, 16, 5, 1000), (8192, 256, 256, 4096)])
def test_logits_of_one_tile_are_in_memory_forward_and_backward(num_classes, batch, dim, tile):
    kinds = [((batch, dim), jnp.float32), ((num_classes, dim), jnp.float32), ((), jnp.float32), ((batch,), jnp.int32)]
    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in kinds]
    loss = sharded_softmax(make_mesh(1, 1), num_classes=num_classes)
    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*shapes))
    products = re.findall(r"f32\[([\d,]+)\] = dot_general", program)
    # Forward the logits; backward these again, and the gradients of the class vectors and of the embeddings.
    assert products == [f"{tile},{batch}"] * 2 + [f"{tile},{dim}", f"{batch},{dim}"]


def test_matrix_products_are_precise_on_every_platform():
    embeddings, vectors, scale, labels = inputs(16, 1)
    loss = sharded_softmax(make_mesh(1, 1), num_classes=16, tile_classes=8)
    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(embeddings, vectors, scale, labels))
    found = re.findall(r"dot_general\[.*?precision=(\S+, \S+|None)", text, re.S)
    assert set(found) == {"(Precision.HIGH, Precision.HIGH)"}
