"""Few-shot classification by least squares in closed form, as big_vision's evaluator `fewshot_lsr` has it.

Features are brought to mean 0 and deviation 1 over the few training rows, a constant of 100 stands for the bias, so
that the penalty hardly holds it, and the targets are 1 for the true class and -1 for all others. The weights minimise
`squared error + l2 * squared norm`; a row belongs to the class of its largest score, the first of equal ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHOTS = (1, 5, 10, 25)
NUM_SEEDS = 3
L2 = 2.0**10
_BIAS = 100.0
_LEAST_DEVIATION = 1e-5  # is added to each feature's


def few_shot_accuracies(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    shots: Sequence[int] = SHOTS,
    num_seeds: int = NUM_SEEDS,
    l2: float = L2,
) -> dict[int, np.ndarray]:
    """Returns the accuracies for each number of training rows per class, float64 `[num_seeds]`, a draw each.

    Args:
        train: float `[n, dim]`.
        train_labels: int `[n]`, from 0.
        test: float `[m, dim]`; m at least 1.
        test_labels: int `[m]`.
        shots: rows per class, each at least 1; a class with fewer rows gives all that it has.
        num_seeds: draws, with the seeds 0, 1 and so on; at least 1.
        l2: strength of the penalty, above 0.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a number is out of range.
    """
    if len(test_labels) != len(test) or len(test) == 0:
        raise ValueError(f"there are {len(test)} test rows and {len(test_labels)} labels; give one each, at least 1")
    if num_seeds < 1:
        raise ValueError(f"num_seeds is {num_seeds}; it must be at least 1")
    _check_training_rows(train, train_labels)
    accuracies = {count: np.zeros(num_seeds) for count in shots}
    for seed in range(num_seeds):
        for count, found in accuracies.items():
            rows = few_shot_rows(train_labels, count, seed)
            found[seed] = np.mean(few_shot_predictions(train[rows], train_labels[rows], test, l2=l2) == test_labels)
    return accuracies


def few_shot_rows(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Returns the positions of `shots` rows per class, int64, class by class; those of fewer shots are among them.

    Args:
        labels: int `[n]`, from 0.
        shots: rows per class, at least 1; a class with fewer rows gives all that it has.
        seed: of the choice; equal seeds choose the rows that big_vision chooses.

    Raises:
        ValueError: `shots` is under 1, there is no label, or one is negative.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}; it must be at least 1")
    if len(labels) == 0 or labels.min() < 0:
        raise ValueError("labels must be class numbers from 0, at least one")
    random = np.random.default_rng(seed)
    classes = range(int(labels.max()) + 1)  # pragma: no mutate: a class more would have no row
    of_classes = [random.permutation(np.flatnonzero(labels == one)) for one in classes]
    return np.concatenate([rows[:shots] for rows in of_classes])


def few_shot_predictions(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, *, num_classes: int | None = None, l2: float = L2
) -> np.ndarray:
    """Returns the class of each test row, int64 `[m]`: that of its largest score, the first of equal ones.

    Arguments and errors are those of `few_shot_scores`.
    """
    classes: np.ndarray = np.argmax(few_shot_scores(train, train_labels, test, num_classes=num_classes, l2=l2), axis=1)
    return classes


def few_shot_scores(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, *, num_classes: int | None = None, l2: float = L2
) -> np.ndarray:
    """Returns the score of each test row for each class, float64 `[m, classes]`; -1 and 1 are the targets.

    Args:
        train: float `[n, dim]`, the few rows; n at least 1.
        train_labels: int `[n]`, in [0, num_classes).
        test: float `[m, dim]`.
        num_classes: None: one more than the largest label.
        l2: strength of the penalty, above 0.

    Raises:
        ValueError: shapes do not fit, a label is outside the classes, a value is not finite, or `l2` is not above 0.
    """
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or len(train) == 0:
        raise ValueError(f"train {train.shape} and test {test.shape} must be [n > 0, dim] and [m, dim]")
    _check_training_rows(train, train_labels)
    if num_classes is None:
        num_classes = int(train_labels.max()) + 1
    if train_labels.min() < 0 or train_labels.max() >= num_classes:
        raise ValueError(
            f"labels are {train_labels.min()} to {train_labels.max()}; they must be 0 to {num_classes - 1}"
        )
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}; it must be above 0")
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise ValueError("an embedding is not finite; embed again")
    rows = train.astype(np.float64)  # pragma: no mutate: None is float64 too
    asked = test.astype(np.float64)  # pragma: no mutate: likewise
    mean, deviation = rows.mean(axis=0), rows.std(axis=0) + _LEAST_DEVIATION
    features, asked = (_with_bias((one - mean) / deviation) for one in (rows, asked))
    targets = np.where(train_labels[:, None] == np.arange(num_classes), 1.0, -1.0)
    # (F'F + l2)^-1 F' = F' (FF' + l2)^-1: the smaller of the two is solved.
    if features.shape[0] < features.shape[1]:  # pragma: no mutate: either side gives the same weights
        weights = features.T @ np.linalg.solve(features @ features.T + l2 * np.eye(len(features)), targets)
    else:
        weights = np.linalg.solve(features.T @ features + l2 * np.eye(features.shape[1]), features.T @ targets)
    scores: np.ndarray = asked @ weights
    return scores


def _check_training_rows(train: np.ndarray, train_labels: np.ndarray) -> None:
    if len(train_labels) != len(train):
        raise ValueError(f"there are {len(train)} training rows and {len(train_labels)} labels; give one each")


def _with_bias(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.full((len(features), 1), _BIAS)], axis=1)
