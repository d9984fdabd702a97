"""Muon: updates of matrices are their momentum, made orthogonal by Newton-Schulz iterations (Jordan, 2024).

The numbers are those of `optax.contrib.muon`, but for rounding. That one transposes each matrix in each iteration, and
multiplies with all of a matrix that is much wider than high, or higher than wide, where its Gram matrix would do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: of X, X X^T X and (X X^T)^2 X
_ITERATIONS = 5
_DECAY = 0.95  # of the momentum
_EPSILON = 1e-8  # added to a matrix's norm


class MuonState(NamedTuple):
    """How many updates were made, int32 [], and the mean of the gradients."""

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of that name, which is not used
    mu: Any


def muon(learning_rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Returns Muon with Nesterov's momentum, for kernels [..., in, out]: each [in, out] is a matrix by itself.

    Gradients have the dtype of their kernels, and so do momenta and updates.

    Args:
        learning_rate: of each step; a kernel with more outputs than inputs has sqrt(out / in) times as much.
        weight_decay: share of a kernel that each update takes away, times the learning rate.
    """
    return optax.chain(
        optax.GradientTransformation(_init, _update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _init(params: Any) -> MuonState:
    return MuonState(count=jnp.zeros((), jnp.int32), mu=optax.tree.zeros_like(params))


def _update(gradients: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
    del params
    count = state.count + 1
    mu = optax.tree.update_moment(gradients, state.mu, _DECAY, 1)
    steps = count.astype(jnp.float32)
    # Of Nesterov: the mean after one more step with this gradient, and the gradient, each without its bias to zero.
    of_mean, of_gradient = _DECAY / (1 - _DECAY ** (steps + 1)), (1 - _DECAY) / (1 - _DECAY**steps)

    def updated(mean: jax.Array, gradient: jax.Array) -> jax.Array:
        num_inputs, num_outputs = mean.shape[-2:]
        scale = max(1.0, num_outputs / num_inputs) ** 0.5
        # Matrices in bfloat16, too, are iterated on in float32, and the update is rounded once.
        of_both = of_mean * mean.astype(jnp.float32) + of_gradient * gradient.astype(jnp.float32)
        made: jax.Array = scale * orthogonalised(of_both)
        return made.astype(gradient.dtype)

    return jax.tree.map(updated, mu, gradients), MuonState(count=count, mu=mu)


def orthogonalised(matrices: jax.Array) -> jax.Array:
    """Returns float [..., M, N] with the singular vectors of each matrix, and singular values from 0.67 to 1.21.

    Only those below 0.0015 of a matrix's Frobenius norm come out smaller, by up to 485 times that share.
    """
    matrices /= jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True) + _EPSILON
    long, short = max(matrices.shape[-2:]), min(matrices.shape[-2:])
    # In products of short x short x short, iterating on the matrices takes 10 long / short + 5, on Gram matrices
    # 2 long / short + 17.
    return _by_gram(matrices) if 2 * long > 3 * short else _by_matrices(matrices)


def _by_matrices(matrices: jax.Array) -> jax.Array:
    of_one, of_cube, of_fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = _gram(matrices)
        factor = of_cube * gram + of_fifth * gram @ gram
        product = matrices @ factor if _is_high(matrices) else factor @ matrices
        matrices = of_one * matrices + product
    return matrices


def _by_gram(matrices: jax.Array) -> jax.Array:
    """Iterates on X X^T, or X^T X, alone.

    An iteration multiplies X with a polynomial of its Gram matrix G, which multiplies G with the square of it. All
    these are polynomials of the first G, so their order does not matter. Errors of a product are not made good by the
    next, so accelerators must not round the factors.
    """
    of_one, of_cube, of_fifth = _COEFFICIENTS
    with jax.default_matmul_precision("highest"):
        gram = _gram(matrices)
        unit = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
        total = unit
        for number in range(_ITERATIONS):
            factor = of_one * unit + of_cube * gram + of_fifth * gram @ gram
            total = factor @ total if number else factor
            if number < _ITERATIONS - 1:
                gram = factor @ gram @ factor
        return matrices @ total if _is_high(matrices) else total @ matrices


def _gram(matrices: jax.Array) -> jax.Array:
    """Returns the Gram matrices of the shorter side. No transposed copy of the matrices is made."""
    axes = "...ij,...ik->...jk" if _is_high(matrices) else "...ji,...ki->...jk"
    products: jax.Array = jnp.einsum(axes, matrices, matrices)
    return products


def _is_high(matrices: jax.Array) -> bool:
    return matrices.shape[-2] > matrices.shape[-1]
