"""Linear classifiers of embeddings: the fitted probe, the rows to fit and to choose by, and what its solvers share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.schema import UserError

HELDOUT_SHARE = 0.1
BLOCK_VALUES = 2_000_000  # scores at a time and thread: 8 MB
BLOCK_ROWS = 4096


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
        for rows in row_slices(len(features), BLOCK_ROWS):
            block = np.asarray(features[rows], np.float32)
            check_finite(block, rows.start)
            np.matmul(block, self.weights.T, out=scores[rows])
            scores[rows] += self.bias
        return scores

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns int64 `[n]`: the class of the largest score, the first of equal ones."""
        classes: np.ndarray = self.scores(features).argmax(axis=1)
        return classes


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
    by_class = np.lexsort([labels])  # rows of a class stay in their order
    ends = np.flatnonzero(np.diff(labels[by_class])) + 1
    heldout = np.zeros(len(labels), bool)
    for rows in np.split(by_class, ends):
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        heldout[rng.permutation(rows)[:count]] = True
    return np.flatnonzero(~heldout), np.flatnonzero(heldout)


class Selected:
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
        check_finite(taken, positions)
        return taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSets:
    """The rows to train on, to choose by, and both."""

    train: Selected
    train_labels: np.ndarray
    val: Selected
    val_labels: np.ndarray
    both: Selected
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
    ) -> ProbeSets:
        num_classes = check_labels(features, labels, num_classes)
        if val_features is None or val_labels is None:
            if val_features is not val_labels:
                names = ("val_labels", "val_features") if val_features is None else ("val_features", "val_labels")
                raise ValueError(f"{names[0]} is given and {names[1]} is None; give both, or neither to hold rows out")
            kept, heldout = stratified_split(labels, heldout_share, seed)
            if not len(heldout):
                raise UserError(
                    f"none of {len(labels)} rows can be held out: each class has one; give validation rows, or fit "
                    "with a fixed c"
                )
            arrays, both_labels = [features], labels
        else:
            if len(val_labels) == 0:
                raise UserError("there are 0 validation rows, at least 1 is needed; leave them out to hold some out")
            if val_features.shape[1:] != features.shape[1:]:
                raise UserError(
                    f"validation features have shape {val_features.shape} and training features {features.shape}; "
                    "embed both with the same encoder"
                )
            _check_rows(val_features, val_labels)
            _check_range(val_labels, num_classes)
            arrays, both_labels = [features, val_features], np.concatenate([labels, val_labels])
            kept, heldout = np.arange(len(labels)), np.arange(len(labels), len(both_labels))
        return cls(
            train=Selected(arrays, kept),
            train_labels=both_labels[kept],
            val=Selected(arrays, heldout),
            val_labels=both_labels[heldout],
            both=Selected(arrays, np.arange(len(both_labels))),
            both_labels=both_labels,
            num_classes=num_classes,
        )


def softmax(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities, in the place of `scores`, and each row's log loss."""
    scores -= scores.max(axis=1, keepdims=True)
    true = scores[np.arange(len(labels)), labels]
    np.exp(scores, out=scores)
    sums = scores.sum(axis=1, keepdims=True)
    scores /= sums
    return scores, np.log(sums[:, 0]) - true


def moments_of(rows: Selected, pool: ThreadPoolExecutor, *, diagonal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the covariance (or the variances), float64, of `rows`."""

    def total(block: slice) -> np.ndarray:
        sums: np.ndarray = rows.take(block).sum(axis=0, dtype=np.float64)
        return sums

    blocks = list(row_slices(len(rows), BLOCK_ROWS))
    mean = np.sum(list(pool.map(total, blocks)), axis=0) / len(rows)

    def second(block: slice) -> np.ndarray:
        centred = rows.take(block) - mean
        if diagonal:
            moment: np.ndarray = np.einsum("ij,ij->j", centred, centred)  # pragma: no mutate: capitals mean the same
        else:
            moment = centred.T @ centred
        return moment

    moments = np.zeros(rows.dim if diagonal else (rows.dim, rows.dim))
    for part in pool.map(second, blocks):
        moments += part
    return mean, moments / len(rows)


def validate(
    rows: Selected, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray, pool: ThreadPoolExecutor
) -> tuple[float, float]:
    """Returns the accuracy, and the mean log loss of the rows whose class has had a training row (0 if none has)."""
    known = np.isfinite(bias)[labels]

    def of_block(block: slice) -> tuple[int, float]:
        scores = rows.take(block) @ weights.T + bias
        num_right = int((scores.argmax(axis=1) == labels[block]).sum())
        _, losses = softmax(scores, labels[block])
        return num_right, float(losses[known[block]].sum(dtype=np.float64))

    parts = list(pool.map(of_block, row_slices(len(rows), rows_of_scores(len(weights)))))
    return sum(right for right, _ in parts) / len(rows), sum(loss for _, loss in parts) / max(int(known.sum()), 1)


def rows_of_scores(num_classes: int) -> int:
    """Returns how many rows' scores are computed at a time."""
    return min(max(BLOCK_VALUES // num_classes, 256), 4096)


def row_slices(num_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


@contextlib.contextmanager
def workers(num_threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads that each run BLAS alone: faster than BLAS's own threads between which the softmax would wait.

    What a block's product is then does not depend on how many threads there are.
    """
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool,  # pragma: no mutate: any number gives the same
    ):
        yield pool


def check_labels(features: np.ndarray, labels: np.ndarray, num_classes: int | None) -> int:
    """Returns the number of classes, one more than the largest label if it is None.

    Raises:
        UserError: the arrays do not fit together, there is one class only, or a label is outside the classes.
    """
    _check_rows(features, labels)
    num_present = len(np.unique(labels))
    if num_present < 2:
        raise UserError(f"the labels hold {num_present} class, at least 2 are needed; give pictures of another class")
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    _check_range(labels, num_classes)
    return num_classes


def _check_rows(features: np.ndarray, labels: np.ndarray) -> None:
    if features.ndim != 2 or len(features) != len(labels) or not np.issubdtype(features.dtype, np.floating):
        raise UserError(
            f"features have shape {features.shape} of {features.dtype} for {len(labels)} labels; floats [n, dim] and n "
            "labels are needed"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise UserError(f"labels have shape {labels.shape} of {labels.dtype}; whole numbers [n] are needed")


def _check_range(labels: np.ndarray, num_classes: int) -> None:
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise UserError(f"label {outside[0]} is outside 0 to {num_classes - 1}; number the classes from 0")


def check_finite(block: np.ndarray, positions: int | np.ndarray) -> None:
    # One sum is much quicker than a test of each value, and is finite when all are, short of an overflow.
    if np.isfinite(block.sum()):
        return
    wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(wrong):
        row = positions + wrong[0] if isinstance(positions, int) else positions[wrong[0]]
        raise UserError(f"row {row} of the features is not finite; embed again, float16 overflows at 65,504")
