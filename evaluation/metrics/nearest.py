"""Exact nearest neighbours, in an order that depends on the numbers alone; the gallery may be larger than memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import faiss
import numpy as np
from tqdm import tqdm

from evaluation.metrics.blocks import Rows, blocks, in_memory
from evaluation.metrics.ranks import exact_similarities, rounding
from evaluation.progress import progress

_BLOCK_VALUES = 1 << 25  # of the gallery at a time: 128 MB
_MORE = 16  # neighbours that are fetched beyond k, to see where the similarity falls
_MAX_FETCHED = 1 << 24  # at a time, of all queries: some 600 MB
_SLICE = 1024  # queries that are merged at a time
_PAIRS = 64  # rows at a time in float64, so that they stay in the core's cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest of the gallery, by falling similarity, then by rising position."""

    positions: np.ndarray
    """int64 `[queries, k]`, rows of the gallery."""
    similarities: np.ndarray
    """float64 `[queries, k]`; equal rows have equal ones."""


def nearest(
    gallery: Rows, queries: np.ndarray, k: int, *, num_threads: int | None = None, block_rows: int | None = None
) -> Neighbours:
    """Returns the `k` rows of `gallery` with the largest inner product with each query, by exact search.

    faiss finds them a block at a time, in float32. Ties go to the smaller position, which faiss does not see to: where
    what it found ends within rounding of place k, more is fetched; what remains is compared again in float64. So the
    gallery is read twice, and again if there are many ties across place k.

    Args:
        gallery: L2-normalised floats `[n, dim]`, perhaps memory-mapped.
        queries: L2-normalised float32 `[queries, dim]`.
        k: at least 1; at most n are returned.
        num_threads: that merge and compare; None: one per core. faiss uses as many as OpenMP is set to.
        block_rows: rows of the gallery at a time; None: 128 MB of them.

    Raises:
        ValueError: the shapes do not fit, `k` is under 1, or a value is not finite.
    """
    shape = gallery.shape
    if len(shape) != 2 or queries.ndim != 2 or shape[1] != queries.shape[1] or shape[0] == 0:
        raise ValueError(f"gallery {shape} and queries {queries.shape} must be [n > 0, dim] and [m, dim]")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if not np.isfinite(queries).all():
        raise ValueError("an embedding is not finite; embed again")
    k = min(k, shape[0])
    queries = np.ascontiguousarray(queries, np.float32)
    gallery = in_memory(gallery)
    block_rows = block_rows or max(1, _BLOCK_VALUES // shape[1])  # pragma: no mutate: any block size finds the same
    positions = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k))
    pending = np.arange(len(queries))
    fetch = min(shape[0], k + _MORE)
    threads = num_threads or os.cpu_count() or 1  # pragma: no mutate: any number finds the same
    with (
        ThreadPoolExecutor(threads) as pool,  # pragma: no mutate: likewise
        progress(2 * shape[0], "search", "row") as bar,
    ):
        while len(pending):
            unsettled = []
            at_once = max(1, _MAX_FETCHED // fetch)  # pragma: no mutate: any number finds the same
            for start in range(0, len(pending), at_once):
                asked = pending[start : start + at_once]
                found, rough = _fetch(_read(gallery, block_rows, bar), queries[asked], fetch, pool)
                # k rows have at least this, and what was not fetched at most that of the last fetched; both rounded.
                sorted_at_k = np.partition(-rough, k - 1)  # pragma: no mutate: a place before it only compares more
                placed = -sorted_at_k[:, k - 1]
                least = placed.astype(np.float64)  # pragma: no mutate: None is float64 too
                least -= 2 * rounding(least)
                ended = rough.min(axis=1) < least  # pragma: no mutate: at the limit itself, either is right
                settled = ended | (fetch == shape[0])
                unsettled.append(asked[~settled])
                found, rough = found[settled], rough[settled]
                wanted = rough >= least[settled, None]  # pragma: no mutate: likewise
                exact = _exact_where(_read(gallery, block_rows, bar), wanted, found, queries[asked[settled]], pool)
                order = np.lexsort((found, -exact))[:, :k]
                positions[asked[settled]] = np.take_along_axis(found, order)
                similarities[asked[settled]] = np.take_along_axis(exact, order)
            pending = np.concatenate(unsettled)
            fetch = min(shape[0], 4 * fetch)
    return Neighbours(positions=positions, similarities=similarities)


def _read(gallery: Rows, block_rows: int, bar: tqdm[NoReturn]) -> Iterator[tuple[int, np.ndarray]]:
    """Returns the blocks of the gallery, and advances `bar`, which expects two passes, by each."""
    bar.total = max(2 * gallery.shape[0], bar.n + gallery.shape[0])  # ties across place k need more
    for start, block in blocks(gallery, block_rows):
        yield start, block
        bar.update(len(block))


def _fetch(
    read: Iterable[tuple[int, np.ndarray]], queries: np.ndarray, count: int, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions int64 and similarities float32 `[queries, count]` of the most similar rows, in no order."""
    shape = len(queries), count
    found = np.empty(shape, np.int64)
    rough = np.full(shape, -np.inf, np.float32)  # pragma: no mutate: float64 holds the same values, NaN is last too
    for start, block in read:
        # No more than the block has.
        values, places = faiss.knn(queries, block, min(count, len(block)), metric=faiss.METRIC_INNER_PRODUCT)

        def merge(first: int, start: int = start, values: np.ndarray = values, places: np.ndarray = places) -> None:
            rows = slice(first, first + _SLICE)
            both = np.concatenate([rough[rows], values[rows]], axis=1)
            kept = np.argpartition(-both, count - 1)[:, :count]
            rough[rows] = np.take_along_axis(both, kept)
            both_places = np.concatenate([found[rows], places[rows] + start], axis=1)
            found[rows] = np.take_along_axis(both_places, kept)

        list(pool.map(merge, range(0, len(queries), _SLICE)))
    return found, rough


def _exact_where(
    read: Iterable[tuple[int, np.ndarray]],
    wanted: np.ndarray,
    found: np.ndarray,
    queries: np.ndarray,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """Returns the similarities of the `wanted` of the positions `found`, float64 of their shape; -inf elsewhere."""
    exact = np.full(wanted.shape, -np.inf)
    flat = np.flatnonzero(wanted)
    flat = flat[np.argsort(found.ravel()[flat])]
    rows = found.ravel()[flat]
    if len(flat) == 0:
        return exact
    at_once = 64 * _PAIRS  # pragma: no mutate: any number gives the same
    for start, block in read:
        low, high = np.searchsorted(rows, (start, start + len(block)))

        def compare(first: int, start: int = start, block: np.ndarray = block, high: int = high) -> None:
            last = min(first + at_once, high)
            for one in range(first, last, _PAIRS):  # pragma: no mutate: compared twice, they are the same
                pairs = slice(one, min(one + _PAIRS, high))
                left = queries.take(flat[pairs] // wanted.shape[1], axis=0)
                exact.ravel()[flat[pairs]] = exact_similarities(left, block.take(rows[pairs] - start, axis=0))

        firsts = range(low, high, at_once)  # pragma: no mutate: likewise
        list(pool.map(compare, firsts))
    return exact
