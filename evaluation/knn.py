"""Weighted k-nearest-neighbour classification: neighbours vote with exp(similarity / temperature).

Protocol (version 1), after Wu et al. 2018: k of 10, 20, 100 and 200 at temperature 0.07. Neighbours of equal similarity
come by position in the gallery; classes of equal votes by class id.
"""

from __future__ import annotations

import numpy as np

from evaluation.index import nearest

PROTOCOL_VERSION = 1
NUM_NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07


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
        ValueError: the temperature is not above 0, or a similarity is not finite.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if not np.isfinite(similarities).all():
        raise ValueError("a similarity is not finite; embed again")
    votes = np.zeros((len(similarities), num_classes))
    largest = similarities.max(axis=1, keepdims=True)
    weights = np.exp((similarities.astype(np.float64) - largest) / temperature)
    np.add.at(votes, (np.arange(len(similarities))[:, None], classes), weights)
    return votes


def knn_metrics(
    gallery: np.ndarray,
    gallery_classes: np.ndarray,
    queries: np.ndarray,
    query_classes: np.ndarray,
    *,
    ks: tuple[int, ...] = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[str, float]:
    """Returns `knn.{k}.accuracy_at_1` and `knn.num_queries`.

    Args:
        gallery: L2-normalised float32 `[n, dim]`.
        gallery_classes: int `[n]`, from 0.
        queries: L2-normalised float32 `[m, dim]`, m at least 1; none of them is in the gallery.
        query_classes: int `[m]`.
        ks: each at most n: fewer neighbours than asked for would go unseen.
        temperature: above 0.

    Raises:
        ValueError: a k is above n, there is no query, or an embedding is not finite.
    """
    if max(ks) > len(gallery) or len(queries) == 0:
        raise ValueError(f"k is {max(ks)} with {len(gallery)} pictures and {len(queries)} queries; k must be at most n")
    found = nearest(gallery, queries, max(ks))
    num_classes = int(max(gallery_classes.max(), query_classes.max())) + 1
    values: dict[str, float] = {"knn.num_queries": len(queries)}
    for k in ks:
        votes = class_votes(
            found.similarities[:, :k],
            gallery_classes[found.positions[:, :k]],
            num_classes=num_classes,
            temperature=temperature,
        )
        # argmax takes the first of equal votes, which is the smaller class id.
        values[f"knn.{k}.accuracy_at_1"] = float(np.mean(votes.argmax(axis=1) == query_classes))
    return values
