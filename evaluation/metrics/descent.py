"""Linear probes by minibatch gradient descent, for sets that are too large for the exact minimum."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from evaluation.metrics.linear import (
    HELDOUT_SHARE,
    LinearProbe,
    ProbeSets,
    Selected,
    best_setting,
    moments_of,
    row_slices,
    softmax,
    validate,
    workers,
)
from evaluation.progress import progress
from pipeline.schema import UserError

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # for features of variance 1
MAX_LEARNING_RATE = 100.0
MOMENTUM = 0.9
NUM_EPOCHS = 30
BATCH_SIZE = 1024
_SGD_ROWS = 256


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
    train_on_validation: bool = True,
    num_threads: int | None = None,
) -> LinearProbe:
    """Returns the gradient-descent probe of the best learning rate, trained on training and validation rows together.

    Args:
        features: float `[n, dim]`, perhaps memory-mapped; read a batch at a time.
        labels: int `[n]`, in [0, num_classes). A class without a row is never predicted; its bias is -inf.
        val_features: float `[m, dim]`; None: a part of the training rows is held out.
        val_labels: int `[m]`; None with `val_features`.
        num_classes: None: one more than the largest label.
        learning_rates: for features of variance 1, above 0 and at most 100; a probe is trained for each.
        num_epochs: passes over the data.
        batch_size: rows a step.
        heldout_share: of each class, without validation rows.
        seed: of what is held out and of the order of rows; equal seeds give equal bits.
        train_on_validation: False: once the rate is chosen, validation rows are left out.
        num_threads: None: one per core; the result does not depend on it.

    Raises:
        UserError: bad input, see `fit`.
        ValueError: there are validation features without labels, or the reverse.
    """
    check_schedule(learning_rates, num_epochs, batch_size)
    sets = ProbeSets.of(features, labels, val_features, val_labels, num_classes, heldout_share, seed)

    def train(rows: Selected, row_labels: np.ndarray, rates: Sequence[float]) -> list[tuple[np.ndarray, np.ndarray]]:
        return _descend(rows, row_labels, sets.num_classes, rates, num_epochs, batch_size, seed, pool)

    with workers(num_threads) as pool:
        rates = sorted(set(learning_rates))
        probes = train(sets.train, sets.train_labels, rates)
        accuracies, losses = {}, {}
        for number, rate in enumerate(rates):
            accuracies[rate], losses[rate] = validate(sets.val, sets.val_labels, *probes[number], pool)
        best = best_setting(accuracies, losses)
        if train_on_validation:
            ((weights, bias),) = train(sets.both, sets.both_labels, [best])
        else:
            weights, bias = probes[rates.index(best)]
    return LinearProbe(
        weights=weights,
        bias=bias,
        chosen=best,
        validation_accuracies=accuracies,
        validation_losses=losses,
        converged=True,
    )


def _descend(
    rows: Selected,
    labels: np.ndarray,
    num_classes: int,
    rates: Sequence[float],
    num_epochs: int,
    batch_size: int,
    seed: int,
    pool: ThreadPoolExecutor,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns weights and biases of one probe a learning rate."""
    mean, moments = moments_of(rows, pool, diagonal=True)
    deviation = np.sqrt(moments)
    # A dimension that is constant but for rounding stays out: its inverse would be noise.
    inverse = np.where(deviation > 1e-6 * deviation.max(), 1 / np.maximum(deviation, np.finfo(np.float32).tiny), 0)
    shift = mean.astype(np.float32)  # pragma: no mutate: float64 only takes longer
    factor = inverse.astype(np.float32)  # pragma: no mutate: likewise
    shape = len(rates), rows.dim + 1, num_classes  # the last row is the bias
    params = np.zeros(shape, np.float32)  # pragma: no mutate: float64 only takes longer
    speeds = np.zeros_like(params)
    num_batches = -(-len(rows) // batch_size)
    num_steps = num_epochs * num_batches
    with progress(num_steps, "descend", "step") as bar:
        for epoch in range(num_epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(rows))
            for step, start in enumerate(range(0, len(rows), batch_size), epoch * num_batches):
                # Sorted, so that a memory-mapped file is read forwards; the order within a batch has no meaning.
                chosen = np.sort(order[start : start + batch_size])
                width = rows.dim + 1
                batch = np.ones((len(chosen), width), np.float32)  # pragma: no mutate: float64 only takes longer
                batch[:, :-1] = (rows.take(chosen) - shift) * factor
                batch_labels = labels[chosen]
                decay = 0.5 * (1 + np.cos(np.pi * step / num_steps))

                def gradient(
                    part: tuple[int, slice], batch: np.ndarray = batch, labels: np.ndarray = batch_labels
                ) -> tuple[int, np.ndarray]:
                    probe, block = part
                    scores, _ = softmax(batch[block] @ params[probe], labels[block])
                    scores[np.arange(len(scores)), labels[block]] -= 1
                    return probe, batch[block].T @ scores

                parts = [(probe, block) for probe in range(len(rates)) for block in row_slices(len(chosen), _SGD_ROWS)]
                speeds *= np.float32(MOMENTUM)
                for probe, one in pool.map(gradient, parts):
                    one /= np.float32(len(chosen))
                    speeds[probe] += one
                for probe, rate in enumerate(rates):
                    params[probe] -= np.float32(rate * decay) * speeds[probe]
                bar.update()
    present = np.isin(np.arange(num_classes), labels)
    probes = []
    for one in params:
        weights = (one[:-1] * inverse[:, None]).T
        bias = np.where(present, one[-1] - weights @ mean, -np.inf)
        probes.append((np.where(present[:, None], weights, 0).astype(np.float32), bias.astype(np.float32)))
    return probes


def check_schedule(learning_rates: Sequence[float], num_epochs: int, batch_size: int) -> None:
    if len(learning_rates) == 0 or not all(0 < one <= MAX_LEARNING_RATE for one in learning_rates):
        raise UserError(
            f"the learning rates are {tuple(learning_rates)}; give one or more, all above 0 and at most "
            f"{MAX_LEARNING_RATE:g}"
        )
    if num_epochs < 1 or batch_size < 1:
        raise UserError(f"{num_epochs} epochs and {batch_size} rows a batch; at least 1 of each is needed")
