"""Linear probe: how much of the classes a linear classifier finds in frozen embeddings.

Protocol (version 2). Embeddings are used as they are, L2-normalised, without augmentation.

`exact` is multinomial logistic regression with an L2 penalty: the minimum of `c * sum of log losses + half the squared
norm of the weights`, biases not penalised, which is scikit-learn's objective for three classes or more. (With two, it
fits one vector where this fits two: its solution at 2c is this one at c.) `c` is chosen by accuracy on held-out
pictures: every second power of ten from 10^-6 to 10^6, then three times the two neighbours of the best at half the
distance. Of equal accuracies the lowest log loss on the held-out pictures wins, of equal losses the smallest `c`: where
every `c` classifies the held-out part without a fault, the loss still tells a probe that knows from one that guesses.
(Version 1 took the smallest `c`, which may predict one class only.) Held-out pictures of classes that the rest lacks
count in the accuracy and not in the loss. The probe is then fitted to all training pictures, held-out ones included.

`sgd` is for sets that are too large for that: minibatch gradient descent with momentum and a cosine schedule, no
penalty, one probe for each learning rate, all trained on the same batches; the choice is made as above. The grid and
the schedule are this project's choice.

Without validation pictures, a tenth of each class is held out: at least one of two, never all. Accuracy at 1 and at 5
is measured on the test pictures (at 5 only where there are more classes); equal scores rank by class position, and
classes stand in the order of their folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from evaluation.progress import progress
from evaluation.protocol import Context, Result, register
from evaluation.sets.labelled import check_training_classes, read_labelled
from pipeline.schema import UserError

LOG10_C = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
MAX_LOG10_C = 30.0  # from its negative; float32 holds the gradient of not much more
NUM_REFINEMENTS = 3  # the last compares neighbours at a quarter of a power of ten
HELDOUT_SHARE = 0.1
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # for features of variance 1
MAX_LEARNING_RATE = 100.0
MOMENTUM = 0.9
NUM_EPOCHS = 30
BATCH_SIZE = 1024
ACCURACY_RANKS = (1, 5)
_BLOCK_VALUES = 2_000_000  # scores at a time and thread: 8 MB
_BLOCK_ROWS = 4096
_SGD_ROWS = 256
_MEMORY = 10  # pairs of steps and gradient changes that stand for the curvature
_REFRESH = 50  # iterations after which the preconditioner is made anew
_MIN_STEP = 1e-4
_SEARCH_TOLERANCE, _SEARCH_ITERATIONS = 1e-4, 100  # while values of c are compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A fitted linear classifier."""

    weights: np.ndarray  # float32 [classes, dim]
    bias: np.ndarray  # float32 [classes]; -inf for a class without a training picture
    chosen: float  # the value of `c`, or the learning rate
    validation_accuracies: Mapping[float, float]  # of every value that was tried
    validation_losses: Mapping[float, float]  # mean log losses, in nats
    converged: bool  # of the last fit; gradient descent ends with its schedule, so True

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Returns float32 `[n, classes]`, larger is better.

        Raises:
            UserError: the features have another width, or are not finite.
        """
        dim = self.weights.shape[1]
        if features.ndim != 2 or features.shape[1] != dim:
            raise UserError(f"features have shape {features.shape}, the probe takes [n, {dim}]; use the same encoder")
        scores = np.empty((len(features), len(self.weights)), np.float32)
        for rows in _blocks(len(features), _BLOCK_ROWS):
            block = np.asarray(features[rows], np.float32)
            _check_finite(block, rows.start)
            np.matmul(block, self.weights.T, out=scores[rows])
            scores[rows] += self.bias
        return scores

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns int64 `[n]`: the class of the largest score, the first of equal ones."""
        return self.scores(features).argmax(axis=1)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    c: float = 1.0,
    num_classes: int | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    num_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights, float32 `[classes, dim]`, and biases, float32 `[classes]`, of logistic regression.

    They minimise `c * sum of log losses + half the squared norm of the weights`. The result does not depend on the
    number of threads.

    Args:
        features: float `[n, dim]`, perhaps memory-mapped; one float32 copy is kept in memory.
        labels: int `[n]`, in [0, num_classes); every class must have a row.
        c: inverse strength of the penalty, from 1e-30 to 1e30.
        num_classes: None: one more than the largest label.
        tolerance: the decrease of the objective that the next step promises, as a share of the objective, below which
            the fit ends.
        max_iterations: passes over the data, about; reaching it is no error.
        num_threads: None: one a core.

    Raises:
        UserError: there is one class only, a class without a row, a shape that does not fit, or a value that is not
            finite.
    """
    num_classes = _check(features, labels, num_classes)
    check_training_classes(labels, [str(one) for one in range(num_classes)], "the labels")
    if not 10**-MAX_LOG10_C <= c <= 10**MAX_LOG10_C:
        raise UserError(f"c is {c}, it must be from 1e-{MAX_LOG10_C:g} to 1e{MAX_LOG10_C:g}; 1 is a start")
    with _workers(num_threads) as pool:
        problem = _Problem(_Rows([features], np.arange(len(labels))), labels, num_classes, pool)
        solution = problem.solve(c, problem.start(), tolerance=tolerance, max_iterations=max_iterations)
        return problem.weights_and_bias(solution)


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
    loss = 0.0
    for rows in _blocks(len(features), max(1, _BLOCK_VALUES // len(weights))):
        logits = np.asarray(features[rows], np.float64) @ weights.T.astype(np.float64) + bias
        top = logits.max(axis=1)
        true = logits[np.arange(len(logits)), labels[rows]]
        loss += float((np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - true).sum())
    return c * loss + 0.5 * float(np.square(weights, dtype=np.float64).sum())


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
    num_threads: int | None = None,
) -> LinearProbe:
    """Returns the exact probe with the best `c`, fitted to training and validation rows together.

    Args:
        features: float `[n, dim]`, perhaps memory-mapped.
        labels: int `[n]`, in [0, num_classes). A class without a row is never predicted; its bias is -inf.
        val_features: float `[m, dim]`; None: a part of the training rows is held out.
        val_labels: int `[m]`.
        num_classes: None: one more than the largest label.
        log10_c: the coarse grid, rising and evenly spaced, from -30 to 30.
        num_refinements: how often the neighbours of the best value are tried at half the distance.
        heldout_share: of each class, without validation rows.
        seed: of what is held out.
        num_threads: None: one a core; the result does not depend on it.

    Raises:
        UserError: bad input, see `fit`.
    """
    _check_grid(log10_c)
    sets = _Sets.of(features, labels, val_features, val_labels, num_classes, heldout_share, seed)
    with _workers(num_threads) as pool:
        best, accuracies, losses, start = _choose_c(sets, log10_c, num_refinements, pool)
        whole = _Problem(sets.both, sets.both_labels, sets.num_classes, pool)
        solution = whole.solve(10.0**best, whole.start(start), tolerance=1e-6, max_iterations=1000)
        weights, bias = whole.weights_and_bias(solution)
    return LinearProbe(
        weights=weights,
        bias=bias,
        chosen=10.0**best,
        validation_accuracies={10.0**exponent: accuracies[exponent] for exponent in sorted(accuracies)},
        validation_losses={10.0**exponent: losses[exponent] for exponent in sorted(losses)},
        converged=solution.converged,
    )


def fit_best_sgd(
    features: np.ndarray,
    labels: np.ndarray,
    val_features: np.ndarray | None = None,
    val_labels: np.ndarray | None = None,
    num_classes: int | None = None,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    num_epochs: int = NUM_EPOCHS,
    batch_size: int = BATCH_SIZE,
    heldout_share: float = HELDOUT_SHARE,
    seed: int = 0,
    num_threads: int | None = None,
) -> LinearProbe:
    """Returns the gradient-descent probe of the best learning rate, trained on training and validation rows together.

    Args:
        features: float `[n, dim]`, perhaps memory-mapped; read a batch at a time.
        labels: int `[n]`, in [0, num_classes). A class without a row is never predicted; its bias is -inf.
        val_features: float `[m, dim]`; None: a part of the training rows is held out.
        val_labels: int `[m]`.
        num_classes: None: one more than the largest label.
        learning_rates: for features of variance 1, above 0 and at most 100; a probe is trained for each.
        num_epochs: passes over the data.
        batch_size: rows a step.
        heldout_share: of each class, without validation rows.
        seed: of what is held out and of the order of rows; equal seeds give equal bits.
        num_threads: None: one a core; the result does not depend on it.

    Raises:
        UserError: bad input, see `fit`.
    """
    _check_schedule(learning_rates, num_epochs, batch_size)
    sets = _Sets.of(features, labels, val_features, val_labels, num_classes, heldout_share, seed)

    def train(rows: _Rows, row_labels: np.ndarray, rates: Sequence[float]) -> list[tuple[np.ndarray, np.ndarray]]:
        return _descend(rows, row_labels, sets.num_classes, rates, num_epochs, batch_size, seed, pool)

    with _workers(num_threads) as pool:
        rates = sorted(set(learning_rates))
        probes = train(sets.train, sets.train_labels, rates)
        accuracies, losses = {}, {}
        for rate, probe in zip(rates, probes, strict=True):
            accuracies[rate], losses[rate] = _validate(sets.val, sets.val_labels, *probe, pool)
        best = best_setting(accuracies, losses)
        ((weights, bias),) = train(sets.both, sets.both_labels, [best])
    return LinearProbe(
        weights=weights,
        bias=bias,
        chosen=best,
        validation_accuracies=accuracies,
        validation_losses=losses,
        converged=True,
    )


def best_setting(accuracies: Mapping[float, float], losses: Mapping[float, float]) -> float:
    """Returns the key of the largest accuracy, of equal ones that of the lowest loss, of those the smallest."""
    return min(accuracies, key=lambda key: (-accuracies[key], losses[key], key))


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions that stay and those that are held out, int64, both rising.

    Args:
        labels: int `[n]`.
        share: of each class to hold out, rounded, at least one of two rows; a class of one row keeps it.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    by_class = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[by_class])) + 1
    heldout = np.zeros(len(labels), bool)
    for rows in np.split(by_class, ends):
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        heldout[rng.permutation(rows)[:count]] = True
    return np.flatnonzero(~heldout), np.flatnonzero(heldout)


def hits_at(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Returns bool `[n]`: whether the true class is among the first `k`; equal scores rank by class position.

    Args:
        scores: float `[n, classes]`.
        labels: int `[n]`.
        k: at least 1.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; fit again")
    true = scores[np.arange(len(labels)), labels][:, None]
    tied_before = (scores == true) & (np.arange(scores.shape[1]) < labels[:, None])
    return ((scores > true) | tied_before).sum(axis=1) < k


@register("linear_probe", version=2)
def linear_probe(context: Context) -> Result:
    """Accuracy of a linear classifier on frozen embeddings (ImageNet layout, or any labelled folder or TFDS set).

    Options: train, test (folders or tfds:...), method (exact or sgd; exact), log10_c (the coarse grid of exact),
    learning_rates and num_epochs (of sgd), heldout_share (0.1), seed (0).

    Raises:
        Unavailable: the data is not there.
        UserError: an option is out of range, or a class has no training picture.
    """
    method = context.option("method", "exact")
    if method not in ("exact", "sgd"):
        raise UserError(f"linear_probe.method is {method!r}; give exact or sgd")
    seed = _number(context, "seed", "0", int)
    if seed < 0:
        raise UserError(f"linear_probe.seed is {seed}, it must be at least 0")
    share = _number(context, "heldout_share", str(HELDOUT_SHARE), float)
    if not 0 < share < 1:
        raise UserError(f"linear_probe.heldout_share is {share}, it must lie between 0 and 1; 0.1 is usual")
    num_epochs = _number(context, "num_epochs", str(NUM_EPOCHS), int)
    grid = _numbers(context, "log10_c", LOG10_C)
    rates = _numbers(context, "learning_rates", LEARNING_RATES)
    source, test_source = context.option("train", "imagenet/train"), context.option("test", "imagenet/val")
    # Before hours of embedding.
    _check_grid(grid)
    _check_schedule(rates, num_epochs, BATCH_SIZE)
    train = read_labelled(context, "linear_probe_train", source, option="linear_probe.train")
    test = read_labelled(context, "linear_probe_test", test_source, train.class_names, option="linear_probe.test")
    check_training_classes(train.labels, train.class_names, source)
    num_classes = len(train.class_names)
    train_embedded = context.embed(train.images, truth=train.truth)
    test_embedded = context.embed(test.images, truth=test.truth)
    widths = train_embedded.vectors.shape[1], test_embedded.vectors.shape[1]
    if widths[0] != widths[1]:
        raise UserError(
            f"training embeddings have {widths[0]} dimensions, the test's {widths[1]}; embed both with one model"
        )
    labels, test_labels = train.labels[train_embedded.positions], test.labels[test_embedded.positions]
    # Unreadable pictures are out by now.
    check_training_classes(labels, train.class_names, source)
    settings: dict[str, Any] = {"method": method, "seed": seed, "heldout_share": share}
    vectors = train_embedded.vectors
    if method == "exact":
        settings |= {"log10_c": grid, "num_refinements": NUM_REFINEMENTS}
        probe = fit_best(vectors, labels, None, None, num_classes, log10_c=grid, heldout_share=share, seed=seed)
    else:
        settings |= {"learning_rates": rates, "num_epochs": num_epochs, "batch_size": BATCH_SIZE, "momentum": MOMENTUM}
        probe = fit_best_sgd(
            vectors,
            labels,
            None,
            None,
            num_classes,
            learning_rates=rates,
            num_epochs=num_epochs,
            heldout_share=share,
            seed=seed,
        )
    ranks = [k for k in ACCURACY_RANKS if k < num_classes]
    items = {f"accuracy_at_{k}": np.zeros(len(test_labels)) for k in ranks}
    for rows in _blocks(len(test_labels), _rows_of_scores(num_classes)):
        scores = probe.scores(test_embedded.vectors[rows])
        for k in ranks:
            items[f"accuracy_at_{k}"][rows] = hits_at(scores, test_labels[rows], k)
    return Result(
        metrics={name: float(values.mean()) for name, values in items.items()},
        counts={
            "num_train": len(labels),
            "num_test": len(test_labels),
            "num_classes": num_classes,
            "num_unreadable": train_embedded.num_unreadable + test_embedded.num_unreadable,
            "chosen_c" if method == "exact" else "chosen_learning_rate": probe.chosen,
            "validation_accuracies": {f"{value:.4g}": one for value, one in probe.validation_accuracies.items()},
            "validation_losses": {f"{value:.4g}": one for value, one in probe.validation_losses.items()},
            "converged": probe.converged,
        },
        settings=settings,
        items=items,
    )


def _numbers(context: Context, name: str, default: Sequence[float]) -> list[float]:
    text = context.option(name, ",".join(map(str, default)))
    try:
        return [float(one) for one in text.split(",")]
    except ValueError as error:
        raise UserError(f"linear_probe.{name} is {text!r}; give numbers with commas, such as 0.1,1") from error


def _number(context: Context, name: str, default: str, kind: Callable[[str], Any]) -> Any:
    text = context.option(name, default)
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"linear_probe.{name} is {text!r}, which is no such number; {default} is usual") from error


class _Rows:
    """Some rows of one or two arrays, read when they are needed."""

    def __init__(self, arrays: Sequence[np.ndarray], positions: np.ndarray):
        self._arrays = arrays
        self._positions = positions  # in the arrays, one after the other
        self.dim = arrays[0].shape[1]

    def __len__(self) -> int:
        return len(self._positions)

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        """Returns float32 `[rows, dim]`.

        Raises:
            UserError: one is not finite.
        """
        positions = self._positions[rows]
        if len(self._arrays) == 1:
            taken = np.asarray(self._arrays[0][positions], np.float32)
        else:
            first, second = self._arrays
            in_first = positions < len(first)
            taken = np.empty((len(positions), self.dim), np.float32)
            taken[in_first] = first[positions[in_first]]
            taken[~in_first] = second[positions[~in_first] - len(first)]
        _check_finite(taken, positions)
        return taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sets:
    """The rows to train on, to choose by, and both."""

    train: _Rows
    train_labels: np.ndarray
    val: _Rows
    val_labels: np.ndarray
    both: _Rows
    both_labels: np.ndarray
    num_classes: int

    @classmethod
    def of(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        val_features: np.ndarray | None,
        val_labels: np.ndarray | None,
        num_classes: int | None,
        heldout_share: float,
        seed: int,
    ) -> _Sets:
        num_classes = _check(features, labels, num_classes)
        if val_features is None or val_labels is None:
            kept, heldout = stratified_split(labels, heldout_share, seed)
            if not len(heldout):
                raise UserError(f"none of {len(labels)} rows can be held out: each class has one; give validation rows")
            arrays, both_labels = [features], labels
        else:
            if len(val_labels) == 0:
                raise UserError("there are 0 validation rows, at least 1 is needed; leave them out to hold some out")
            if val_features.shape[1:] != features.shape[1:]:
                raise UserError(
                    f"validation features have shape {val_features.shape} and training features {features.shape}; "
                    "embed both with the same encoder"
                )
            _check(val_features, val_labels, num_classes, need_two=False)
            arrays, both_labels = [features, val_features], np.concatenate([labels, val_labels])
            kept, heldout = np.arange(len(labels)), np.arange(len(labels), len(both_labels))
        return cls(
            train=_Rows(arrays, kept),
            train_labels=both_labels[kept],
            val=_Rows(arrays, heldout),
            val_labels=both_labels[heldout],
            both=_Rows(arrays, np.arange(len(both_labels))),
            both_labels=both_labels,
            num_classes=num_classes,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Solution:
    params: np.ndarray  # float32 [rank + 1, present classes]
    converged: bool


class _Problem:
    """The objective in coordinates in which its curvature is nearly diagonal: principal axes, centred, and a one.

    The penalty does not change under rotation, and the bias, which is free of it, takes up the centring.
    """

    def __init__(self, rows: _Rows, labels: np.ndarray, num_classes: int, pool: ThreadPoolExecutor):
        self._pool, self._num_classes = pool, num_classes
        # A class without a row has no finite solution: its bias would fall for ever.
        self._present, self._labels, uses = np.unique(labels, return_inverse=True, return_counts=True)
        self._log_priors = np.log(uses / len(labels)).astype(np.float32)
        self._mean, moments = _moments(rows, pool)
        variances, axes = np.linalg.eigh(moments)
        # Without variance there is nothing to learn from, and the penalty keeps such weights at 0.
        kept = variances > 1e-12 * float(variances[-1])
        self._axes = axes[:, kept].astype(np.float32)
        self._scatter = np.append(variances[kept], 1.0)[:, None] * len(labels)  # [rank + 1, 1]
        self._penalised = np.append(np.ones(kept.sum()), 0.0)[:, None]
        self._coordinates = np.ones((len(labels), kept.sum() + 1), np.float32)
        mean = self._mean.astype(np.float32)

        def rotate(block: slice) -> None:
            np.matmul(rows.take(block) - mean, self._axes, out=self._coordinates[block, :-1])

        for _ in pool.map(rotate, _blocks(len(rows), _BLOCK_ROWS)):
            pass

    def start(self, probe: tuple[np.ndarray, np.ndarray] | None = None) -> _Solution:
        """Returns where to start: at `probe` (weights, bias), or at the classes' frequencies."""
        params = np.zeros((len(self._scatter), len(self._present)), np.float32)
        params[-1] = self._log_priors
        if probe is not None:
            weights, bias = probe[0][self._present], probe[1][self._present]
            known = np.isfinite(bias)
            params[:-1, known] = (weights[known] @ self._axes).T
            params[-1, known] = bias[known] + weights[known] @ self._mean.astype(np.float32)
        return _Solution(params=params, converged=False)

    def weights_and_bias(self, solution: _Solution) -> tuple[np.ndarray, np.ndarray]:
        """Returns float32 `[classes, dim]` and `[classes]`; a common shift of all biases is taken out."""
        of_present = (self._axes.astype(np.float64) @ solution.params[:-1]).T
        bias_of_present = solution.params[-1] - of_present @ self._mean
        weights = np.zeros((self._num_classes, len(self._mean)), np.float32)
        bias = np.full(self._num_classes, -np.inf, np.float32)
        weights[self._present] = of_present
        bias[self._present] = bias_of_present - bias_of_present.mean()
        return weights, bias

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is an error below
    def solve(self, c: float, start: _Solution, *, tolerance: float, max_iterations: int) -> _Solution:
        """Returns the minimum, by limited-memory BFGS that is preconditioned with the embeddings' own covariance.

        A class's curvature is about its mean of p (1 - p) times the scatter of the embeddings, and exactly so where all
        probabilities are equal. So a step costs one pass over the data, and few are needed.

        Raises:
            UserError: the objective, or the decrease that a step promises, is not finite.
        """
        params = start.params
        value, gradient, spread = self._evaluate(params, c)
        inverse = np.zeros_like(params)
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
                if step < _MIN_STEP:
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
        return (1 / (c * np.maximum(spread, floor) * self._scatter + self._penalised)).astype(np.float32)

    def _evaluate(self, params: np.ndarray, c: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the objective, its gradient, and each class's mean of p (1 - p)."""
        loss, gradient, spread = 0.0, np.zeros_like(params), np.zeros(params.shape[1], np.float32)

        def of_block(rows: slice) -> tuple[float, np.ndarray, np.ndarray]:
            block, labels = self._coordinates[rows], self._labels[rows]
            scores, losses = _softmax(block @ params, labels)
            block_spread = scores.sum(axis=0) - np.einsum("ij,ij->j", scores, scores)
            scores[np.arange(len(labels)), labels] -= 1
            return float(losses.sum(dtype=np.float64)), block.T @ scores, block_spread

        # Blocks are summed in their own order, whichever thread is done first.
        for part in self._pool.map(of_block, _blocks(len(self._labels), _rows_of_scores(params.shape[1]))):
            loss += part[0]
            gradient += part[1]
            spread += part[2]
        weights = params[:-1]
        gradient *= np.float32(c)
        gradient[:-1] += weights
        return c * loss + 0.5 * float(np.square(weights, dtype=np.float64).sum()), gradient, spread / len(self._labels)


def _choose_c(
    sets: _Sets, log10_c: Sequence[float], num_refinements: int, pool: ThreadPoolExecutor
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
        accuracies[exponent], losses[exponent] = _validate(sets.val, sets.val_labels, weights, bias, pool)

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
                if log10_c[0] <= exponent <= log10_c[-1] and exponent not in accuracies:
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
        # The last step tells how far the diagonal is off as a whole.
        _, gradient_change, curvature = pairs[-1]
        direction *= np.float32(curvature / float(np.vdot(gradient_change, inverse * gradient_change)))
    for (change, gradient_change, curvature), factor in zip(pairs, reversed(factors), strict=True):
        direction += np.float32(factor - float(np.vdot(gradient_change, direction)) / curvature) * change
    return direction


def _descend(
    rows: _Rows,
    labels: np.ndarray,
    num_classes: int,
    rates: Sequence[float],
    num_epochs: int,
    batch_size: int,
    seed: int,
    pool: ThreadPoolExecutor,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns weights and biases of one probe a learning rate."""
    mean, moments = _moments(rows, pool, diagonal=True)
    deviation = np.sqrt(moments)
    # A dimension that is constant but for rounding stays out: its inverse would be noise.
    inverse = np.where(deviation > 1e-6 * deviation.max(), 1 / np.maximum(deviation, np.finfo(np.float32).tiny), 0)
    shift, factor = mean.astype(np.float32), inverse.astype(np.float32)
    params = np.zeros((len(rates), rows.dim + 1, num_classes), np.float32)  # the last row is the bias
    speeds = np.zeros_like(params)
    num_steps = num_epochs * -(-len(rows) // batch_size)
    step = 0
    with progress(num_steps, "descend", "step") as bar:
        for epoch in range(num_epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(rows))
            for start in range(0, len(rows), batch_size):
                # Sorted, so that a memory-mapped file is read forwards; the order within a batch has no meaning.
                chosen = np.sort(order[start : start + batch_size])
                batch = np.ones((len(chosen), rows.dim + 1), np.float32)
                batch[:, :-1] = (rows.take(chosen) - shift) * factor
                batch_labels = labels[chosen]
                decay = 0.5 * (1 + np.cos(np.pi * step / num_steps))

                def gradient(part: tuple[int, slice], batch: np.ndarray = batch, labels: np.ndarray = batch_labels):
                    probe, block = part
                    scores, _ = _softmax(batch[block] @ params[probe], labels[block])
                    scores[np.arange(len(scores)), labels[block]] -= 1
                    return probe, batch[block].T @ scores

                parts = [(probe, block) for probe in range(len(rates)) for block in _blocks(len(chosen), _SGD_ROWS)]
                speeds *= np.float32(MOMENTUM)
                for probe, one in pool.map(gradient, parts):
                    one /= np.float32(len(chosen))
                    speeds[probe] += one
                for probe, rate in enumerate(rates):
                    params[probe] -= np.float32(rate * decay) * speeds[probe]
                step += 1
                bar.update()
    present = np.isin(np.arange(num_classes), labels)
    probes = []
    for one in params:
        weights = (one[:-1] * inverse[:, None]).T
        bias = np.where(present, one[-1] - weights @ mean, -np.inf)
        probes.append((np.where(present[:, None], weights, 0).astype(np.float32), bias.astype(np.float32)))
    return probes


def _softmax(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities, in the place of `scores`, and each row's log loss."""
    scores -= scores.max(axis=1, keepdims=True)
    true = scores[np.arange(len(labels)), labels]
    np.exp(scores, out=scores)
    sums = scores.sum(axis=1, keepdims=True)
    scores /= sums
    return scores, np.log(sums[:, 0]) - true


def _moments(rows: _Rows, pool: ThreadPoolExecutor, *, diagonal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the covariance (or the variances), float64, of `rows`."""

    def total(block: slice) -> np.ndarray:
        return rows.take(block).sum(axis=0, dtype=np.float64)

    blocks = list(_blocks(len(rows), _BLOCK_ROWS))
    mean = np.sum(list(pool.map(total, blocks)), axis=0) / len(rows)

    def second(block: slice) -> np.ndarray:
        centred = rows.take(block) - mean
        return np.einsum("ij,ij->j", centred, centred) if diagonal else centred.T @ centred

    moments = np.zeros(rows.dim if diagonal else (rows.dim, rows.dim))
    for part in pool.map(second, blocks):
        moments += part
    return mean, moments / len(rows)


def _validate(
    rows: _Rows, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray, pool: ThreadPoolExecutor
) -> tuple[float, float]:
    """Returns the accuracy, and the mean log loss of the rows whose class has had a training row (0 if none has)."""
    known = np.isfinite(bias)[labels]

    def of_block(block: slice) -> tuple[int, float]:
        scores = rows.take(block) @ weights.T + bias
        num_right = int((scores.argmax(axis=1) == labels[block]).sum())
        _, losses = _softmax(scores, labels[block])
        return num_right, float(losses[known[block]].sum(dtype=np.float64))

    parts = list(pool.map(of_block, _blocks(len(rows), _rows_of_scores(len(weights)))))
    return sum(right for right, _ in parts) / len(rows), sum(loss for _, loss in parts) / max(int(known.sum()), 1)


def _rows_of_scores(num_classes: int) -> int:
    return int(np.clip(_BLOCK_VALUES // num_classes, 256, 4096))


def _blocks(num_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


@contextlib.contextmanager
def _workers(num_threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads that each run BLAS alone: faster than BLAS's own threads between which the softmax would wait.

    What a block's product is then does not depend on how many threads there are.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        yield pool


def _check(features: np.ndarray, labels: np.ndarray, num_classes: int | None, *, need_two: bool = True) -> int:
    if features.ndim != 2 or len(features) != len(labels) or not np.issubdtype(features.dtype, np.floating):
        raise UserError(
            f"features have shape {features.shape} of {features.dtype} for {len(labels)} labels; floats [n, dim] and n "
            "labels are needed"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise UserError(f"labels have shape {labels.shape} of {labels.dtype}; whole numbers [n] are needed")
    present = np.unique(labels)
    if need_two and len(present) < 2:
        raise UserError(f"the labels hold {len(present)} class, at least 2 are needed; give pictures of another class")
    limit = int(present[-1]) + 1 if num_classes is None else num_classes
    if len(present) and (present[0] < 0 or present[-1] >= limit):
        wrong = present[0] if present[0] < 0 else present[-1]
        raise UserError(f"label {wrong} is outside 0 to {limit - 1}; number the classes from 0")
    return limit


def _check_grid(log10_c: Sequence[float]) -> None:
    if not all(abs(one) <= MAX_LOG10_C for one in log10_c):  # false for a NaN too
        raise UserError(
            f"the grid of log10(c) is {tuple(log10_c)}, it must stay within {MAX_LOG10_C:g} of 0; -6 to 6 is usual"
        )
    if len(log10_c) == 0 or np.any(np.diff(log10_c) <= 0) or not np.allclose(np.diff(log10_c, n=2), 0, atol=1e-9):
        raise UserError(f"the grid of log10(c) is {tuple(log10_c)}, it must rise in even steps; give at least one")


def _check_schedule(learning_rates: Sequence[float], num_epochs: int, batch_size: int) -> None:
    if len(learning_rates) == 0 or not all(0 < one <= MAX_LEARNING_RATE for one in learning_rates):
        raise UserError(
            f"the learning rates are {tuple(learning_rates)}; give one or more, all above 0 and at most "
            f"{MAX_LEARNING_RATE:g}"
        )
    if num_epochs < 1 or batch_size < 1:
        raise UserError(f"{num_epochs} epochs and {batch_size} rows a batch; at least 1 of each is needed")


def _check_finite(block: np.ndarray, positions: int | np.ndarray) -> None:
    # One sum is much quicker than a test of each value, and is finite when all are, short of an overflow.
    if np.isfinite(block.sum()):
        return
    wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(wrong):
        row = positions + wrong[0] if isinstance(positions, int) else positions[wrong[0]]
        raise UserError(f"row {row} of the features is not finite; embed again, float16 overflows at 65,504")
