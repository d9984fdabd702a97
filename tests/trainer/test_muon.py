import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer import muon as muon_module
from trainer.muon import muon, orthogonalised


def matrix_of(singular_values, num_rows, num_columns, seed=0):
    """A matrix with these singular values, and its singular vectors."""
    random = np.random.default_rng(seed)
    count = len(singular_values)
    left, right = (np.linalg.qr(random.normal(size=(length, count)))[0] for length in (num_rows, num_columns))
    return (left * singular_values) @ right.T, left, right


def quintic(value):
    """What five iterations make of one singular value."""
    for _ in range(5):
        value = 3.4445 * value - 4.775 * value**3 + 2.0315 * value**5
    return value


SHAPES = [(24, 24), (24, 20), (20, 24), (24, 16), (16, 24), (24, 15), (15, 24), (64, 8), (8, 64), (8, 1), (1, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_singular_values_go_through_the_iterations_and_vectors_stay(shape, scale):
    values = scale * np.geomspace(1, 0.003, min(shape))
    matrix, left, right = matrix_of(values, *shape)
    found = jax.jit(orthogonalised)(jnp.asarray(matrix, jnp.float32))
    expected = (left * quintic(values / np.sqrt((values**2).sum()))) @ right.T
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(24, 20), (64, 8), (8, 64)])
def test_singular_values_near_zero_stay_small(shape):
    # Of rank 2: the others are 0 but for rounding.
    matrix, left, right = matrix_of(np.asarray([2.0, 1.0]), *shape)
    found = jax.jit(orthogonalised)(jnp.asarray(matrix, jnp.float32))
    expected = (left * quintic(np.asarray([2.0, 1.0]) / 5**0.5)) @ right.T
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_range_of_singular_values_is_as_the_docstring_says():
    values = quintic(np.linspace(0.0015, 1, 100_001))
    assert 0.67 < values.min() and values.max() < 1.21
    assert quintic(1e-6) == pytest.approx(485e-6, rel=1e-2)


def test_a_matrix_of_zeros_stays_one():
    for shape in ((3, 3), (2, 8)):
        assert not np.asarray(orthogonalised(jnp.zeros(shape))).any()


# 2 x 24 > 3 x 15, but not > 3 x 16.
@pytest.mark.parametrize(("shape", "by_gram"), [((24, 15), True), ((24, 16), False), ((16, 24), False)])
def test_matrices_that_are_longer_by_more_than_half_are_left_alone_until_the_end(monkeypatch, shape, by_gram):
    called = []
    for name in ("_by_gram", "_by_matrices"):
        monkeypatch.setattr(muon_module, name, lambda matrices, name=name: called.append(name) or matrices)
    orthogonalised(jnp.ones(shape))
    assert called == ["_by_gram" if by_gram else "_by_matrices"]


def test_products_of_gram_matrices_are_never_rounded_on_accelerators():
    text = str(jax.make_jaxpr(orthogonalised)(jnp.ones((2, 8))))
    assert text.count("dot_general") == text.count("precision=(Precision.HIGHEST") == 19


@pytest.mark.parametrize("shape", [(6, 6), (3, 12), (12, 3), (2, 4, 9), (2, 5, 4)])
def test_updates_are_those_of_optax(shape):
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    rates = optax.linear_schedule(0.1, 0.5, 4)
    ours, theirs = muon(rates, 0.25), optax.contrib.muon(rates, weight_decay=0.25, muon_weight_dimension_numbers=axes)
    keys = jax.random.split(jax.random.key(0), 5)
    params = expected = {"kernel": jax.random.normal(keys[4], shape), "none": optax.MaskedNode()}
    state, expected_state = ours.init(params), theirs.init(params)
    for key in keys[:4]:
        gradients = {"kernel": jax.random.normal(key, shape), "none": optax.MaskedNode()}
        updates, state = jax.jit(ours.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
        updates, expected_state = jax.jit(theirs.update)(gradients, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(params["kernel"], expected["kernel"], 1e-4, 1e-5)
    assert optax.tree.get_all_with_path(state, "count")[0][1] == 4


@pytest.mark.parametrize("shape", [(6, 6), (3, 12), (12, 3)])
def test_in_bfloat16_updates_and_momenta_are_too_and_only_they_are_rounded(shape):
    optimizer = muon(lambda step: 0.5, 0.25)
    params = jax.random.normal(jax.random.key(0), shape).astype(jnp.bfloat16)
    gradients = jax.random.normal(jax.random.key(1), shape).astype(jnp.bfloat16)
    found = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        of_dtype = {"kernel": params.astype(dtype)}
        state = optimizer.init(of_dtype)
        for _ in range(2):
            updates, state = jax.jit(optimizer.update)({"kernel": gradients.astype(dtype)}, state, of_dtype)
        assert updates["kernel"].dtype == optax.apply_updates(of_dtype, updates)["kernel"].dtype == dtype
        assert optax.tree.get(state, "mu")["kernel"].dtype == dtype
        found[dtype] = np.asarray(updates["kernel"], np.float32)
    # Below 1, bfloat16 rounds by 2^-9 at most. Of optax's, which iterates in bfloat16, they are off by 0.019 to 0.058.
    np.testing.assert_allclose(found[jnp.bfloat16], found[jnp.float32], rtol=0, atol=2 * 2**-9)
