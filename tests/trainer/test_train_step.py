import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer.configs.base import LARGEST_SCALE, override
from trainer.mesh import make_mesh, replicated
from trainer.state import State
from trainer.train_step import make_train_step


def test_a_scale_above_its_limit_comes_back_to_it_and_is_not_cut_in_the_loss(tiny):
    mesh, optimizer = make_mesh(1, 1), optax.sgd(0.0)
    tower = SimpleNamespace(apply=lambda variables, inputs: inputs @ variables["params"]["kernel"])
    above = jnp.log(jnp.asarray([200.0, 300.0]))
    params = {"image": {"kernel": jnp.eye(2)}, "text": {"kernel": jnp.eye(2)}, "class_vectors": jnp.eye(2)}
    params |= {"log_scale": above[0], "log_class_scale": above[1]}
    state = State(params=params, opt_state=optimizer.init(params))
    shardings = jax.tree.map(lambda _: replicated(mesh), state)
    step = make_train_step(tiny, SimpleNamespace(image=tower, text=tower), optimizer, mesh, shardings, 2)
    batch = {"images": np.eye(2, dtype=np.float32), "tokens": np.eye(2, dtype=np.float32)}
    batch |= {"class_ids": np.arange(2), "text_groups": np.arange(2), "image_groups": np.arange(2)[:, None]}
    state, metrics = step(state, batch)
    np.testing.assert_allclose([metrics["contrastive_scale"], metrics["class_scale"]], [200, 300], rtol=1e-5)
    for name in ("log_scale", "log_class_scale"):
        np.testing.assert_allclose(state.params[name], math.log(LARGEST_SCALE), rtol=1e-6)


@pytest.mark.parametrize("learned", [True, False])
def test_the_scale_of_the_classes_is_learned_or_stays_as_it_is(tiny, learned):
    mesh, optimizer = make_mesh(1, 1), optax.sgd(10.0)
    experiment = override(tiny, ["loss.contrastive_weight=0", f"loss.class_scale_learned={learned}"])
    tower = SimpleNamespace(apply=lambda variables, inputs: inputs @ variables["params"]["kernel"])
    params = {"image": {"kernel": jnp.eye(2)}, "class_vectors": jnp.eye(2), "log_class_scale": jnp.log(jnp.float32(8))}
    state = State(params=params, opt_state=optimizer.init(params))
    shardings = jax.tree.map(lambda _: replicated(mesh), state)
    step = make_train_step(experiment, SimpleNamespace(image=tower, text=None), optimizer, mesh, shardings, 2)
    batch = {"images": np.eye(2, dtype=np.float32), "class_ids": np.arange(2)}
    before = float(params["log_class_scale"])
    state, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["class_scale"], 8, rtol=1e-6)
    # Of logits 8 and 0 the loss is log(1 + exp(-8)), of weight 0.5. As the logarithm of the scale grows, that falls by
    # 8 / (1 + exp(8)).
    expected = before + 10 * 0.5 * 8 / (1 + math.exp(8)) if learned else before
    np.testing.assert_allclose(state.params["log_class_scale"], expected, rtol=1e-5 if learned else 0)
