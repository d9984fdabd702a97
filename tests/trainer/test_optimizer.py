import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer.configs.base import Optimizer
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
