import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.configs.base import LARGEST_SCALE
from trainer.mesh import make_mesh, replicated
from trainer.state import State
from trainer.train_step import make_train_step


def test_a_scale_above_its_limit_comes_back_to_it_and_is_not_cut_in_the_loss(tiny):
    mesh, optimizer = make_mesh(1, 1), optax.sgd(0.0)
    tower = SimpleNamespace(apply=lambda variables, inputs: inputs @ variables["params"])
    above = jnp.log(jnp.asarray([200.0, 300.0]))
    params = {"image": jnp.eye(2), "text": jnp.eye(2), "class_vectors": jnp.eye(2)}
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
