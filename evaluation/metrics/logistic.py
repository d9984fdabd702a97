"""Multinomial logistic regression with an L2 penalty: the exact minimum, and the search of its strength.

The objective is `c * sum of log losses + half the squared norm of the weights`, biases not penalised, which is
scikit-learn's for three classes or more. (With two, it fits one vector where this fits two: its solution at 2c is this
one at c.)
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from evaluation.metrics.linear import (
    BLOCK_ROWS,
    HELDOUT_SHARE,
    LinearProbe,
    ProbeSets,
    Selected,
    best_setting,
    check_labels,
    moments_of,
    row_slices,
    rows_of_scores,
    softmax,
    validate,
    workers,
)
from evaluation.progress import progress
from pipeline.schema import UserError

LOG10_C = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
MAX_LOG10_C = 30.0  # from its negative; float32 holds the gradient of not much more
NUM_REFINEMENTS = 3  # the last compares neighbours at a quarter of a power of ten
_MEMORY = 10  # pairs of steps and gradient changes that stand for the curvature
_REFRESH = 50  # iterations after which the preconditioner is made again
_MIN_STEP = 1e-4
_TOLERANCE, _MAX_ITERATIONS = 1e-6, 1000
_SEARCH_TOLERANCE, _SEARCH_ITERATIONS = 1e-4, 100  # while values of c are compared


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    c: float = 1.0,
    num_classes: int | None = None,
    tolerance: float = _TOLERANCE,
    max_iterations: int = _MAX_ITERATIONS,
    num_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights, float32 `[classes, dim]`, and biases, float32 `[classes]`, of logistic regression.

    See `fit_probe`.
    """
    probe = fit_probe(
        features,
        labels,
        c=c,
        num_classes=num_classes,
        tolerance=tolerance,
        max_iterations=max_iterations,
        num_threads=num_threads,
    )
    return probe.weights, probe.bias


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    c: float = 1.0,
    num_classes: int | None = None,
    tolerance: float = _TOLERANCE,
    max_iterations: int = _MAX_ITERATIONS,
    num_threads: int | None = None,
) -> LinearProbe:
    """Returns logistic regression with a given `c`.

    Its weights and biases minimise `c * sum of log losses + half the squared norm of the weights`. The result does not
    depend on the number of threads.

    Args:
        features: float `[n, dim]`, perhaps memory-mapped; one float32 copy is kept in memory.
        labels: int `[n]`, in [0, num_classes); every class must have a row.
        c: inverse strength of the penalty, from 1e-30 to 1e30.
        num_classes: None: one more than the largest label.
        tolerance: the decrease of the objective that the next step promises, as a share of the objective, below which
            the fit ends.
        max_iterations: passes over the data, about; reaching it is no error.
        num_threads: None: one per core.

    Raises:
        UserError: there is one class only, a class without a row, a shape that does not fit, or a value that is not
            finite.
    """
    num_classes = check_labels(features, labels, num_classes)
    empty = np.setdiff1d(np.arange(num_classes), labels)
    if len(empty):
        raise UserError(
            f"class {empty[0]} of the labels has 0 training pictures ({len(empty)} of {num_classes} classes "
            f"{'has' if len(empty) == 1 else 'have'} none), at least 1 is needed; number classes "
            "without gaps, or use fit_best, which leaves such classes out"
        )
    if not 10**-MAX_LOG10_C <= c <= 10**MAX_LOG10_C:
        raise UserError(f"c is {c}, it must be from 1e-{MAX_LOG10_C:g} to 1e{MAX_LOG10_C:g}; 1 is a start")
    with workers(num_threads) as pool:
        problem = _Problem(Selected([features], np.arange(len(labels))), labels, num_classes, pool)
        solution = problem.solve(c, problem.start(), tolerance=tolerance, max_iterations=max_iterations)
        weights, bias = problem.weights_and_bias(solution)
    return LinearProbe(
        weights=weights,
        bias=bias,
        chosen=c,
        validation_accuracies={},
        validation_losses={},
        converged=solution.converged,
    )


def objective(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray, *, c: float = 1.0
) -> float:
    """Returns `c * sum of log losses + half the squared norm of weights`, summed in float64.

    Args:
        features: float `[n, dim]`.
        labels: int `[n]`.
        weights: float `[classes, dim]`.
        bias: float `[classes]`.
        c: inverse strength of the penalty.
    """
    loss, weights = 0.0, np.asarray(weights, np.float64)
    for rows in row_slices(len(features), rows_of_scores(len(weights))):
        logits = features[rows] @ weights.T + bias
        top = logits.max(axis=1)
        true = logits[np.arange(len(logits)), labels[rows]]
        loss += float((np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - true).sum())
    return c * loss + 0.5 * float(np.square(weights).sum())


def fit_best(
    features: np.ndarray,
    labels: np.ndarray,
    val_features: np.ndarray | None = None,
    val_labels: np.ndarray | None = None,
    num_classes: int | None = None,
    *,
    log10_c: Sequence[float] = LOG10_C,
    num_refinements: int = NUM_REFINEMENTS,
    heldout_share: float = HELDOUT_SHARE,
    seed: int = 0,
    train_on_validation: bool = True,
    num_threads: int | None = None,
) -> LinearProbe:
    """Returns the exact probe with the best `c`, fitted to training and validation rows together or to the former.

    Args:
        features: float `[n, dim]`, perhaps memory-mapped.
        labels: int `[n]`, in [0, num_classes). A class without a row is never predicted; its bias is -inf.
        val_features: float `[m, dim]`; None: a part of the training rows is held out.
        val_labels: int `[m]`; None with `val_features`.
        num_classes: None: one more than the largest label.
        log10_c: the coarse grid, rising and evenly spaced, from -30 to 30.
        num_refinements: how often the neighbours of the best value are tried at half the distance.
        heldout_share: of each class, without validation rows.
        seed: of what is held out.
        train_on_validation: False: once `c` is chosen, validation rows are left out.
        num_threads: None: one per core; the result does not depend on it.

    Raises:
        UserError: bad input, see `fit`.
        ValueError: there are validation features without labels, or the reverse.
    """
    check_grid(log10_c)
    sets = ProbeSets.of(features, labels, val_features, val_labels, num_classes, heldout_share, seed)
    with workers(num_threads) as pool:
        best, accuracies, losses, start = _choose_c(sets, log10_c, num_refinements, pool)
        rows, row_labels = (sets.both, sets.both_labels) if train_on_validation else (sets.train, sets.train_labels)
        whole = _Problem(rows, row_labels, sets.num_classes, pool)
        solution = whole.solve(10.0**best, whole.start(start), tolerance=_TOLERANCE, max_iterations=_MAX_ITERATIONS)
        weights, bias = whole.weights_and_bias(solution)
    return LinearProbe(
        weights=weights,
        bias=bias,
        chosen=10.0**best,
        validation_accuracies={10.0**exponent: accuracies[exponent] for exponent in sorted(accuracies)},
        validation_losses={10.0**exponent: losses[exponent] for exponent in sorted(losses)},
        converged=solution.converged,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Solution:
    params: np.ndarray  # float32 [rank + 1, present classes]
    converged: bool


class _Problem:
    """The objective in coordinates in which its curvature is nearly diagonal: principal axes, centred, and a one.

    The penalty does not change under rotation, and the bias, which is free of it, takes up the centring.
    """

    def __init__(self, rows: Selected, labels: np.ndarray, num_classes: int, pool: ThreadPoolExecutor):
        self._pool, self._num_classes = pool, num_classes
        # A class without a row has no finite solution: its bias would fall for ever.
        self._present, self._labels, uses = np.unique(labels, return_inverse=True, return_counts=True)
        self._log_priors = np.log(uses / len(labels))
        self._mean, moments = moments_of(rows, pool)
        variances, axes = np.linalg.eigh(moments)
        # Without variance there is nothing to learn from, and the penalty keeps such weights at 0.
        kept = variances > 1e-12 * float(variances[-1])
        self._axes = axes[:, kept].astype(np.float32)  # pragma: no mutate: float64 only rounds otherwise
        self._scatter = np.append(variances[kept], 1.0)[:, None] * len(labels)  # [rank + 1, 1]
        self._penalised = np.append(np.ones(kept.sum()), 0.0)[:, None]
        shape = len(labels), kept.sum() + 1
        self._coordinates = np.ones(shape, np.float32)  # pragma: no mutate: float64 only takes longer
        mean = self._mean.astype(np.float32)  # pragma: no mutate: likewise

        def rotate(block: slice) -> None:
            np.matmul(rows.take(block) - mean, self._axes, out=self._coordinates[block, :-1])

        for _ in pool.map(rotate, row_slices(len(rows), BLOCK_ROWS)):
            pass

    def start(self, probe: tuple[np.ndarray, np.ndarray] | None = None) -> _Solution:
        """Returns where to start: at `probe` (weights, bias), or at the classes' frequencies."""
        params = np.zeros((len(self._scatter), len(self._present)), np.float32)
        params[-1] = self._log_priors
        if probe is not None:
            weights, bias = probe[0][self._present], probe[1][self._present]
            known = np.isfinite(bias)
            params[:-1, known] = (weights[known] @ self._axes).T
            mean = self._mean.astype(np.float32)  # pragma: no mutate: float64 only rounds otherwise
            params[-1, known] = bias[known] + weights[known] @ mean
        return _Solution(params=params, converged=False)

    def weights_and_bias(self, solution: _Solution) -> tuple[np.ndarray, np.ndarray]:
        """Returns float32 `[classes, dim]` and `[classes]`; a common shift of all biases is taken out."""
        axes = self._axes.astype(np.float64)  # pragma: no mutate: None is float64 too
        of_present = (axes @ solution.params[:-1]).T
        bias_of_present = solution.params[-1] - of_present @ self._mean
        weights = np.zeros((self._num_classes, len(self._mean)), np.float32)
        bias = np.full(self._num_classes, -np.inf, np.float32)
        weights[self._present] = of_present
        bias[self._present] = bias_of_present - bias_of_present.mean()
        return weights, bias

    def solve(self, c: float, start: _Solution, *, tolerance: float, max_iterations: int) -> _Solution:
        """Returns the minimum, by limited-memory BFGS that is preconditioned with the embeddings' own covariance.

        A class's curvature is about its mean of p (1 - p) times the scatter of the embeddings, and exactly so where all
        probabilities are equal. So a step costs one pass over the data, and few are needed.

        Raises:
            UserError: the objective, or the decrease that a step promises, is not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is an error below
            return self._minimised(start.params, c, tolerance, max_iterations)

    def _minimised(self, params: np.ndarray, c: float, tolerance: float, max_iterations: int) -> _Solution:
        value, gradient, spread = self._evaluate(params, c)
        pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=_MEMORY)
        for iteration in range(max_iterations):
            if iteration % _REFRESH == 0:
                inverse = self._inverse_curvature(spread, c)
                pairs.clear()
            direction = _two_loops(gradient, pairs, inverse)
            promise = float(np.vdot(direction, gradient))
            if not np.isfinite([value, promise]).all():
                raise UserError(f"float32 overflows at c = {c:g}; give a smaller one, or L2-normalise the features")
            # At a small c the whole way to the minimum is a small part of the objective, and one step goes it.
            if iteration > 0 and promise <= tolerance * value:
                return _Solution(params=params, converged=True)
            step = 1.0
            slack = 1e-7 * value if iteration == 0 else 0.0
            while True:
                moved = params - step * direction
                new_value, new_gradient, new_spread = self._evaluate(moved, c)
                if new_value <= value - 1e-4 * step * promise + slack:
                    break
                if step < _MIN_STEP:  # pragma: no mutate: at the limit itself, either is right
                    # float32 resolves no further decrease.
                    return _Solution(params=params, converged=True)
                # The minimum of the parabola through both values, kept from extremes.
                excess = new_value - value + step * promise
                step *= float(np.clip(step * promise / (2 * excess), 0.1, 0.5)) if np.isfinite(excess) else 0.1
            change, gradient_change = moved - params, new_gradient - gradient
            curvature = float(np.vdot(change, gradient_change))
            if curvature > 0:
                pairs.append((change, gradient_change, curvature))
            params, value, gradient, spread = moved, new_value, new_gradient, new_spread
        return _Solution(params=params, converged=False)

    def _inverse_curvature(self, spread: np.ndarray, c: float) -> np.ndarray:
        # Classes that are all but certain have next to no curvature now, but would once a step changed them.
        floor = max(1e-2 * float(spread.mean()), 1e-6)
        inverse: np.ndarray = 1 / (c * np.maximum(spread, floor) * self._scatter + self._penalised)
        return inverse.astype(np.float32)  # pragma: no mutate: float64 only takes longer

    def _evaluate(self, params: np.ndarray, c: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the objective, its gradient, and each class's mean of p (1 - p)."""
        loss, gradient = 0.0, np.zeros_like(params)
        spread = np.zeros(params.shape[1], np.float32)  # pragma: no mutate: float64 only rounds otherwise

        def of_block(rows: slice) -> tuple[float, np.ndarray, np.ndarray]:
            block, labels = self._coordinates[rows], self._labels[rows]
            scores, losses = softmax(block @ params, labels)
            squares = np.einsum("ij,ij->j", scores, scores)  # pragma: no mutate: capitals mean the same
            block_spread = scores.sum(axis=0) - squares
            scores[np.arange(len(labels)), labels] -= 1
            return float(losses.sum(dtype=np.float64)), block.T @ scores, block_spread

        # Blocks are summed in their own order, whichever thread is done first.
        for part in self._pool.map(of_block, row_slices(len(self._labels), rows_of_scores(params.shape[1]))):
            loss += part[0]
            gradient += part[1]
            spread += part[2]
        weights = params[:-1]
        gradient *= np.float32(c)
        gradient[:-1] += weights
        return c * loss + 0.5 * float(np.square(weights, dtype=np.float64).sum()), gradient, spread / len(self._labels)


def _choose_c(
    sets: ProbeSets, log10_c: Sequence[float], num_refinements: int, pool: ThreadPoolExecutor
) -> tuple[float, dict[float, float], dict[float, float], tuple[np.ndarray, np.ndarray]]:
    """Returns the best log10(c), accuracy and log loss of each that was tried, and the best one's weights and bias."""
    problem = _Problem(sets.train, sets.train_labels, sets.num_classes, pool)
    solutions: dict[float, _Solution] = {}
    accuracies: dict[float, float] = {}
    losses: dict[float, float] = {}

    def try_out(exponent: float) -> None:
        # Neighbours in c are neighbours in their solutions, which saves most of the iterations.
        near = min(solutions, key=lambda other: (abs(other - exponent), other), default=None)
        start = problem.start() if near is None else solutions[near]
        # The accuracy settles long before the objective does; the last fit goes to the end.
        solutions[exponent] = problem.solve(
            10.0**exponent, start, tolerance=_SEARCH_TOLERANCE, max_iterations=_SEARCH_ITERATIONS
        )
        weights, bias = problem.weights_and_bias(solutions[exponent])
        accuracies[exponent], losses[exponent] = validate(sets.val, sets.val_labels, weights, bias, pool)

    step = float(log10_c[1] - log10_c[0]) if len(log10_c) > 1 else 0.0
    num_refinements = num_refinements if step else 0
    with progress(len(log10_c) + 2 * num_refinements, "choose c", "fit") as bar:
        for exponent in log10_c:
            try_out(exponent)
            bar.update()
        for _ in range(num_refinements):
            step /= 2
            best = best_setting(accuracies, losses)
            for exponent in (best - step, best + step):
                is_inside = log10_c[0] <= exponent <= log10_c[-1]  # pragma: no mutate: both ends have been tried
                if is_inside and exponent not in accuracies:
                    try_out(exponent)
                bar.update()
    best = best_setting(accuracies, losses)
    return best, accuracies, losses, problem.weights_and_bias(solutions[best])


def _two_loops(
    gradient: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray, float]], inverse: np.ndarray
) -> np.ndarray:
    """Returns the gradient times the inverse Hessian that the pairs and the diagonal `inverse` stand for."""
    direction, factors = gradient.copy(), []
    for change, gradient_change, curvature in reversed(pairs):
        factors.append(float(np.vdot(change, direction)) / curvature)
        direction -= np.float32(factors[-1]) * gradient_change
    direction *= inverse
    if pairs:
        # The last step shows how far the diagonal is off as a whole.
        _, gradient_change, curvature = pairs[-1]
        direction *= np.float32(curvature / float(np.vdot(gradient_change, inverse * gradient_change)))
    for change, gradient_change, curvature in pairs:
        direction += np.float32(factors.pop() - float(np.vdot(gradient_change, direction)) / curvature) * change
    return direction


def check_grid(log10_c: Sequence[float]) -> None:
    if not all(abs(one) <= MAX_LOG10_C for one in log10_c):  # false for a NaN too
        raise UserError(
            f"the grid of log10(c) is {tuple(log10_c)}, it must stay within {MAX_LOG10_C:g} of 0; -6 to 6 is usual"
        )
    if len(log10_c) == 0 or np.any(np.diff(log10_c) <= 0) or not np.allclose(np.diff(log10_c, n=2), 0):
        raise UserError(f"the grid of log10(c) is {tuple(log10_c)}, it must rise in even steps; give at least one")
