"""Queries with their first results, for the report to show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evaluation.index import nearest
from evaluation.pictures import Pictures
from evaluation.report import Hit, Query
from evaluation.retrieval import SPLITS, split_mask


def pick_queries(pictures: Pictures, *, per_kind: int = 2) -> list[int]:
    """Returns positions of queries spread evenly over each split and kind; the same for every recipe."""
    picked: list[int] = []
    for split in SPLITS:
        for kind in np.unique(pictures.kinds):
            mask = split_mask(pictures, split) & pictures.heldout_rendering & (pictures.kinds == kind)
            positions = np.flatnonzero(mask)
            picked += [
                int(positions[number * len(positions) // per_kind]) for number in range(per_kind) if len(positions)
            ]
    return list(dict.fromkeys(picked))


def retrieval_grid(
    embeddings: np.ndarray, pictures: Pictures, queries: list[int], names: Mapping[str, str], *, num_results: int = 10
) -> list[Query]:
    """Returns the first results of each query in its gallery: its split without its family.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`, in the order of `pictures`.
        pictures: sorted by id.
        queries: positions in `pictures`.
        names: entity id to name; ids stand in for missing names.
        num_results: how many to show.
    """
    grid = []
    for query in queries:
        split = "unseen" if pictures.heldout_entity[query] else "seen"
        gallery = np.flatnonzero(split_mask(pictures, split) & (pictures.families != pictures.families[query]))
        if len(gallery) == 0:
            continue
        found = nearest(embeddings[gallery], embeddings[query : query + 1], num_results)
        hits = tuple(
            Hit(
                image=pictures.images[position],
                title=f"{_title(pictures, position, names)}, {similarity:.2f}",
                right=bool(pictures.entity_ids[position] == pictures.entity_ids[query]),
            )
            for position, similarity in zip(gallery[found.positions[0]], found.similarities[0], strict=True)
        )
        title = f"{_title(pictures, query, names)}, {split}"
        grid.append(Query(image=pictures.images[query], title=title, hits=hits))
    return grid


def _title(pictures: Pictures, position: int, names: Mapping[str, str]) -> str:
    entity_id = str(pictures.entity_ids[position])
    return f"{names.get(entity_id, entity_id)} ({pictures.renderings[position]})"
