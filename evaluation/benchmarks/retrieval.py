"""Image retrieval: do the pictures of an entity rank before all others, across renderings?

Protocol (version 2). A query is a picture of a held-out rendering. Its gallery is every picture of the same split
(entities that training saw, or entities that it never saw) whose family differs from the query's: renderings of one
family are near-duplicates, so they neither count as matches nor appear in the ranking; the query itself leaves with
them. A match shows the query's entity. Queries without a match leave the mean and are counted. Means by kind are over
the queries of the kind, on the same gallery.

Ties: equal similarities rank by image id, ascending; version 1 left that to the last digits of float32.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from evaluation.metrics.chance import chance_average_precision
from evaluation.metrics.nearest import nearest
from evaluation.metrics.ranks import target_ranks
from evaluation.metrics.retrieval import metrics_of_ranks
from evaluation.options import Options, option
from evaluation.protocol import Context, Result, Unavailable, register
from evaluation.report.figures import Grid, GridRow
from evaluation.sets.renderings import Renderings, read_renderings
from pipeline.schema import UserError

PROTOCOL_VERSION = 2
SPLITS = ("seen", "unseen")
KIND_KEYS = {"emoji": "emoji", "flag": "flags", "logo": "logos"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitResult:
    """One split's numbers, query by query; the arrays have one entry a query that has a match."""

    queries: np.ndarray  # int64 [q], positions in the pictures
    average_precisions: np.ndarray  # float64 [q]
    first_is_match: np.ndarray  # bool [q]
    chances: np.ndarray  # float64 [q, 2]: both without any knowledge
    num_queries_without_match: int
    num_gallery: int  # pictures of the split; each query leaves its own family out


def split_mask(pictures: Renderings, split: str) -> np.ndarray:
    """Returns bool `[n]`: the pictures of "seen" entities, or of "unseen" ones.

    Raises:
        ValueError: `split` is neither.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    return pictures.heldout_entity if split == "unseen" else ~pictures.heldout_entity


def evaluate_split(embeddings: np.ndarray, pictures: Renderings, split: str) -> SplitResult:
    """Returns the ranking quality of one split by the protocol of this module.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`, in the order of `pictures`.
        pictures: sorted by id.
        split: "seen" or "unseen".

    Raises:
        ValueError: the counts differ, or an embedding is not finite.
    """
    if len(embeddings) != len(pictures):
        raise ValueError(f"{len(embeddings)} embeddings for {len(pictures)} pictures; embed them all")
    if not np.isfinite(embeddings).all():
        raise ValueError("an embedding is not finite; embed again")
    in_split = split_mask(pictures, split)
    queries: list[int] = []
    ranks: list[np.ndarray] = []
    num_others: list[int] = []  # in the gallery of each query
    for family in np.unique(pictures.families[in_split & pictures.heldout_rendering]):
        of_family = pictures.families == family
        gallery = np.flatnonzero(in_split & ~of_family)  # rising, and so by id: the tie rule of the ranks
        asking = np.flatnonzero(in_split & of_family & pictures.heldout_rendering)
        matches = [np.flatnonzero(pictures.entity_ids[gallery] == pictures.entity_ids[query]) for query in asking]
        queries += asking.tolist()
        num_others += [len(gallery)] * len(asking)
        ranks += target_ranks(embeddings[asking], embeddings[gallery], matches)
    found = metrics_of_ranks(ranks, ks=(1,))
    sizes = [(len(ranks[query]), num_others[query]) for query in found.queries.tolist()]
    chances = [(chance_average_precision(matches, others), matches / others) for matches, others in sizes]
    return SplitResult(
        queries=np.array(queries, np.int64)[found.queries],
        average_precisions=found.items["map"],
        first_is_match=found.items["accuracy_at_1"] == 1,
        chances=np.array(chances, np.float64).reshape(-1, 2),
        num_queries_without_match=found.num_without_positives,
        num_gallery=int(in_split.sum()),
    )


def split_items(result: SplitResult, pictures: Renderings) -> dict[str, np.ndarray]:
    """Returns `map`, `recall_at_1` and the same by kind, such as `flags.map`, query by query, float64.

    A kind without queries has no key, and so has a split without any.
    """
    return _by_kind(result, pictures, result.average_precisions, result.first_is_match)


def split_chances(result: SplitResult, pictures: Renderings) -> dict[str, float]:
    """Returns what each of `split_items` is on average without any knowledge."""
    found = _by_kind(result, pictures, *result.chances.T)
    return {name: float(values.mean()) for name, values in found.items()}


def _by_kind(
    result: SplitResult, pictures: Renderings, precisions: np.ndarray, firsts: np.ndarray
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    kinds = pictures.kinds[result.queries]
    for prefix, mask in [("", kinds == kinds), *((f"{key}.", kinds == kind) for kind, key in KIND_KEYS.items())]:
        if mask.any():
            found[f"{prefix}map"] = precisions[mask].astype(np.float64)
            found[f"{prefix}recall_at_1"] = firsts[mask].astype(np.float64)
    return found


def counts(result: SplitResult) -> dict[str, int]:
    """Returns how many pictures the numbers rest on."""
    return {
        "num_queries": len(result.queries),
        "num_queries_without_match": result.num_queries_without_match,
        "num_gallery": result.num_gallery,
    }


def pick_queries(pictures: Renderings, *, per_kind: int = 2) -> list[int]:
    """Returns positions of queries spread evenly over each split and kind; the same for every model."""
    picked: list[int] = []
    for split in SPLITS:
        for kind in np.unique(pictures.kinds):
            mask = split_mask(pictures, split) & pictures.heldout_rendering & (pictures.kinds == kind)
            positions = np.flatnonzero(mask)
            picked += [
                int(positions[(2 * number + 1) * len(positions) // (2 * per_kind)])
                for number in range(per_kind)
                if len(positions)
            ]
    return list(dict.fromkeys(picked))


def first_results(
    embeddings: np.ndarray, pictures: Renderings, queries: list[int], *, num_results: int = 10
) -> list[GridRow]:
    """Returns the first results of each query in its gallery: its split without its family.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`, in the order of `pictures`.
        pictures: sorted by id.
        queries: positions in `pictures`; one whose gallery is empty is left out.
        num_results: how many to show.
    """
    rows = []
    for query in queries:
        split = "unseen" if pictures.heldout_entity[query] else "seen"
        gallery = np.flatnonzero(split_mask(pictures, split) & (pictures.families != pictures.families[query]))
        if len(gallery) == 0:
            continue
        found = gallery[nearest(embeddings[gallery], embeddings[query : query + 1], num_results).positions[0]]
        right = pictures.entity_ids[found] == pictures.entity_ids[query]
        title = f"{pictures.entity_ids[query]} ({pictures.renderings[query]}), {split}"
        rows.append(GridRow(query=query, title=title, hits=list(zip(found.tolist(), right.tolist(), strict=True))))
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalOptions(Options):
    """See `--help`."""

    data: str = option("evaluation.parquet", help="Parquet file of pictures")


@register("retrieval", version=PROTOCOL_VERSION, options=RetrievalOptions)
def run(context: Context, options: RetrievalOptions) -> Result:
    """Held-out renderings query the other renderings of a Parquet file of pictures (the demo's)."""
    path = context.data_dir / options.data
    if not path.exists():
        raise Unavailable(f"{path} is not there; make it with make demo, or name another with --option retrieval.data=")
    pictures = read_renderings(path)
    images = pictures.image_set("evaluation")
    embedded = context.embed(images, truth=_truth(pictures))
    if embedded.num_unreadable:
        raise UserError(f"{embedded.num_unreadable} pictures of {path} cannot be read, the limit is 0; make it again")
    embeddings = np.asarray(embedded.vectors)
    found = [split_result(evaluate_split(embeddings, pictures, split), pictures, split) for split in SPLITS]
    rows = first_results(embeddings, pictures, pick_queries(pictures))
    return dataclasses.replace(
        joined(found),
        data=[embedded.provenance],
        figures={"grid": Grid(title="queries and their first ten results", images=images, rows=rows)},
    )


def joined(splits: Sequence[Result]) -> Result:
    """Returns the results of all splits as one."""
    return Result(
        metrics={name: value for one in splits for name, value in one.metrics.items()},
        counts={name: value for one in splits for name, value in one.counts.items()},
        items={name: values for one in splits for name, values in one.items.items()},
        chance={name: value for one in splits for name, value in one.chance.items()},
        groups=[group for one in splits for group in one.groups],
        not_measured=[line for one in splits for line in one.not_measured],
    )


def split_result(result: SplitResult, pictures: Renderings, split: str) -> Result:
    """Returns what is measured on one split; names start with it."""
    items = split_items(result, pictures)
    without = f"{split}: no query has a match among {result.num_gallery} pictures"
    return Result(
        metrics={f"{split}.{name}": float(values.mean()) for name, values in items.items()},
        counts={f"{split}.{name}": value for name, value in counts(result).items()},
        items={f"{split}.{name}": values for name, values in items.items()},
        chance={f"{split}.{name}": value for name, value in split_chances(result, pictures).items()},
        groups=[split],
        not_measured=[] if len(result.queries) else [without],
    )


def _truth(pictures: Renderings) -> bytes:
    """Returns what decides who asks, who is in the gallery, and what matches."""
    columns = (pictures.entity_ids, pictures.families, pictures.kinds)
    flags = (pictures.heldout_rendering, pictures.heldout_entity)
    return json.dumps([one.tolist() for one in (*columns, *flags)]).encode()
