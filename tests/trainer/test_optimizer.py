import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer.configs.base import ImageTower, Optimizer
from trainer.models.layers import Layers, stacked
from trainer.models.vit import ImageModel
from trainer.optimizer import make_optimizer

PARAMS = {
    "image": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "position": jnp.ones((1, 2, 2))},
    "class_vectors": jnp.ones((3, 2)),
}


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_weight_decay_takes_its_share_of_the_matrices_and_of_nothing_else(kind):
    optimizer = make_optimizer(
        Optimizer(kind=kind, learning_rate=0.5, muon_learning_rate=0.5, weight_decay=0.2, warmup_steps=1), 10
    )
    state = optimizer.init(PARAMS)
    gradients = optax.tree.zeros_like(PARAMS)
    _, state = optimizer.update(gradients, state, PARAMS)  # the first step of the warm-up has a rate of 0
    updates, _ = optimizer.update(gradients, state, PARAMS)
    np.testing.assert_allclose(updates["image"]["kernel"], -0.5 * 0.2 * np.ones((2, 2)), rtol=1e-6)
    for still in (updates["image"]["bias"], updates["image"]["position"], updates["class_vectors"]):
        assert not np.asarray(still).any()


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_updates_of_scanned_blocks_equal_those_of_blocks_one_by_one(kind):
    config = ImageTower(image_size_px=8, patch_px=4, width=16, depth=3, num_heads=2, mlp_ratio=2)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    # A decay and rates that would show in any parameter of a wrong group.
    optimizer = make_optimizer(
        Optimizer(kind=kind, learning_rate=0.1, muon_learning_rate=0.3, weight_decay=0.2, warmup_steps=1), 10
    )
    unrolled = jax.jit(ImageModel(config, 8).init)(jax.random.key(0), images)["params"]
    # Biases start at 0, where a decay does not show.
    unrolled = jax.tree.map(lambda value: value + 0.1, unrolled)

    def two_updates(model, params):
        state = optimizer.init(params)
        for _ in range(2):  # the first step of the warm-up has a rate of 0
            gradients = jax.grad(lambda params: (model.apply({"params": params}, images) ** 2).sum())(params)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params

    one_by_one = jax.jit(lambda params: two_updates(ImageModel(config, 8), params))(unrolled)
    scanned = jax.jit(lambda params: two_updates(ImageModel(config, 8, layers=Layers(scan=True)), params))(
        {**unrolled, "blocks": stacked(unrolled["blocks"])}
    )
    expected = {**one_by_one, "blocks": stacked(one_by_one["blocks"])}
    moved = jax.tree.map(lambda new, old: float(abs(new - old).min()), expected["blocks"], stacked(unrolled["blocks"]))
    assert min(jax.tree.leaves(moved["layers"]["up"])) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), scanned, expected)


def test_a_parameter_of_no_known_name_is_refused():
    with pytest.raises(ValueError, match=r"\['image'\]\['gain'\] has no group of the optimiser; add 'gain' to _GROUPS"):
        make_optimizer(Optimizer(), 10).init({"image": {"gain": jnp.ones(2)}})
