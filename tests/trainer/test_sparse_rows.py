import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pipeline.schema import UserError
from trainer.configs.base import Optimizer, override
from trainer.losses.sampling import NO_CLASS
from trainer.mesh import batch_sharding, make_mesh, state_shardings
from trainer.optimizer import make_optimizer
from trainer.sparse_rows import check_rows_are_independent, put_back, taken
from trainer.state import State
from trainer.train_step import make_train_step

BATCH, CLASSES, ROWS, DIM = 16, 61, 64, 6
LABELS = np.asarray([7, 7, 60, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 7], np.int32)


@functools.cache
def steps(tiny, mesh, rate):
    """The states before and after three steps, and the metrics of the last one."""
    changes = [f"loss.sample_rate={rate}", "loss.sample_blocks=8", "loss.contrastive_weight=0"]
    experiment, devices = override(tiny, changes), make_mesh(*mesh)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(ROWS, DIM)).astype(np.float32)
    vectors[CLASSES:] = 0
    params = {"image": {"kernel": jnp.eye(DIM)}, "class_vectors": vectors, "log_class_scale": jnp.float32(1.5)}
    optimizer = make_optimizer(Optimizer(warmup_steps=1, weight_decay=0.2, classifier_learning_rate=0.1), 100)
    state = State(params=params, opt_state=optimizer.init(params))
    shardings = state_shardings(devices, state)
    tower = SimpleNamespace(apply=lambda variables, inputs: inputs @ variables["params"]["kernel"])
    step = make_train_step(experiment, SimpleNamespace(image=tower, text=None), optimizer, devices, shardings, CLASSES)
    batch = {"images": random.normal(size=(BATCH, DIM)).astype(np.float32), "class_ids": LABELS}
    batch = {name: jax.device_put(value, batch_sharding(devices)) for name, value in batch.items()}
    states = [jax.device_get(state)]
    state = jax.device_put(state, shardings)
    for _ in range(3):
        state, metrics = step(state, batch)
        states.append(jax.device_get(state))
    return states, jax.device_get(metrics)


def of_classes(state):
    """The class vectors and both their moments."""
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "class_vectors" in jax.tree_util.keystr(path)
    ]


def moment(state, name):
    """The moment of the class vectors whose path has `name`."""
    paths = jax.tree_util.tree_leaves_with_path(state.opt_state)
    (found,) = [leaf for path, leaf in paths if all(p in jax.tree_util.keystr(path) for p in (name, "class_vectors"))]
    return found


def test_rows_are_taken_changed_and_put_back_where_they_were():
    mesh = make_mesh(2, 4)
    # Device d has the rows 2 d and 2 d + 1; of device 3 none is taken.
    class_ids = jnp.asarray([1, 0, 3, 2, NO_CLASS, 5, NO_CLASS, NO_CLASS, 8, NO_CLASS, 11, 10, 12, 13, 15, NO_CLASS])
    whole = {"class_vectors": 1 + jnp.arange(32).reshape(16, 2), "kernel": jnp.ones((3, 2))}
    rows = batch_sharding(mesh)
    tree = {**whole, "class_vectors": jax.device_put(whole["class_vectors"], rows)}
    class_ids = jax.device_put(class_ids, rows)
    part = taken(tree, class_ids, mesh)
    given = np.asarray(class_ids) != NO_CLASS
    kept = np.asarray(class_ids)[given]
    np.testing.assert_array_equal(np.asarray(part["class_vectors"])[given], np.asarray(whole["class_vectors"])[kept])
    assert part["kernel"] is tree["kernel"]
    changed = {"class_vectors": -part["class_vectors"], "kernel": jnp.zeros((3, 2))}
    back = put_back(tree, changed, class_ids, mesh)
    expected = np.array(whole["class_vectors"])
    expected[kept] *= -1
    np.testing.assert_array_equal(back["class_vectors"], expected)
    assert back["class_vectors"].sharding == rows
    assert back["kernel"] is changed["kernel"]


def test_only_classes_that_are_drawn_change_and_the_moments_of_others_stay(tiny):
    states, _ = steps(tiny, (1, 1), 0.1)
    for before, after in zip(states[1:], states[2:], strict=False):
        changed = [(old != new).any(axis=1) for old, new in zip(of_classes(before), of_classes(after), strict=True)]
        assert len(changed) == 3
        for rows in changed:
            assert rows[LABELS].all() and not rows[CLASSES:].any()
            # Of each of 8 blocks of 8 rows one is drawn; some are labels or padding.
            assert len(set(LABELS.tolist())) < rows.sum() <= len(set(LABELS.tolist())) + 8
        assert (changed[0] == changed[1]).all() and (changed[0] == changed[2]).all()


def test_bias_correction_counts_all_steps(tiny):
    (*_, before, after), _ = steps(tiny, (1, 1), 0.1)
    vectors = before.params["class_vectors"], after.params["class_vectors"]
    old_mean, mean, square = moment(before, ".mu"), moment(after, ".mu"), moment(after, ".nu")
    new = (old_mean == 0).all(axis=1) & (mean != 0).any(axis=1)
    assert new.any()  # classes that the third step is the first to draw
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 1, 100)(2)
    update = -rate * (mean / (1 - 0.9**3)) / (np.sqrt(square / (1 - 0.98**3)) + 1e-8)
    np.testing.assert_allclose((vectors[1] - vectors[0])[new], update[new], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mesh", [(8, 1), (1, 8), (2, 4)])
def test_every_mesh_takes_the_same_sampled_steps(tiny, mesh):
    (*_, expected), expected_metrics = steps(tiny, (1, 1), 0.3)
    (*_, found), metrics = steps(tiny, mesh, 0.3)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected_metrics[name], rtol=1e-5, err_msg=name)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_sample_of_all_classes_is_the_exact_softmax(tiny):
    # 0.99 of 8 rows, rounded up, are all of them.
    (*_, expected), expected_metrics = steps(tiny, (2, 4), 1)
    (*_, found), metrics = steps(tiny, (2, 4), 0.99)
    assert metrics["loss"] == pytest.approx(float(expected_metrics["loss"]), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_an_optimiser_that_mixes_rows_is_refused():
    message = (
        "loss.sample_rate below 1 needs an optimiser that updates each class vector by its own gradient alone, such as "
        "AdamW; use one for the class vectors, or set --set loss.sample_rate=1"
    )
    by_other_rows = optax.stateless(lambda gradients, _: jax.tree.map(lambda rows: rows / rows.sum(), gradients))
    # Its rate is 0 at the first step, and it takes account of other rows only by the mean of all steps.
    by_a_mean = optax.chain(optax.trace(0.9), by_other_rows, optax.scale_by_schedule(lambda step: step / 100))
    of_small_updates = optax.chain(by_other_rows, optax.scale(1e-12))
    by_a_hundredth = optax.stateless(lambda gradients, _: jax.tree.map(lambda g: g * (1 + 0.01 * len(g)), gradients))
    for optimizer in (by_other_rows, by_a_mean, of_small_updates, by_a_hundredth):
        with pytest.raises(UserError) as refused:
            check_rows_are_independent(optimizer)
        assert str(refused.value) == message


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_optimisers_of_the_configs_update_each_class_vector_for_itself(kind):
    # The norm of all gradients together does not count, though they are clipped by it.
    check_rows_are_independent(make_optimizer(Optimizer(kind=kind, warmup_steps=1), 100))
    check_rows_are_independent(optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.1)))
    # Sums may be rounded in another order.
    rounded = optax.stateless(lambda gradients, _: jax.tree.map(lambda g: g * (1 + 1e-4 * len(g)), gradients))
    check_rows_are_independent(rounded)
