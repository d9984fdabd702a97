"""Exact ranks in a full ranking, without sorting it: falling similarity, equal ones by rising position.

Similarities come from float32 products, whose last digits depend on block sizes and threads. So whatever lies within
`rounding` of a target is compared again in float64, and the ranks depend on the numbers alone. Equal rows are equal in
float64 too, so true ties fall to the smaller position.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from evaluation.metrics.blocks import Rows, in_memory, read_rows, take_rows
from evaluation.progress import progress

NEAR = 1.5e-6  # see `rounding`
_BLOCK_ROWS = 16_384  # of the gallery at a time, at most
_BLOCK_VALUES = 1 << 26  # of the gallery that all threads have at a time: 256 MB
_BLOCK_SIMILARITIES = 16_000_000  # at a time: 64 MB
_BLOCKS_A_THREAD = 2  # from here on threads take whole blocks, and never wait for each other
_FEW_TARGETS = 32  # up to here a compare for each target is faster than a table
_MASK_BYTES = 1 << 19  # a compare's results, so that they stay in the core's cache
_LANES = 16  # words that are added before their bytes are: below 256, so that no byte overflows
_PAIRS = 64  # rows at a time in float64, so that they stay in the core's cache
_MAX_WAITING = 1 << 16  # doubtful pairs that wait for each other
_KEPT_TABLES = 128  # queries up to which tables are kept from block to block: 64 MB
_BUCKETS, _BUCKETS_UNKEPT = 1 << 18, 1 << 14


def target_ranks(
    queries: np.ndarray,
    gallery: Rows,
    targets: Sequence[np.ndarray],
    *,
    num_threads: int | None = None,
    block_rows: int | None = None,
) -> list[np.ndarray]:
    """Returns the rank, from 1, of each target in its query's ranking of the whole gallery: int64, one array per query.

    The gallery is read once, a block at a time, and may be larger than memory (a `numpy.memmap`, float16 too).

    Args:
        queries: L2-normalised float32 `[q, dim]`.
        gallery: L2-normalised floats `[n, dim]`.
        targets: positions in the gallery, one array per query, perhaps empty.
        num_threads: that multiply and count; None: one per core.
        block_rows: rows of the gallery at a time; None: 16,384, or fewer where many threads have a block each.

    Raises:
        ValueError: shapes do not fit, a target is outside the gallery, or an embedding is not finite.
    """
    num_rows = gallery.shape[0]
    if queries.ndim != 2 or len(gallery.shape) != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} must be [q, dim] and [n, dim]")
    if len(targets) != len(queries):
        raise ValueError(
            f"there are targets of {len(targets)} queries, and {len(queries)} queries; give one array each"
        )
    if not np.isfinite(queries).all():
        raise ValueError("an embedding is not finite; embed again")
    lengths = [len(one) for one in targets]
    positions = np.concatenate([np.zeros(0, np.int64), *(np.asarray(one, np.int64) for one in targets)])
    outside = positions[(positions < 0) | (positions >= num_rows)]
    if len(outside):
        raise ValueError(f"target {outside[0]} is outside the gallery of {num_rows} rows")
    if len(positions) == 0:
        return [np.zeros(0, np.int64) for _ in lengths]
    ends = np.cumsum(lengths)[:-1]
    queries = np.ascontiguousarray(queries, np.float32)
    gallery = in_memory(gallery)
    num_threads = num_threads or os.cpu_count() or 1  # pragma: no mutate: any number of threads counts the same
    if block_rows is None:
        share = _BLOCK_VALUES // (num_threads * gallery.shape[1])  # pragma: no mutate: any block size counts the same
        block_rows = min(_BLOCK_ROWS, max(1024, share))  # pragma: no mutate: likewise
    block_rows = min(block_rows, num_rows)
    by_blocks = num_rows >= _BLOCKS_A_THREAD * num_threads * block_rows  # pragma: no mutate: either way counts the same
    method = _Few if max(lengths) <= _FEW_TARGETS else _Many  # pragma: no mutate: both count the same
    counter = method(queries, gallery, np.split(positions, ends), block_rows)
    width = -(-block_rows // (8 * _LANES)) * 8 * _LANES
    share = _BLOCK_SIMILARITIES // width // (num_threads if by_blocks else 1)  # pragma: no mutate: likewise
    query_rows = max(1, min(len(queries), share))  # pragma: no mutate: likewise

    def compare(found: np.ndarray, first: int, block: np.ndarray, start: int) -> None:
        found[:, len(block) :] = -np.inf  # pragma: no mutate: NaN is near nothing either
        np.matmul(queries[first : first + len(found)], block.T, out=found[:, : len(block)])
        # What is not finite in the block shows in every query's product, which is smaller.
        if not np.isfinite(found[:, : len(block)].sum()):
            raise ValueError("an embedding is not finite; embed again")
        counter.add(found, first, block, start)

    def compare_blocks(starts: range) -> None:
        rows = np.empty((block_rows, gallery.shape[1]), np.float32)  # pragma: no mutate: float64 only takes longer
        found = np.empty((query_rows, width), np.float32)  # pragma: no mutate: likewise
        for start in starts:
            stop = min(start + block_rows, num_rows)
            out = rows[: stop - start]  # pragma: no mutate: not to allocate one for each block
            block = read_rows(gallery, start, stop, out)  # pragma: no mutate: likewise
            for first in range(0, len(queries), query_rows):
                compare(found[: len(queries) - first], first, block, start)
            bar.update(stop - start)

    # Each thread makes its products itself: BLAS's own threads would spin while they wait.
    with (
        threadpool_limits(1, user_api="blas"),  # pragma: no mutate: only quicker
        ThreadPoolExecutor(num_threads) as pool,  # pragma: no mutate: likewise
        progress(num_rows, "rank", "row") as bar,
    ):
        if by_blocks:
            step = num_threads * block_rows
            jobs = [pool.submit(compare_blocks, range(first, num_rows, step)) for first in range(0, step, block_rows)]
            for job in jobs:
                job.result()
        else:  # too few blocks to share out: the queries are
            buffer = np.empty((query_rows, width), np.float32)  # pragma: no mutate: float64 only takes longer
            for start in range(0, num_rows, block_rows):
                block = read_rows(gallery, start, min(start + block_rows, num_rows))
                for first in range(0, len(queries), query_rows):
                    num_queries = min(query_rows, len(queries) - first)
                    shares = num_threads + 1  # pragma: no mutate: any number of shares counts the same
                    ends_of_shares = np.linspace(0, num_queries, shares)  # pragma: no mutate: likewise
                    bounds = ends_of_shares.astype(int).tolist()
                    jobs = [
                        pool.submit(compare, buffer[low:high], first + low, block, start)
                        for low, high in itertools.pairwise(bounds)
                        if low < high  # pragma: no mutate: an empty share counts nothing
                    ]
                    for job in jobs:
                        job.result()
                bar.update(len(block))
    return np.split(1 + counter.before(), ends)


def ranks_without(ranks: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Returns the ranks that are left when others leave the ranking: each, less the number of those before it.

    Args:
        ranks: int `[n]`, of what stays.
        removed: int `[m]`, of what leaves; in any order.
    """
    return ranks - np.searchsorted(np.sort(removed), ranks)


def average_precision(ranks: np.ndarray) -> float:
    """Returns the mean, over the targets, of the precision at each one's rank.

    Args:
        ranks: int `[targets]`, from 1, unique.

    Raises:
        ValueError: there is no target, so that the mean is undefined.
    """
    if len(ranks) == 0:
        raise ValueError("average precision needs at least 1 match in the ranking, there is none")
    return float(np.mean(np.arange(1, len(ranks) + 1) / np.sort(ranks)))


def rounding(similarities: np.ndarray) -> np.ndarray:
    """Returns how far the float32 product of unit vectors may be off, from 1.5e-6 at similarity 0 to 3e-6 at 1 and -1.

    Measured, not proved. At 64 to 4,096 dimensions products were off by at most 0.47 of this on random, skewed and
    nearly constant vectors, and by 0.9 on vectors made so that large terms cancel.
    """
    off: np.ndarray = NEAR * (1 + np.abs(similarities))
    return off


def exact_similarities(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the inner product of each row with its partner, float64 `[n]`: the same for the same rows, anywhere.

    Products of float32 values are exact in float64. numpy adds up a row in one order, whatever the other rows are.

    Args:
        left: float32 `[n, dim]`.
        right: float32 `[n, dim]`, or one partner for all, `[dim]`.
    """
    products = left.astype(np.float64)  # pragma: no mutate: None is float64 too
    products *= right.astype(np.float64)  # pragma: no mutate: likewise
    similarities: np.ndarray = products.sum(axis=1)
    return similarities


def _exact(queries: np.ndarray, owners: np.ndarray, gallery: Rows, positions: np.ndarray) -> np.ndarray:
    """Returns the similarity of each position's row to the query that owns it, float64 `[positions]`."""
    found = np.empty(len(positions))
    for pairs in _pairs_of(len(positions)):
        found[pairs] = exact_similarities(take_rows(gallery, positions[pairs]), queries.take(owners[pairs], axis=0))
    return found


def _exact_to(query: np.ndarray, gallery: Rows, positions: np.ndarray) -> np.ndarray:
    """Returns the similarity of each position's row to one query, float64 `[positions]`."""
    found = np.empty(len(positions))
    for pairs in _pairs_of(len(positions)):
        found[pairs] = exact_similarities(take_rows(gallery, positions[pairs]), query)
    return found


def _pairs_of(count: int) -> Iterator[slice]:
    """Returns slices of a few that cover `count` pairs."""
    starts = range(0, count, _PAIRS)  # pragma: no mutate: pairs that are compared twice give the same twice
    return (slice(start, start + _PAIRS) for start in starts)  # pragma: no mutate: likewise


class _Few:
    """Counts what ranks before each of a few targets, by comparing all similarities with each target's."""

    def __init__(self, queries: np.ndarray, gallery: Rows, targets: Sequence[np.ndarray], block_rows: int) -> None:
        self._queries = queries
        self._gallery = gallery
        lengths = np.array([len(one) for one in targets])
        self._used = np.arange(lengths.max()) < lengths[:, None]
        positions = np.concatenate(targets)
        self._positions = np.full(self._used.shape, -1)  # pragma: no mutate: nothing is near a place that is not used
        self._positions[self._used] = positions
        # Places that a query does not use have a similarity that nothing reaches.
        self._exact = np.full(self._used.shape, np.inf)
        # A gallery of one block has each target's float32 similarity at hand: the exact ones are found when needed.
        one_block = block_rows >= gallery.shape[0]  # pragma: no mutate: found at once or when needed, they are the same
        owners = np.repeat(np.arange(len(queries)), lengths)
        known = None if one_block else _exact(queries, owners, gallery, positions)  # pragma: no mutate: likewise
        self._exact[self._used] = np.nan if known is None else known  # pragma: no mutate: likewise
        self._before = np.zeros(self._used.shape, np.int64)
        self._lock = threading.Lock()  # threads may count for one query at once, in different blocks

    def before(self) -> np.ndarray:
        return self._before[self._used]

    def add(self, found: np.ndarray, first: int, block: np.ndarray, start: int) -> None:
        """Adds the rows of `block`, which starts at position `start`.

        Args:
            found: float32 `[m, width]`, similarities of queries `first` and following, -inf past the block's end.
            first: see `found`.
            block: float32 `[n, dim]`.
            start: see there.
        """
        width = found.shape[1]
        exact, positions = self._exact[first : first + len(found)], self._positions[first : first + len(found)]
        num_targets = positions.shape[1]
        # A target's column matters where its similarity is not known: then there is one block, which starts at 0.
        columns = np.minimum(positions, len(block) - 1)
        own = np.take_along_axis(found, columns, axis=1)  # pragma: no mutate: the last axis is the default
        targets = np.where(np.isnan(exact), own, exact)
        # Infinity less infinity is not a number.
        off = np.where(np.isfinite(targets), rounding(targets), 0)  # pragma: no mutate: any number serves
        # Where a target's own similarity is a product too, both may be off.
        off = np.where(np.isnan(exact), 2 * off, off)  # pragma: no mutate: more only compares more pairs again
        above = (targets + off).astype(np.float32)  # pragma: no mutate: float32 is only quicker
        below = (targets - off).astype(np.float32)  # pragma: no mutate: likewise
        step = max(1, _MASK_BYTES // (num_targets * width))  # pragma: no mutate: how many at a time
        masks = np.empty((2, step, num_targets, width), bool)
        waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for low in range(0, len(found), step):
            rows = slice(low, min(low + step, len(found)))
            before, near = masks[:, : rows.stop - low]
            np.greater(found[rows, None, :], above[rows, :, None], out=before)
            np.greater_equal(found[rows, None, :], below[rows, :, None], out=near)
            counts = _count(before)
            with self._lock:
                self._before[first + low : first + rows.stop] += counts
            near ^= before
            doubtful = np.flatnonzero(np.bitwise_or.reduce(near.view(np.uint64), axis=1).view(bool))
            row, columns = np.divmod(doubtful, width)
            # A target is near itself.
            of_pair = near[row, :, columns] & (start + columns[:, None] != positions[low + row])
            needed = of_pair.any(axis=1)
            waiting.append((first + low + row[needed], columns[needed], of_pair[needed]))
            num_waiting = sum(len(queries) for queries, _, _ in waiting)
            if num_waiting > _MAX_WAITING:  # pragma: no mutate: settled sooner or later, they count the same
                self._settle(waiting, block, start)
                waiting = []
        self._settle(waiting, block, start)

    def _settle(self, waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]], block: np.ndarray, start: int) -> None:
        """Adds the pairs of (query, row of the block, bool for each target: whether it is near)."""
        if not any(len(queries) for queries, _, _ in waiting):
            return
        queries, rows, near = (np.concatenate([one[part] for one in waiting]) for part in range(3))
        owners, starts = np.unique(queries, return_index=True)
        unknown = np.isnan(self._exact[owners])
        missing = np.logical_or.reduceat(near, starts) & unknown  # pragma: no mutate: what is known stays the same
        if missing.any():
            own, place = np.nonzero(missing)
            own = owners[own]
            self._exact[own, place] = _exact(self._queries, own, self._gallery, self._positions[own, place])
        similarities = _exact(self._queries, queries, block, rows)[:, None]
        targets = self._exact[queries]
        smaller = (start + rows)[:, None] < self._positions[queries]  # pragma: no mutate: a target is no pair of itself
        near &= (similarities > targets) | ((similarities == targets) & smaller)
        counts = np.add.reduceat(near.astype(np.int64), starts)
        with self._lock:
            self._before[owners] += counts


def _count(mask: np.ndarray) -> np.ndarray:
    """Returns the number of True along the last of three axes, whose length is a multiple of 8 x _LANES.

    Eight bytes are added at a time, as one word; `numpy.count_nonzero` along an axis takes several times as long.
    """
    words = mask.view(np.uint64)
    words = words.reshape(*words.shape[:2], _LANES, words.shape[2] // _LANES).sum(axis=2)
    counts: np.ndarray = words.view(np.uint8).sum(axis=2, dtype=np.uint32)
    return counts


class _Many:
    """Counts what ranks before each of many targets, by a table from similarity to place among the targets."""

    def __init__(self, queries: np.ndarray, gallery: Rows, targets: Sequence[np.ndarray], block_rows: int) -> None:
        del block_rows  # all the same here
        self._queries = queries
        # Complex numbers sort by their real part, then by the other: here by falling similarity, then position.
        keys = [1j * own - _exact_to(queries[number], gallery, own) for number, own in enumerate(targets)]
        if not all(np.isfinite(one).all() for one in keys):
            raise ValueError("an embedding is not finite; embed again")
        self._orders = [np.argsort(one) for one in keys]
        self._keys = [one[self._orders[number]] for number, one in enumerate(keys)]
        self._before = [np.zeros(len(one), np.int64) for one in keys]
        self._lock = threading.Lock()  # see `_Few`
        self._tables: list[np.ndarray] | None = None
        if len(queries) <= _KEPT_TABLES:  # pragma: no mutate: tables that are not kept are made for each block
            self._tables = [_table(one.real, _BUCKETS) for one in self._keys]  # pragma: no mutate: likewise

    def before(self) -> np.ndarray:
        unsorted = [np.empty_like(one) for one in self._before]
        for number, before in enumerate(self._before):
            unsorted[number][self._orders[number]] = before
        return np.concatenate(unsorted)

    def add(self, found: np.ndarray, first: int, block: np.ndarray, start: int) -> None:
        """Adds the rows of `block`, which starts at position `start`; `found` as `_Few.add` has it."""
        for query, row in enumerate(found[:, : len(block)], first):
            keys = self._keys[query]
            if len(keys) == 0:
                continue
            kept = None if self._tables is None else self._tables[query]  # pragma: no mutate: the same if made again
            table = _table(keys.real, _BUCKETS_UNKEPT) if kept is None else kept  # pragma: no mutate: likewise
            places = table.take(_bucket(row, len(table)), mode="clip")
            counts = np.bincount(places, minlength=len(keys) + 2)  # pragma: no mutate: those past the end are 0
            doubtful = np.flatnonzero(places == len(keys) + 1)
            falling = -row[doubtful].astype(np.float64)  # pragma: no mutate: None is float64 too
            place = np.searchsorted(keys.real, falling)
            padded = np.concatenate([[-np.inf], keys.real, [np.inf]])  # pragma: no mutate: +inf would only compare more
            # The nearest target above and the nearest below.
            apart = np.minimum(falling - padded[place], padded[place + 1] - falling)
            near = apart <= rounding(falling)  # pragma: no mutate: at the limit itself, either is right
            columns = doubtful[near]
            similarities = _exact_to(self._queries[query], block, columns)
            place[near] = np.searchsorted(keys, -similarities + 1j * (start + columns), side="right")
            counts[: len(keys) + 1] += np.bincount(place, minlength=len(keys) + 1)
            # A row at place p comes before the targets p and following.
            before = np.cumsum(counts[: len(keys)])
            with self._lock:
                self._before[query] += before


def _bucket(similarities: np.ndarray, num_buckets: int) -> np.ndarray:
    """Returns buckets of equal width from -1 to 1; similarities outside get numbers outside."""
    scaled = similarities * np.float32(num_buckets / 2)
    scaled += np.float32(num_buckets / 2)
    return scaled.astype(np.int32)


def _table(falling: np.ndarray, num_buckets: int) -> np.ndarray:
    """Returns for each bucket how many targets are more similar, or targets + 1 where this does not tell.

    Args:
        falling: float64 `[targets]`, their similarities negated, rising.
        num_buckets: of the table.
    """
    # The bucket itself is rounded, by less than 3e-7.
    off = rounding(falling) + 5e-7
    low, high = ((num_buckets / 2) * (1 - falling + side) for side in (-off, off))
    last = num_buckets - 1  # pragma: no mutate: the first bucket and the last are unsure in any case
    low = np.clip(low, 0, last).astype(np.int64)  # pragma: no mutate: likewise
    high = np.clip(high, 0, last).astype(np.int64)  # pragma: no mutate: likewise
    num_above = len(falling) - np.cumsum(np.bincount(low, minlength=num_buckets))
    changes = np.bincount(low, minlength=num_buckets + 1) - np.bincount(high + 1, minlength=num_buckets + 1)
    unsure = np.cumsum(changes)[:num_buckets] > 0
    unsure[[0, -1]] = True
    num_above[unsure] = len(falling) + 1
    return num_above.astype(np.uint16 if len(falling) < 65_000 else np.uint32)
