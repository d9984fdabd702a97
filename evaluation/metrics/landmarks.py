"""Retrieval of landmarks and of GPR1200, from embeddings or from rank lists.

Two definitions of average precision: GPR1200's is the mean of the precisions at each match, Revisited Oxford's and
Paris's the area under the precision-recall curve by trapezoids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from evaluation.metrics.blocks import Rows, check_unit_length
from evaluation.metrics.ranks import ranks_without, target_ranks

GRADES = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
PRECISION_RANKS = (1, 5, 10)


def trapezoidal_average_precision(positive_ranks: Sequence[int] | np.ndarray, num_positives: int) -> float:
    """Returns the area under the precision-recall curve, by trapezoids.

    Args:
        positive_ranks: ranks of the positives from 0, ascending, junk not counted.
        num_positives: at least 1; those that were not ranked add nothing.
    """
    ranks = np.asarray(positive_ranks)
    found = np.arange(len(ranks))
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    return float((before + (found + 1) / (ranks + 1)).sum() / 2 / num_positives)


def precision_at(positive_ranks: Sequence[int] | np.ndarray, k: int) -> float:
    """Returns the share of positives among the first min(rank of the last positive, k).

    Args:
        positive_ranks: ranks of the positives from 0, ascending, junk not counted; at least one.
        k: at least 1.
    """
    depth = min(int(max(positive_ranks)) + 1, k)
    return int((np.asarray(positive_ranks) < depth).sum()) / depth


class Judged(Protocol):
    """What is known of one query: positions in the gallery, each in one field at most."""

    @property
    def easy(self) -> Sequence[int]:
        """Pictures that show the query's landmark clearly."""
        ...

    @property
    def hard(self) -> Sequence[int]:
        """Pictures that show it under severe changes."""
        ...

    @property
    def junk(self) -> Sequence[int]:
        """Pictures that can neither be called right nor wrong."""
        ...


def revisited_metrics(
    queries: np.ndarray,
    gallery: Rows,
    truths: Sequence[Judged],
    *,
    num_threads: int | None = None,
    block_rows: int | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns `<grade>.map` and `<grade>.precision_at_{1,5,10}`, and the values of the queries behind each.

    A query without positives of a grade has no value there; a grade without queries has no metric.

    Args:
        queries: L2-normalised float32 `[queries, dim]`, of pictures cropped to their box.
        gallery: L2-normalised floats `[n, dim]`: the pictures of the ground truth, then any distractors.
        truths: one per query, such as the `queries` of `evaluation.sets.revisited.read_ground_truth`.
        num_threads: see `evaluation.metrics.ranks.target_ranks`.
        block_rows: see there.

    Raises:
        ValueError: shapes do not fit, a position is outside the gallery or a duplicate within its query, or an
            embedding is not finite or not of length 1.
    """
    if len(queries) != len(truths):
        raise ValueError(f"there are {len(queries)} queries and the ground truth of {len(truths)}; give one each")
    check_unit_length(queries, "queries")
    check_unit_length(gallery, "gallery")
    ranks = target_ranks(queries, gallery, _stated(truths), num_threads=num_threads, block_rows=block_rows)
    return _by_grade(ranks, truths)


def revisited_metrics_of_rankings(
    rankings: np.ndarray, truths: Sequence[Judged]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns what `revisited_metrics` does, from rank lists in the layout of the benchmark's own script.

    Args:
        rankings: int `[gallery, queries]`: column q has all positions of the gallery, by falling similarity to query q.
        truths: one per query.

    Raises:
        ValueError: shapes do not fit, a position is a duplicate within its query, or a column is not a permutation of
            the gallery.
    """
    if rankings.ndim != 2 or rankings.shape[1] != len(truths):
        raise ValueError(
            f"rankings have shape {rankings.shape}; [gallery, {len(truths)}] is needed, a column per query"
        )
    return _by_grade(_ranks_in(rankings.T, _stated(truths)), truths)


def _stated(truths: Sequence[Judged]) -> list[np.ndarray]:
    """Returns the easy, then the hard, then the junk positions, int64, one array per query."""
    stated = []
    for query, truth in enumerate(truths):
        own = np.array([*truth.easy, *truth.hard, *truth.junk], np.int64)
        positions, uses = np.unique(own, return_counts=True)
        if len(positions) < len(own):
            duplicate = np.argmax(uses > 1)
            raise ValueError(
                f"query {query} has position {positions[duplicate]} {uses[duplicate]} times among easy, hard and junk; "
                "list each position once"
            )
        stated.append(own)
    return stated


def _ranks_in(rankings: np.ndarray, targets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the rank, from 1, of each target in its query's rank list: int64, one array per query.

    Args:
        rankings: int `[queries, n]`, each row a permutation of the positions 0 to n - 1.
        targets: positions, one array per query.

    Raises:
        ValueError: a row is not a permutation, or a target is outside it.
    """
    num_rows = rankings.shape[1]
    ranks = []
    for number, own in enumerate(targets):
        ranking = rankings[number]
        if not np.array_equal(np.sort(ranking), np.arange(num_rows)):
            raise ValueError(f"the rank list of query {number} must hold each position 0 to {num_rows - 1} once")
        outside = own[(own < 0) | (own >= num_rows)]
        if len(outside):
            raise ValueError(f"target {outside[0]} of query {number} is outside the gallery of {num_rows} rows")
        # Sorting a permutation inverts it.
        ranks.append(1 + np.argsort(ranking)[own])
    return ranks


def _by_grade(ranks: Sequence[np.ndarray], truths: Sequence[Judged]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the metrics and their items from the ranks, from 1, of each query's easy, hard and junk pictures."""
    by_field = []
    for query, truth in enumerate(truths):
        easy, hard, junk = np.split(ranks[query], np.cumsum([len(truth.easy), len(truth.hard)]))
        by_field.append({"easy": easy, "hard": hard, "junk": junk})
    values: dict[str, float] = {}
    items: dict[str, np.ndarray] = {}
    for grade, (positive_fields, junk_fields) in GRADES.items():
        rows = []
        for own in by_field:
            positives = np.sort(np.concatenate([own[field] for field in positive_fields]))
            if len(positives) == 0:
                continue
            from_0 = ranks_without(positives, np.concatenate([own[field] for field in junk_fields])) - 1
            average = trapezoidal_average_precision(from_0, len(from_0))
            rows.append([average, *(precision_at(from_0, k) for k in PRECISION_RANKS)])
        names = ["map", *(f"precision_at_{k}" for k in PRECISION_RANKS)]
        table = np.array(rows).reshape(len(rows), len(names))
        for number, name in enumerate(names):
            column = items[f"{grade}.{name}"] = table[:, number]
            if len(column):
                values[f"{grade}.{name}"] = float(column.mean())
    return values, items


def gpr1200_average_precisions(
    embeddings: np.ndarray, categories: np.ndarray, *, num_threads: int | None = None
) -> np.ndarray:
    """Returns the average precision of each row as a query of all rows, itself included: float64 `[n]`.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`.
        categories: int `[n]`, all with the same number of rows.
        num_threads: see `evaluation.metrics.ranks.target_ranks`.

    Raises:
        ValueError: there is no row, an embedding is not finite or not of length 1, or categories differ in their
            number of rows.
    """
    if len(categories) != len(embeddings):
        raise ValueError(f"there are {len(embeddings)} embeddings and {len(categories)} categories; give one each")
    targets = list(_members(categories))
    check_unit_length(embeddings, "embeddings")
    return _mean_precisions(target_ranks(embeddings, embeddings, targets, num_threads=num_threads))


def gpr1200_average_precisions_of_rankings(rankings: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Returns what `gpr1200_average_precisions` does, from rank lists.

    Args:
        rankings: int `[n, n]`: row q has all positions by falling similarity to picture q, its own among them.
        categories: int `[n]`, all with the same number of rows.

    Raises:
        ValueError: there is no row, shapes do not fit, a row is not a permutation, or categories differ in their
            number of rows.
    """
    num_rows = len(categories)
    if rankings.shape != (num_rows, num_rows):
        raise ValueError(f"rankings have shape {rankings.shape}; [{num_rows}, {num_rows}] is needed, a row per query")
    return _mean_precisions(_ranks_in(rankings, list(_members(categories))))


def _members(categories: np.ndarray) -> np.ndarray:
    """Returns int64 `[n, per category]`: for each row the positions of all rows of its category."""
    if len(categories) == 0:
        raise ValueError("there are 0 categories; give at least one row")
    of_category, uses = np.unique(categories, return_counts=True)
    if len(set(uses.tolist())) != 1:
        raise ValueError(f"categories have {uses.min()} to {uses.max()} rows; every one must have the same number")
    num_matches = int(uses[0])
    members = np.argsort(categories).reshape(len(of_category), num_matches)
    return members[np.searchsorted(of_category, categories)]


def _mean_precisions(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean of the precisions at each target, float64 `[queries]`; all have the same number of targets."""
    stacked = np.sort(np.stack(ranks))
    num_matches = stacked.shape[1]
    precisions: np.ndarray = (np.arange(1, num_matches + 1) / stacked).sum(axis=1) / num_matches
    return precisions
