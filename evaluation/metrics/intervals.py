"""Intervals by the bootstrap: how far a mean over items could be another, had other items been drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 2000
_VALUES_AT_A_TIME = 4_000_000


def bootstrap_interval(
    values: Sequence[np.ndarray], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of the means of `values`, by resampling the items.

    Arrays of one length are drawn from together, so that items they share, such as the pictures of two tasks, are drawn
    alike; where they share none, that changes nothing.

    Args:
        values: floats `[n_i]` each, one value per item; one array for a metric, several for a mean of metrics.
        seed: equal seeds give equal intervals.
        num_resamples: draws.

    Raises:
        ValueError: there is no array, or one without items.
    """
    by_length: dict[int, np.ndarray] = {}
    for one in values:
        if one.ndim != 1 or len(one) == 0:
            raise ValueError(f"values have shape {one.shape}; [n > 0] is needed")
        by_length[len(one)] = by_length.get(len(one), np.zeros(len(one))) + one
    rng = np.random.default_rng(seed)
    total = np.zeros(num_resamples)
    for length, summed in by_length.items():
        step = max(_VALUES_AT_A_TIME // length, 1)  # pragma: no mutate: how many at a time changes no draw
        for start in range(0, num_resamples, step):
            draws = rng.integers(0, length, (min(step, num_resamples - start), length))
            total[start : start + step] += summed[draws].mean(axis=1)
    if not by_length:
        raise ValueError("there are 0 arrays of values, at least 1 is needed")
    low, high = np.quantile(total / len(values), [0.025, 0.975])
    return float(low), float(high)


def paired_bootstrap(
    first: Sequence[np.ndarray], other: Sequence[np.ndarray], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of other's means, less that of first's, by resampling the shared items.

    Args:
        first: floats `[n_i]` each, see `bootstrap_interval`.
        other: of the same items.
        seed: equal seeds give equal intervals.
        num_resamples: draws.

    Raises:
        ValueError: the shapes differ, or there are no items.
    """
    differences = []
    for a, b in zip(first, other, strict=True):
        if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
            raise ValueError(f"values have shapes {a.shape} and {b.shape}; both must be [n > 0]")
        differences.append(np.subtract(b, a, dtype=np.float64))
    return bootstrap_interval(differences, seed=seed, num_resamples=num_resamples)
