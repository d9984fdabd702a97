import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer.configs.base import override
from trainer.mesh import batch_sharding, make_mesh, replicated, state_shardings
from trainer.state import State
from trainer.train_step import make_train_step

BATCH, CLASSES, DIM = 32, 8, 6
RECIPES = {
    "supervised": ["loss.contrastive_weight=0"],
    "contrastive": ["loss.classification_weight=0"],
    "multitask": [],
}


def tower(variables, inputs):
    params = variables["params"]
    return jnp.tanh(inputs @ params["up"]["kernel"]) @ params["down"]["kernel"]


def tower_params(up, down):
    return {"up": {"kernel": up}, "down": {"kernel": down}}


@functools.cache
def gradients(tiny, recipe, mesh, micro_batches, weighted):
    """Metrics and gradients of one step of plain descent at a rate of 1."""
    experiment = override(tiny, [*RECIPES[recipe], f"micro_batches={micro_batches}"])
    devices, random = make_mesh(*mesh), np.random.default_rng(0)

    def values(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    params = {"image": tower_params(values(10, 16), values(16, DIM))}
    if experiment.classifies:
        params |= {"class_vectors": values(CLASSES, DIM), "log_class_scale": jnp.float32(1.5)}
    if experiment.contrasts:
        params |= {"text": tower_params(values(9, 16), values(16, DIM)), "log_scale": jnp.float32(1.0)}
    classes = random.integers(0, CLASSES, BATCH).astype(np.int32)
    batch = {"images": values(BATCH, 10), "tokens": values(BATCH, 9), "class_ids": classes}
    batch |= {"text_groups": classes, "image_groups": classes[:, None]}
    batch |= {"weights": jnp.asarray(random.uniform(0.1, 2, BATCH), jnp.float32)} if weighted else {}

    optimizer = optax.sgd(1.0)
    before = jax.device_get(params)
    state = State(params=params, opt_state=optimizer.init(params))
    shardings = state_shardings(devices, state)
    state = jax.device_put(state, shardings)
    models = SimpleNamespace(image=SimpleNamespace(apply=tower), text=None)
    models.text = models.image if experiment.contrasts else None
    step = make_train_step(experiment, models, optimizer, devices, shardings, CLASSES)
    placed = {name: jax.device_put(value, batch_sharding(devices)) for name, value in batch.items()}
    state, metrics = step(state, placed)
    return metrics, jax.tree.map(lambda old, new: old - np.asarray(new), before, jax.device_get(state.params))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("mesh", "micro_batches", "weighted"),
    [((1, 1), 4, False), ((1, 1), 32, True), ((2, 4), 2, False), ((2, 4), 4, True), ((8, 1), 4, True)],
)
def test_micro_batches_give_the_metrics_and_gradients_of_the_whole_batch(tiny, recipe, mesh, micro_batches, weighted):
    expected_metrics, expected = gradients(tiny, recipe, (1, 1), 1, weighted)
    metrics, found = gradients(tiny, recipe, mesh, micro_batches, weighted)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected_metrics[name], rtol=1e-5, err_msg=name)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > 0.01
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        of_whole = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
        np.testing.assert_allclose(leaf, of_whole, rtol=0, atol=1e-5 * largest, err_msg=str(path))


def test_activations_are_those_of_one_micro_batch(tiny):
    def temporaries(micro_batches):
        experiment = override(tiny, [*RECIPES["supervised"], f"micro_batches={micro_batches}"])
        devices, optimizer = make_mesh(1, 1), optax.sgd(1.0)
        params = {"image": tower_params(jnp.zeros((10, 20_000)), jnp.zeros((20_000, DIM)))}
        params |= {"class_vectors": jnp.zeros((CLASSES, DIM)), "log_class_scale": jnp.zeros(())}
        state = State(params=params, opt_state=optimizer.init(params))
        shardings = jax.tree.map(lambda _: replicated(devices), state)
        models = SimpleNamespace(image=SimpleNamespace(apply=tower), text=None)
        step = make_train_step(experiment, models, optimizer, devices, shardings, CLASSES)
        batch = {"images": jnp.zeros((1024, 10)), "class_ids": jnp.zeros(1024, jnp.int32)}
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    # One hidden layer of 1,024 rows by 20,000 takes 82 MB, and one of 64 rows 5 MB.
    assert temporaries(1) > 82e6
    assert temporaries(16) < 30e6
