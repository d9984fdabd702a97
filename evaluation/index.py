"""Exact nearest neighbours, in an order that depends on the numbers alone."""

from __future__ import annotations

import dataclasses

import faiss
import numpy as np

NEAR_TIE = 1e-6  # float32 sums in another order differ by about this much


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest of the gallery, by falling similarity, then by rising position."""

    positions: np.ndarray  # int64 [queries, k], rows of the gallery
    similarities: np.ndarray  # float32 [queries, k]
    num_near_ties: int  # queries of which two neighbours in the list, or its last and the next, are within NEAR_TIE


def nearest(gallery: np.ndarray, queries: np.ndarray, k: int) -> Neighbours:
    """Returns the `k` rows of `gallery` with the largest inner product with each query, by exact search.

    Ties go to the smaller position, so sort the gallery by id. The list is cut only where the similarity falls, which
    makes its members independent of the order in which faiss visits the gallery.

    Args:
        gallery: L2-normalised float32 `[n, dim]`.
        queries: L2-normalised float32 `[queries, dim]`.
        k: at least 1; at most n are returned.

    Raises:
        ValueError: the shapes do not fit, `k` is under 1, or a value is not finite.
    """
    if gallery.ndim != 2 or queries.ndim != 2 or gallery.shape[1] != queries.shape[1] or len(gallery) == 0:
        raise ValueError(f"gallery {gallery.shape} and queries {queries.shape} must be [n > 0, dim] and [m, dim]")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if not (np.isfinite(gallery).all() and np.isfinite(queries).all()):
        raise ValueError("an embedding is not finite; embed again")
    k = min(k, len(gallery))
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(np.ascontiguousarray(gallery, np.float32))
    positions = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k), np.float32)
    num_near_ties = 0
    pending = np.arange(len(queries))
    fetch = min(len(gallery), k + 1)
    while len(pending):
        found_similarities, found = index.search(np.ascontiguousarray(queries[pending], np.float32), fetch)
        # A tie that reaches past the end of what was fetched might hold a smaller position: fetch more for those.
        settled = (
            np.ones(len(pending), bool)
            if fetch == len(gallery)
            else found_similarities[:, k - 1] > found_similarities[:, -1]
        )
        for row in np.flatnonzero(settled):
            order = np.lexsort((found[row], -found_similarities[row]))
            ordered = found_similarities[row][order]
            positions[pending[row]] = found[row][order[:k]]
            similarities[pending[row]] = ordered[:k]
            num_near_ties += bool((-np.diff(ordered[: k + 1]) <= NEAR_TIE).any())
        pending = pending[~settled]
        fetch = min(len(gallery), fetch * 4)
    return Neighbours(positions=positions, similarities=similarities, num_near_ties=num_near_ties)
