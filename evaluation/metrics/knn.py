"""Weighted k-nearest-neighbour classification: neighbours vote with exp(similarity / temperature).

After Wu et al. 2018. Neighbours of equal similarity come by position in the gallery, classes of equal votes by class
number.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics.blocks import Rows, check_unit_length
from evaluation.metrics.nearest import nearest
from pipeline.schema import UserError

NUM_NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_MAX_VOTES = 1 << 23  # queries x classes at a time: 64 MB


def class_votes(
    similarities: np.ndarray, classes: np.ndarray, *, num_classes: int, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Returns each class's votes, float64 `[queries, num_classes]`, scaled so that the closest neighbour has 1.

    The row's largest similarity is subtracted before exp: at temperature 0.01, exp(1 / 0.01) overflows float32.

    Args:
        similarities: float `[queries, k]`.
        classes: int `[queries, k]`, the neighbours' classes in [0, num_classes).
        num_classes: columns of the result.
        temperature: above 0.

    Raises:
        ValueError: the temperature is not above 0, a similarity is not finite, or a class is out of range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if not np.isfinite(similarities).all():
        raise ValueError("a similarity is not finite; embed again")
    outside = classes[(classes < 0) | (classes >= num_classes)]
    if len(outside):
        raise ValueError(f"a neighbour's class is {outside[0]}; it must be 0 to {num_classes - 1}, set num_classes")
    exact = similarities.astype(np.float64)  # pragma: no mutate: None is float64 too
    weights = np.exp((exact - exact.max(axis=1, keepdims=True)) / temperature)
    places = np.arange(len(exact))[:, None] * num_classes + classes
    votes = np.bincount(places.ravel(), weights.ravel(), minlength=len(exact) * num_classes)
    return votes.reshape(len(exact), num_classes)


def knn_predictions(
    gallery: Rows,
    gallery_classes: np.ndarray,
    queries: np.ndarray,
    *,
    ks: int | tuple[int, ...] = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
    top: int = 5,
    num_threads: int | None = None,
    block_rows: int | None = None,
) -> dict[int, np.ndarray]:
    """Returns the classes that each query's k neighbours vote for, most votes first, int64 `[m, top]`, by k.

    Classes without a vote come last, by number. There are fewer than `top` columns where there are fewer classes. The
    top-5 accuracy at k = 20 is `(found[20] == truth[:, None]).any(axis=1).mean()`.

    Args:
        gallery: L2-normalised floats `[n, dim]`, perhaps memory-mapped.
        gallery_classes: int `[n]`, from 0.
        queries: L2-normalised float32 `[m, dim]`; none of them is in the gallery.
        ks: one or several, each at least 1 and at most n: fewer neighbours than asked for would go unseen.
        temperature: above 0.
        top: classes to return, at least 1.
        num_threads: see `evaluation.metrics.nearest.nearest`.
        block_rows: see there.

    Raises:
        UserError: a k is above n, or there is no query.
        ValueError: shapes do not fit, classes are not integers, a class or a number is out of range, or an embedding is
            not finite or not of length 1.
    """
    ks = (ks,) if isinstance(ks, int) else ks
    gallery_classes = np.asarray(gallery_classes)
    num_rows = gallery.shape[0]
    if not ks:
        raise ValueError("ks is empty; give at least one number of neighbours")
    if max(ks) > num_rows:
        raise UserError(f"k is {max(ks)}, the training pictures are {num_rows}; give more pictures or a smaller k")
    if len(queries) == 0:
        raise UserError("there are 0 test pictures, at least 1 is needed; name another test folder")
    if len(gallery_classes) != num_rows:
        raise ValueError(f"there are {num_rows} training embeddings and {len(gallery_classes)} classes; give one each")
    if gallery_classes.dtype.kind not in ("b", "i", "u"):
        raise ValueError(
            f"classes are {gallery_classes.dtype}, {gallery_classes[0]!r} first; they must be integers from 0, such as "
            "np.unique(classes, return_inverse=True)[1]"
        )
    if min(ks) < 1 or top < 1 or gallery_classes.min() < 0:
        raise ValueError(
            f"ks are {ks}, top is {top} and the least class {gallery_classes.min()}; they must be at least 1, 1 and 0"
        )
    check_unit_length(gallery, "gallery")
    check_unit_length(queries, "queries")
    found = nearest(gallery, queries, max(ks), num_threads=num_threads, block_rows=block_rows)
    num_classes = int(gallery_classes.max()) + 1
    predicted = {k: np.empty((len(queries), min(top, num_classes)), np.int64) for k in ks}
    step = max(1, _MAX_VOTES // num_classes)  # pragma: no mutate: only how many votes are in memory at a time
    for start in range(0, len(queries), step):  # pragma: no mutate: rows that are predicted twice are the same twice
        rows = slice(start, start + step)  # pragma: no mutate: likewise
        for k in ks:
            classes = gallery_classes[found.positions[rows, :k]]
            similarities = found.similarities[rows, :k]
            votes = class_votes(similarities, classes, num_classes=num_classes, temperature=temperature)
            # A stable sort, as argmax, puts the smaller of two classes with equal votes first.
            if top == 1:  # pragma: no mutate: argmax is only quicker
                predicted[k][rows] = votes.argmax(axis=1)[:, None]
            else:
                predicted[k][rows] = np.argsort(-votes, stable=True)[:, :top]
    return predicted
