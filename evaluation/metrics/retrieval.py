"""Retrieval: average precision, recall and accuracy of rankings by similarity.

Equal similarities rank by position in the gallery. Names of one thing differ between fields: what is called
`accuracy_at_k` here (any positive among the first k) is the recall@k of metric learning and of image-text retrieval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from evaluation.metrics.blocks import Rows, check_unit_length
from evaluation.metrics.ranks import average_precision, ranks_without, target_ranks

PLACES = (1, 5, 10)
Divisor = Literal["reachable", "positives", "found"]
WithoutPositives = Literal["leave_out", "zero"]
_NEVER = np.iinfo(np.int64).max  # the rank of what is not in a ranking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Values query by query; the metrics are their means."""

    queries: np.ndarray
    """int64 `[counted]`, the positions of the queries that count, rising."""
    items: Mapping[str, np.ndarray]
    """float64 `[counted]` each, in [0, 1], by name of the metric."""
    num_without_positives: int
    """Queries without a positive; `without_positives` says whether they count."""

    @property
    def metrics(self) -> dict[str, float]:
        """The means, by name; empty when no query counts."""
        return {name: float(values.mean()) for name, values in self.items.items() if len(values)}


def retrieval_metrics(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: Rows | None = None,
    gallery_labels: np.ndarray | None = None,
    *,
    self_match: bool = False,
    ks: int | Sequence[int] = PLACES,
    divisor: Divisor = "reachable",
    without_positives: WithoutPositives = "leave_out",
    num_threads: int | None = None,
    block_rows: int | None = None,
) -> Retrieval:
    """Returns how well rows of a query's label rank before all others; see `metrics_of_ranks` for what is measured.

    Args:
        queries: L2-normalised float32 `[q, dim]`.
        query_labels: `[q]`, numbers or text.
        gallery: L2-normalised floats `[n, dim]`; None: the queries are the gallery.
        gallery_labels: `[n]`; None with `gallery`.
        self_match: without a gallery, whether a query stays in its own ranking, as a positive, or leaves it.
        ks: see `metrics_of_ranks`.
        divisor: see there.
        without_positives: see there.
        num_threads: see `evaluation.metrics.ranks.target_ranks`.
        block_rows: see there.

    Raises:
        ValueError: shapes do not fit, an embedding is not finite or not of length 1, or a self-match is asked for with
            a gallery.
    """
    alone = gallery is None
    if alone != (gallery_labels is None):
        raise ValueError("a gallery and its labels belong together; give both or neither")
    if self_match and not alone:
        raise ValueError("self_match is for queries that are the gallery; leave it out, or leave the gallery out")
    rows = queries if gallery is None else gallery
    labels = query_labels if gallery_labels is None else gallery_labels
    for what, count, of in (("queries", len(queries), query_labels), ("gallery rows", rows.shape[0], labels)):
        if count != len(of):
            raise ValueError(f"there are {count} {what} and {len(of)} labels; give one each")
    check_unit_length(queries, "queries")
    if gallery is not None:
        check_unit_length(gallery, "gallery")
    by_label = np.argsort(labels)
    firsts, ends = (np.searchsorted(labels, query_labels, side, sorter=by_label) for side in ("left", "right"))
    positives = [by_label[first : ends[query]] for query, first in enumerate(firsts)]
    ranks = target_ranks(queries, rows, positives, num_threads=num_threads, block_rows=block_rows)
    if alone and not self_match:
        own = [one == query for query, one in enumerate(positives)]
        ranks = [ranks_without(of[~own[query]], of[own[query]]) for query, of in enumerate(ranks)]
    return metrics_of_ranks(ranks, ks=ks, divisor=divisor, without_positives=without_positives)


def metrics_of_ranks(
    ranks: Sequence[np.ndarray],
    *,
    ks: int | Sequence[int] = PLACES,
    divisor: Divisor = "reachable",
    without_positives: WithoutPositives = "leave_out",
) -> Retrieval:
    """Returns `map`, and for each k `map_at_<k>`, `recall_at_<k>` and `accuracy_at_<k>`.

    A query's average precision is the mean of the precisions at the ranks of its positives; average precision at k is
    their sum over the positives among the first k, divided as `divisor` says. Recall at k is the share of its positives
    that are among the first k; accuracy at k is 1 if any is, else 0.

    Args:
        ranks: int `[positives]` from 1, unique, one array per query: where its positives are in its ranking.
        ks: one or several, each at least 1.
        divisor: of average precision at k: "reachable", the positives or k, whichever is less (landmarks); "positives",
            all of them; "found", those among the first k (0 without any).
        without_positives: queries without positives are left out of every mean ("leave_out"), or count 0 ("zero").

    Raises:
        ValueError: a k or a rank is under 1, a rank is NaN or a duplicate, or a setting is none of those above.
    """
    ks = (ks,) if isinstance(ks, int) else ks
    for value, values in ((divisor, get_args(Divisor)), (without_positives, get_args(WithoutPositives))):
        if value not in values:
            raise ValueError(f"{value!r} is not one of {', '.join(values)}")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks are {tuple(ks)}; each must be at least 1")
    if any(len(own) and own.min() < 1 for own in ranks):
        raise ValueError("a rank is under 1; ranks start at 1")
    for query, own in enumerate(ranks):
        if np.isnan(own).any():
            raise ValueError(f"a rank of query {query} is NaN; give whole numbers from 1")
        different, uses = np.unique(own, return_counts=True)
        if len(different) < len(own):
            raise ValueError(f"rank {different[uses > 1][0]} of query {query} is a duplicate; give each rank once")
    has = np.array([len(own) > 0 for own in ranks], bool)
    counted = np.flatnonzero(has | (without_positives == "zero"))
    items = {"map": np.zeros(len(counted))}
    items |= {f"{name}_at_{k}": np.zeros(len(counted)) for k in ks for name in ("map", "recall", "accuracy")}
    for place, query in enumerate(counted.tolist()):
        if not has[query]:
            continue
        own = np.sort(ranks[query])
        items["map"][place] = average_precision(own)
        precisions = np.arange(1, len(own) + 1) / own
        for k in ks:
            num_found = int((own <= k).sum())
            of = {"reachable": min(len(own), k), "positives": len(own), "found": max(num_found, 1)}[divisor]
            items[f"map_at_{k}"][place] = precisions[:num_found].sum() / of
            items[f"recall_at_{k}"][place] = num_found / len(own)
            items[f"accuracy_at_{k}"][place] = num_found > 0
    return Retrieval(queries=counted, items=items, num_without_positives=int((~has).sum()))


def retrieval_ranks(
    images: np.ndarray, captions: np.ndarray, image_of: np.ndarray, *, num_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rank, from 1, of each picture's best caption, int64 `[images]`, and of each caption's picture.

    A picture without a caption is never found: its rank is the largest int64. As a distractor it stays in the ranking
    of every caption.

    Args:
        images: L2-normalised float32 `[images, dim]`.
        captions: L2-normalised float32 `[captions, dim]`.
        image_of: int `[captions]`, which picture a caption is of.
        num_threads: None: one per core.

    Raises:
        ValueError: a caption is of no picture, shapes do not fit, a similarity is not finite, or a row's length is not
            1.
    """
    image_of = np.asarray(image_of, np.int64)
    if len(image_of) != len(captions):
        raise ValueError(f"{len(image_of)} pictures for {len(captions)} captions; name one for each")
    outside = image_of[(image_of < 0) | (image_of >= len(images))]
    if len(outside):
        raise ValueError(f"a caption is of picture {outside[0]}; there are {len(images)} pictures, from 0")
    check_unit_length(images, "images")
    check_unit_length(captions, "captions")
    uses = np.bincount(image_of, minlength=len(images))
    of_image = np.split(np.argsort(image_of), np.cumsum(uses)[:-1])
    to_text = target_ranks(images, captions, of_image, num_threads=num_threads)
    to_image = target_ranks(captions, images, list(image_of[:, None]), num_threads=num_threads)
    best = np.array([ranks.min(initial=_NEVER) for ranks in to_text])
    return best, np.concatenate([np.zeros(0, np.int64), *to_image])


def found_at(image_ranks: np.ndarray, caption_ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `image_to_text.recall_at_<k>` and `text_to_image.recall_at_<k>`, 1 or 0 per query; the means are recalls.

    Args:
        image_ranks: int `[images]`, from 1, see `retrieval_ranks`.
        caption_ranks: int `[captions]`, from 1.
    """
    ranks = {"image_to_text": image_ranks, "text_to_image": caption_ranks}
    return {f"{way}.recall_at_{k}": (of <= k).astype(np.float32) for way, of in ranks.items() for k in PLACES}
