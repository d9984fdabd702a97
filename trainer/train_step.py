"""One training step, with losses, gradients and update in one jit over the mesh."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from trainer.configs.base import LARGEST_SCALE, Experiment
from trainer.encoder.write import l2_normalise
from trainer.finite import finite_leaves
from trainer.gradients import Embed, gradients_of
from trainer.losses.sampling import make_draw
from trainer.mesh import batch_sharding, gathered, replicated
from trainer.objective import make_objective
from trainer.optimizer import steps_taken
from trainer.sparse_rows import check_rows_are_independent, put_back, taken
from trainer.state import Models, State

# Of each array of the parameters, in the order of the tree: whether its gradient, and its new value, are finite.
FINITE_GRADIENTS, FINITE_PARAMS = "finite_gradients", "finite_params"
_SCALES = ("log_scale", "log_class_scale")

TrainStep = Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]]


def make_train_step(
    experiment: Experiment,
    models: Models,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shardings: Any,
    num_classes: int,
) -> TrainStep:
    """Returns step(state, batch) -> (state, metrics); the state that is passed in is donated.

    Metrics are scalars but for `FINITE_GRADIENTS` and `FINITE_PARAMS`, bool [number of arrays of the parameters].

    A batch holds `images` float32 [B, S, S, 3] and, as the losses need, `class_ids` int32 [B], or `tokens` int32
    [B, L], `text_groups` int32 [B] and `image_groups` int32 [B, G], and, if examples are weighted, `weights` float32
    [B], all sharded over all devices.

    With `loss.sample_rate` below 1, class vectors that are not drawn keep their values and their moments, without
    decay. Those that are drawn get the optimiser's update as it is: its bias correction counts all steps.

    Raises:
        UserError: classes are sampled, but the optimiser cannot update some of them alone.
    """
    objective = make_objective(experiment, mesh, num_classes)
    embed = make_embed(models, mesh)
    if experiment.samples:
        check_rows_are_independent(optimizer)

    def update(
        state: State, batch: dict[str, jax.Array], class_ids: jax.Array | None
    ) -> tuple[State, dict[str, jax.Array]]:
        gradients, metrics = gradients_of(
            functools.partial(objective, class_ids=class_ids),
            embed,
            state.params,
            batch,
            micro_batches=experiment.micro_batches,
            mesh=mesh,
            shardings=shardings.params,
        )
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics[FINITE_GRADIENTS] = finite_leaves(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Not in the loss, where a scale at its limit would have no gradient and could never decrease.
        params |= {name: jnp.minimum(params[name], math.log(LARGEST_SCALE)) for name in _SCALES if name in params}
        metrics[FINITE_PARAMS] = finite_leaves(params)
        return State(params=params, opt_state=opt_state), metrics

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        if not experiment.samples:
            return update(state, batch, None)
        draw = make_draw(
            mesh,
            num_classes=num_classes,
            num_rows=len(state.params["class_vectors"]),
            rate=experiment.loss.sample_rate,
            num_blocks=experiment.loss.sample_blocks,
        )
        key = jax.random.fold_in(jax.random.key(experiment.seed), steps_taken(state.opt_state))
        class_ids = draw(key, batch["class_ids"])
        part, metrics = update(taken(state, class_ids, mesh), batch, class_ids)
        whole: State = put_back(state, part, class_ids, mesh)
        return whole, metrics

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_embed(models: Models, mesh: Mesh) -> Embed:
    """Returns embed(params, batch) -> `images` and, with a text tower, `texts`: L2-normalised float32 [B, D]."""
    rows = batch_sharding(mesh)

    def embed(params: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        embedded = {}
        for name, tower, inputs in (("image", models.image, "images"), ("text", models.text, "tokens")):
            if tower is None:
                continue
            weights = gathered(mesh, params[name])
            vectors = l2_normalise(jnp.asarray(tower.apply({"params": weights}, batch[inputs])))
            embedded[f"{name}s"] = jax.lax.with_sharding_constraint(vectors, rows)
        return embedded

    return embed
