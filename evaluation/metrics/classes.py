"""Classification by class vectors, such as those of names: ranks of the true classes, accuracies, mAP, calibration.

Of equal similarities, the class (or the picture) with the smaller position ranks first.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from evaluation.metrics.blocks import Rows, blocks, take_rows
from evaluation.metrics.ranks import average_precision, target_ranks
from pipeline.schema import UserError

TAIL_BELOW, HEAD_FROM = 10, 100  # training pictures
NUM_BINS = 15
TEMPLATES = ("{}",)
_PLACE = re.compile(r"\{c?\}")
_BLOCK_CLASSES = 8192
_BLOCK_PICTURES = 256


def hits_at(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Returns bool `[n]`: whether the true class is among the first `k`; equal scores rank by class position.

    Args:
        scores: float `[n, classes]`.
        labels: int `[n]`.
        k: at least 1.

    Raises:
        ValueError: a score is NaN, shapes do not fit, a label is no class, or `k` is under 1.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be [n, classes] and [n]")
    _check_labels(labels, scores.shape[1])
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; fit again")
    labels = labels.astype(np.int64)  # bools would choose rows, not classes
    true = scores[np.arange(len(labels)), labels][:, None]
    tied_before = (scores == true) & (np.arange(scores.shape[1]) < labels[:, None])
    hits: np.ndarray = ((scores > true) | tied_before).sum(axis=1) < k
    return hits


def true_class_ranks(
    embeddings: np.ndarray, labels: np.ndarray, classes: np.ndarray, *, num_threads: int | None = None
) -> np.ndarray:
    """Returns int64 `[n]`: the rank, from 1, of each picture's class; equal similarities rank by position.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`.
        labels: int `[n]`, rows of `classes`.
        classes: L2-normalised float32 `[classes, dim]`.
        num_threads: None: one per core.

    Raises:
        ValueError: shapes do not fit, a label is no row or no integer, or a similarity is not finite.
    """
    labels = np.asarray(labels)
    _check_labels(labels, len(classes))
    targets = list(labels[:, None])
    return np.concatenate(target_ranks(embeddings, classes, targets, num_threads=num_threads))


def _check_labels(labels: np.ndarray, num_classes: int) -> None:
    if labels.dtype.kind not in ("b", "i", "u"):
        raise ValueError(f"labels are {labels.dtype}; they must be integers from 0 to {num_classes - 1}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"label {outside[0]} is outside 0 to {num_classes - 1}; number the classes from 0")


def class_average_precisions(
    embeddings: np.ndarray, truths: np.ndarray, classes: np.ndarray, *, num_threads: int | None = None
) -> np.ndarray:
    """Returns each class's average precision over all pictures, float64 `[classes]`, for several labels per picture.

    A class ranks the pictures by similarity; its average precision is the mean of the precisions at the pictures that
    show it, and 0 for a class that none shows. The mean over classes is the mAP.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`.
        truths: bool `[n, classes]`, whether a picture shows a class.
        classes: L2-normalised float32 `[classes, dim]`.
        num_threads: None: one per core.

    Raises:
        ValueError: shapes do not fit, or a similarity is not finite.
    """
    if truths.shape != (len(embeddings), len(classes)) or truths.dtype != np.bool_:
        raise ValueError(
            f"truths are {truths.dtype} {truths.shape}; bool [{len(embeddings)}, {len(classes)}] is needed, a row per "
            "picture and a column per class"
        )
    shown = [np.flatnonzero(column) for column in truths.T]
    ranks = target_ranks(classes, embeddings, shown, num_threads=num_threads)
    return np.array([average_precision(one) if len(one) else 0.0 for one in ranks])


def accuracy_items(ranks: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Returns the values whose means are the accuracies: of pictures, and of the classes that appear.

    The names are `accuracy_at_1`, `accuracy_at_5` (where more than 5 classes compete) and `mean_per_class_accuracy`.

    Args:
        ranks: int `[n]`, from 1, of each picture's class; at least one.
        labels: int `[n]`; the mean over classes is of those that appear.
        num_classes: that compete.
    """
    _, class_of, uses = np.unique(labels, return_inverse=True, return_counts=True)
    items = {"accuracy_at_1": np.where(ranks <= 1, 1.0, 0.0)}
    if num_classes > 5:
        items["accuracy_at_5"] = np.where(ranks <= 5, 1.0, 0.0)
    return items | {"mean_per_class_accuracy": np.bincount(class_of, weights=ranks == 1) / uses}


def class_ranks(
    embeddings: np.ndarray,
    weights: Rows,
    truths: Sequence[np.ndarray],
    entity_ids: Sequence[str],
    *,
    num_threads: int | None = None,
    block_rows: int | None = None,
) -> list[np.ndarray]:
    """Returns the ranks, from 1, of each picture's true classes: int64, one array per picture; ties rank by entity id.

    Classes are read a block at a time; no array has a value for each picture and class.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`.
        weights: L2-normalised floats `[classes, dim]`.
        truths: positions of classes, one array per picture.
        entity_ids: the classes' ids, unique.
        num_threads: None: one per core.
        block_rows: classes at a time; None: as `target_ranks` has it.

    Raises:
        UserError: there are not as many ids as classes, there is a duplicate id, or the width is another.
        ValueError: a value is not finite, or a truth is no class.
    """
    _check_classes(embeddings, weights, entity_ids)
    order = np.argsort(np.array(entity_ids))
    place = np.argsort(order)  # the inverse
    # Ties rank by position, so the classes are read in the order of their ids.
    sorted_already = (order == np.arange(len(order))).all()  # pragma: no mutate: only saves the copies
    rows = weights if sorted_already else _Ordered(weights, order)  # pragma: no mutate: likewise
    targets = [place[np.asarray(one, np.int64)] for one in truths]
    return target_ranks(embeddings, rows, targets, num_threads=num_threads, block_rows=block_rows)


def top_probabilities(
    embeddings: np.ndarray,
    weights: Rows,
    scale: float,
    *,
    num_threads: int | None = None,
    block_rows: int = _BLOCK_CLASSES,
) -> np.ndarray:
    """Returns the softmax's largest probability, float64 `[n]`.

    Logits are `scale * embeddings @ weights.T`. Classes are read a block at a time. The result does not depend on the
    number of threads.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`.
        weights: L2-normalised floats `[classes, dim]`.
        scale: of the logits, above 0.
        num_threads: None: one per core.
        block_rows: classes at a time.

    Raises:
        ValueError: a value is not finite, or `scale` is not above 0.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}; it must be finite and above 0")
    if not np.isfinite(embeddings).all():
        raise ValueError("an embedding is not finite; embed again")
    embeddings = np.asarray(embeddings, np.float32)
    # The largest cosine so far.
    tops = np.full(len(embeddings), -np.inf, np.float32)  # pragma: no mutate: float64 holds the same values
    sums = np.zeros(len(embeddings))  # of exp(scale * (cosine - top))
    parts = [slice(start, start + _BLOCK_PICTURES) for start in range(0, len(embeddings), _BLOCK_PICTURES)]

    def add(part: slice, block: np.ndarray) -> None:
        cosines = embeddings[part] @ block.T
        new_tops = np.maximum(tops[part], cosines.max(axis=1))
        # Scaled after the subtraction, which is exact for close values: the top classes decide the sum.
        cosines -= new_tops[:, None]
        cosines *= np.float32(scale)
        np.exp(cosines, out=cosines)
        old_tops = tops[part].astype(np.float64)  # pragma: no mutate: None is float64 too
        sums[part] *= np.exp(scale * (old_tops - new_tops))
        sums[part] += cosines.sum(axis=1, dtype=np.float64)
        tops[part] = new_tops

    # Each thread runs BLAS alone: a product is then the same however many threads there are.
    with (
        threadpool_limits(1, user_api="blas"),  # pragma: no mutate: to the last bits only
        ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool,  # pragma: no mutate: only quicker
    ):
        for _, block in blocks(weights, block_rows):
            for job in [pool.submit(add, part, block) for part in parts]:
                job.result()
    return 1 / sums


def accuracy_at(ranks: np.ndarray, k: int) -> float:
    """Returns the share of ranks, from 1, that are at most `k`."""
    return float(np.mean(ranks <= k))


class _Ordered:
    """The rows of an array in another order; none is copied before it is read."""

    def __init__(self, rows: Rows, order: np.ndarray) -> None:
        self._rows, self._order = rows, order
        self.shape = rows.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns float32 `[rows, dim]`."""
        return take_rows(self._rows, self._order[rows])


def _check_classes(embeddings: np.ndarray, weights: Rows, entity_ids: Sequence[str]) -> None:
    if weights.shape[0] != len(entity_ids):
        raise UserError(f"there are {weights.shape[0]} classes and {len(entity_ids)} entity ids; give one id per class")
    if embeddings.shape[1] != weights.shape[1]:
        raise UserError(
            f"embeddings have width {embeddings.shape[1]} and classes {weights.shape[1]}; use those of one model"
        )
    if len(set(entity_ids)) != len(entity_ids):
        raise UserError(f"{len(entity_ids)} classes have {len(set(entity_ids))} entity ids; ids must be unique")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities can be believed; bin b holds those above b / bins and up to (b + 1) / bins."""

    num_pictures: np.ndarray
    """int64 `[bins]`."""
    mean_confidences: np.ndarray
    """float64 `[bins]`; 0 for an empty bin."""
    accuracies: np.ndarray
    """float64 `[bins]`; 0 for an empty bin."""
    error: float
    """The expected calibration error."""


def calibration(confidences: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS) -> Calibration:
    """Returns the expected calibration error and its bins of equal width; a confidence of 0 is in the first.

    Args:
        confidences: float `[n]`, in [0, 1]; n at least 1.
        correct: bool `[n]`.
        num_bins: at least 1.

    Raises:
        ValueError: a confidence is outside [0, 1], or `num_bins` is under 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; it must be at least 1")
    if len(confidences) == 0 or not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError("confidences must lie in [0, 1], and one at least must be given")
    bins = np.maximum(np.ceil(confidences * num_bins).astype(np.int64) - 1, 0)
    uses = np.bincount(bins, minlength=num_bins)
    divisors = np.maximum(uses, 1)
    means = np.bincount(bins, weights=confidences, minlength=num_bins) / divisors
    accuracies = np.bincount(bins, weights=correct, minlength=num_bins) / divisors
    return Calibration(
        num_pictures=uses,
        mean_confidences=means,
        accuracies=accuracies,
        error=float(np.sum(uses * np.abs(accuracies - means)) / len(confidences)),
    )


def frequency_groups(
    image_counts: np.ndarray, *, tail_below: int = TAIL_BELOW, head_from: int = HEAD_FROM
) -> np.ndarray:
    """Returns "head", "middle" or "tail" for each class, unicode `[classes]`.

    Args:
        image_counts: int `[classes]`, training pictures.
        tail_below: a class with fewer pictures is tail.
        head_from: a class with as many pictures or more is head.

    Raises:
        UserError: the limits are not in order.
    """
    if not 0 <= tail_below <= head_from:
        raise UserError(
            f"tail is below {tail_below} pictures and head from {head_from}; tail must end where head begins"
        )
    return np.where(image_counts >= head_from, "head", np.where(image_counts < tail_below, "tail", "middle"))


def class_embeddings(
    embed: Callable[[Sequence[str]], np.ndarray], names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> np.ndarray:
    """Returns float32 `[names, dim]`: the normalised mean of the normalised embeddings of each template with the name.

    Args:
        embed: texts to float `[texts, dim]`; called once, with each name in each template. A name that several classes
            share is embedded once, so that their rows are the same to the last bit.
        names: one per class, at least one.
        templates: texts with `{}` or `{c}` for the name, at least one.

    Raises:
        UserError: an embedding is not finite or a zero vector, or a template has no place for the name.
        ValueError: there is no name or no template.
    """
    if len(names) == 0 or len(templates) == 0:
        raise ValueError(f"there are {len(names)} names and {len(templates)} templates; give at least one each")
    for template in templates:
        if not _PLACE.search(template):
            raise UserError(f"the template {template!r} has no {{}} or {{c}} where the name goes; add it")
    unique = list(dict.fromkeys(names))
    texts = [_fill(template, name) for template in templates for name in unique]
    embedded = np.asarray(embed(texts), np.float32)
    total = np.zeros((len(unique), embedded.shape[1]), np.float32)
    for start in range(0, len(texts), len(unique)):
        part = slice(start, start + len(unique))
        total += _normalised(embedded[part], texts[part])
    place = {name: position for position, name in enumerate(unique)}
    return _normalised(total, unique)[[place[name] for name in names]]


def _fill(template: str, name: str) -> str:
    return _PLACE.sub(lambda _: name, template)


def _normalised(embeddings: np.ndarray, names: Sequence[str]) -> np.ndarray:
    norms = np.linalg.norm(embeddings, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 1e-6)))
    if len(wrong):
        raise UserError(f"the embedding of the text {names[wrong[0]]!r} has norm {norms[wrong[0]]}; train again")
    normalised: np.ndarray = embeddings / norms[:, None]
    return normalised
