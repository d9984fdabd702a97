import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer.configs.base import ImageTower, Optimizer
from trainer.models.layers import Layers, stacked
from trainer.models.vit import ImageModel
from trainer.optimizer import make_optimizer, steps_taken

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


def updates_of(config, steps, gradients, params=PARAMS):
    """The updates that the optimiser makes of each of `gradients`, and its last state."""
    optimizer = make_optimizer(config, steps)
    state, update, found = optimizer.init(params), jax.jit(optimizer.update), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        found.append(jax.device_get(updates))
    return found, state


ONES = jax.tree.map(jnp.ones_like, PARAMS)


def test_rates_warm_up_linearly_and_fall_along_half_a_cosine_to_zero():
    config = Optimizer(learning_rate=0.5, classifier_learning_rate=2.0, weight_decay=0.25, warmup_steps=4)
    found, state = updates_of(config, 10, [ONES] * 11)
    # As long as the gradient stays the same, an update of Adam is the learning rate.
    rates = [0, 1 / 4, 2 / 4, 3 / 4, *((1 + math.cos(math.pi * step / 6)) / 2 for step in range(7))]
    assert rates[4] == 1 and rates[7] == pytest.approx(0.5) and rates[10] == 0
    for updates, rate in zip(found, rates, strict=True):
        for name in ("bias", "position"):
            np.testing.assert_allclose(
                updates["image"][name], np.full_like(PARAMS["image"][name], -0.5 * rate), 1e-4, 1e-6
            )
        np.testing.assert_allclose(updates["image"]["kernel"], np.full((2, 2), -0.5 * rate * 1.25), 1e-4, 1e-6)
        np.testing.assert_allclose(updates["class_vectors"], np.full((3, 2), -2 * rate), 1e-4, 1e-6)
    assert steps_taken(state) == 11


# Half of the steps, but one at least. The rate of the step after the last one is 0.
@pytest.mark.parametrize(
    ("steps", "rates"), [(1, [0, 1, 0]), (2, [0, 1, 0]), (3, [0, 1, 0.5, 0]), (4, [0, 0.5, 1, 0.5, 0])]
)
def test_a_warm_up_takes_at_most_half_of_the_steps(steps, rates):
    found, _ = updates_of(Optimizer(learning_rate=1.0, warmup_steps=100), steps, [ONES] * len(rates))
    np.testing.assert_allclose([updates["image"]["bias"][0] for updates in found], -np.asarray(rates), 1e-4, 1e-6)


def test_the_means_of_adamw_decay_as_the_config_says():
    config = Optimizer(
        learning_rate=1.0, classifier_learning_rate=1.0, weight_decay=0.0, warmup_steps=1, b1=0.5, b2=0.75
    )
    found, _ = updates_of(config, 100, [ONES, optax.tree.zeros_like(ONES)])
    # A gradient g, then none: the mean is 0.5 x 0.5 g / (1 - 0.5^2) = g / 3, the mean square 0.75 x 0.25 g^2 /
    # (1 - 0.75^2) = 3 / 7 g^2.
    jax.tree.map(
        lambda update: np.testing.assert_allclose(update, np.full_like(update, -math.sqrt(7 / 27)), 1e-4), found[1]
    )


@pytest.mark.parametrize(("clip_norm", "first_counts"), [(1.0, 1), (0.0, 5)])
def test_gradients_are_clipped_by_the_norm_of_all_of_them(clip_norm, first_counts):
    params = {"bias": jnp.ones(1), "scale": jnp.ones(1)}
    gradients = [
        {"bias": jnp.full(1, 3.0), "scale": jnp.full(1, 4.0)},
        {"bias": jnp.full(1, 0.6), "scale": jnp.full(1, 0.8)},
    ]
    config = Optimizer(learning_rate=1.0, warmup_steps=1, b1=0.5, b2=0.75, clip_norm=clip_norm)
    found, _ = updates_of(config, 100, gradients, params)
    # The first gradient has a norm of 5: clipped to 1, it is the second one.
    mean, square = (first_counts + 2) / 3, (3 * first_counts**2 + 4) / 7
    for update in found[1].values():
        np.testing.assert_allclose(update, [-mean / math.sqrt(square)], 1e-4)


def test_muon_takes_each_matrix_of_stacked_kernels_for_itself():
    kernels = jax.random.normal(jax.random.key(0), (2, 3, 2))
    config = Optimizer(
        kind="muon", learning_rate=9.0, muon_learning_rate=0.5, weight_decay=0.25, warmup_steps=1, clip_norm=0
    )
    (_, stacked), _ = updates_of(config, 100, [{"kernel": kernels}] * 2, {"kernel": kernels})
    alone = optax.contrib.muon(0.5, weight_decay=0.25)  # of one matrix, its rows are what comes in
    for kernel, update in zip(kernels, stacked["kernel"], strict=True):
        params, state = {"kernel": kernel}, alone.init({"kernel": kernel})
        for _ in range(2):
            expected, state = jax.jit(alone.update)(params, state, params)
        np.testing.assert_allclose(update, expected["kernel"], 1e-4, 1e-5)


def test_a_parameter_of_no_known_name_is_refused():
    with pytest.raises(ValueError, match=r"\['image'\]\['gain'\] has no group of the optimiser; add 'gain' to _GROUPS"):
        make_optimizer(Optimizer(), 10).init({"image": {"gain": jnp.ones(2)}})


@pytest.mark.parametrize("norm", [0.0, 0.5, 2.0, math.inf, math.nan])
def test_gradients_are_clipped_by_the_norm_of_all_together_as_optax_does(norm):
    # All gradients have the direction (3, 0, 4) / 5, over two parameters.
    gradients = {"bias": jnp.asarray([0.6, 0.0]) * norm, "class_vectors": jnp.asarray([[0.8]]) * norm}
    params = optax.tree.ones_like(gradients)
    # A first moment shows the clipped gradient, which the update of Adam would divide by its own size.
    clipped, plain = (
        make_optimizer(Optimizer(kind="adamw", clip_norm=clip_norm, b1=0.5), 10) for clip_norm in (1.0, 0.0)
    )
    _, state = clipped.update(gradients, clipped.init(params), params)
    by_optax, _ = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    _, expected = plain.update(by_optax, plain.init(params), params)
    moments, of_optax = (optax.tree.get_all_with_path(one, "mu") for one in (state, expected))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
        [moment for _, moment in moments],
        [moment for _, moment in of_optax],
    )


def test_clipping_keeps_no_second_gradient_in_memory():
    optimizer = make_optimizer(Optimizer(kind="adamw", clip_norm=1.0), 10)
    params = {"class_vectors": jax.ShapeDtypeStruct((4096, 64), jnp.float32)}
    state = jax.eval_shape(optimizer.init, params)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 64 * 4 / 10
