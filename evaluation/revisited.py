"""Revisited Oxford and Paris: retrieval of landmarks, at three grades of difficulty.

Protocol (version 1), after the benchmark's own script. Average precision is the area under the precision-recall curve
by trapezoids. Junk leaves the ranking. A query without positives leaves the mean. Precision at k divides by
min(rank of the last positive, k). Queries are cropped to their box before they are embedded. Equal similarities rank by
position in the list of gallery pictures.

    grade    positive      junk
    easy     easy          junk and hard
    medium   easy, hard    junk
    hard     hard          junk and easy
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from evaluation.errors import UserError

PROTOCOL_VERSION = 1
GRADES = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
PRECISION_RANKS = (1, 5, 10)
# What the ground truth's pickle may name: arrays, under numpy's module names of then and now. Nothing here runs code.
_ALLOWED = frozenset(
    {
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"),  # protocols 0 to 2 write bytes as text
        ("__builtin__", "bytes"),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryTruth:
    """What the benchmark says of one query: gallery positions, and the box of the query in pixels."""

    easy: tuple[int, ...]
    hard: tuple[int, ...]
    junk: tuple[int, ...]
    box: tuple[float, float, float, float]  # left, top, right, bottom


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The names of the pictures, and the truth of every query in the order of `query_names`."""

    gallery_names: tuple[str, ...]
    query_names: tuple[str, ...]
    queries: tuple[QueryTruth, ...]


class _ArraysOnly(pickle.Unpickler):
    """Reads plain values and numpy arrays; a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(f"the ground truth names {module}.{name}, only numpy arrays may stand there; get it anew")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_ground_truth(file: BinaryIO) -> GroundTruth:
    """Returns the content of `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, without running what a pickle might hold.

    Raises:
        UserError: it names anything but arrays, is cut, lacks a field, or points outside the gallery.
    """
    try:
        content = _ArraysOnly(file, encoding="latin1").load()
        gallery_names, query_names = tuple(map(str, content["imlist"])), tuple(map(str, content["qimlist"]))
        queries = tuple(
            QueryTruth(
                easy=tuple(int(position) for position in query["easy"]),
                hard=tuple(int(position) for position in query["hard"]),
                junk=tuple(int(position) for position in query["junk"]),
                box=tuple(float(side) for side in query["bbx"]),  # type: ignore[arg-type]
            )
            for query in content["gnd"]
        )
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"the ground truth cannot be read ({type(error).__name__}: {error}); get it anew") from error
    if len(queries) != len(query_names):
        raise UserError(f"the ground truth has {len(queries)} queries and {len(query_names)} names; get it anew")
    for name, query in zip(query_names, queries, strict=True):
        outside = [p for p in (*query.easy, *query.hard, *query.junk) if not 0 <= p < len(gallery_names)]
        if outside or len(query.box) != 4:
            raise UserError(
                f"the ground truth of {name} has position {outside[:1]} of {len(gallery_names)} pictures and a box of "
                f"{len(query.box)} numbers; get it anew"
            )
    return GroundTruth(gallery_names=gallery_names, query_names=query_names, queries=queries)


def trapezoidal_average_precision(positive_ranks: Sequence[int], num_positives: int) -> float:
    """Returns the area under the precision-recall curve, by trapezoids.

    Args:
        positive_ranks: ranks of the positives from 0, ascending, junk not counted.
        num_positives: at least 1; those that were not ranked add nothing.
    """
    area = 0.0
    for found, position in enumerate(positive_ranks):
        before = 1.0 if position == 0 else found / position
        area += (before + (found + 1) / (position + 1)) / 2 / num_positives
    return area


def precision_at(positive_ranks: Sequence[int], k: int) -> float:
    """Returns the share of positives among the first min(rank of the last positive, k).

    Args:
        positive_ranks: ranks of the positives from 0, ascending, junk not counted; at least one.
        k: at least 1.
    """
    depth = min(max(positive_ranks) + 1, k)
    return sum(position < depth for position in positive_ranks) / depth


def revisited_metrics(similarities: np.ndarray, truth: GroundTruth, prefix: str) -> dict[str, float]:
    """Returns `{prefix}.<grade>.map`, `.precision_at_{1,5,10}` and `.num_queries`; a grade without queries has no mean.

    Args:
        similarities: float32 `[queries, gallery]`, of the cropped queries.
        truth: of as many queries and pictures.
        prefix: such as "roxford".

    Raises:
        ValueError: the shape does not fit, or a similarity is not finite.
    """
    if similarities.shape != (len(truth.queries), len(truth.gallery_names)):
        expected = (len(truth.queries), len(truth.gallery_names))
        raise ValueError(f"similarities have shape {similarities.shape}, expected {expected}")
    if not np.isfinite(similarities).all():
        raise ValueError("a similarity is not finite; embed again")
    orders = np.argsort(-similarities, axis=1, kind="stable")
    values: dict[str, float] = {}
    for grade, (positive_fields, junk_fields) in GRADES.items():
        precisions: list[float] = []
        at: dict[int, list[float]] = {k: [] for k in PRECISION_RANKS}
        for query, order in zip(truth.queries, orders, strict=True):
            positives = {position for field in positive_fields for position in getattr(query, field)}
            junk = [position for field in junk_fields for position in getattr(query, field)]
            if not positives:
                continue
            ranking = order[~np.isin(order, junk)]
            ranks = np.flatnonzero(np.isin(ranking, list(positives))).tolist()
            precisions.append(trapezoidal_average_precision(ranks, len(positives)))
            for k in PRECISION_RANKS:
                at[k].append(precision_at(ranks, k))
        values[f"{prefix}.{grade}.num_queries"] = len(precisions)
        if precisions:
            values[f"{prefix}.{grade}.map"] = float(np.mean(precisions))
            values |= {f"{prefix}.{grade}.precision_at_{k}": float(np.mean(at[k])) for k in PRECISION_RANKS}
    return values
