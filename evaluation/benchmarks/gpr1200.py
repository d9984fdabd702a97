"""GPR1200: 1,200 categories of ten pictures, of six domains; every picture queries all (Schall et al. 2021).

Protocol (version 1), after the benchmark's own script. A file is named `<category>_<anything>`; its domain is
`category // 200`. The query stays in the ranking, as its own match. Average precision is the sum of the precisions at
the ten matches, divided by ten, over the whole ranking. Equal similarities rank by position in the sorted file names.
Similarities within 3e-6 of a match's are compared again in float64.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from evaluation.metrics.blocks import read_rows
from evaluation.metrics.landmarks import gpr1200_average_precisions
from evaluation.metrics.nearest import nearest
from evaluation.options import Options
from evaluation.protocol import Context, Result, register
from evaluation.report.figures import Bars, Figure, Grid, GridRow, Map
from evaluation.sets.images import ImageSet, absent_images, folder_images
from evaluation.sets.listing import list_images
from pipeline.schema import UserError

NUM_IMAGES = 12_000
IMAGES_PER_CATEGORY = 10
CATEGORIES_PER_DOMAIN = 200
_NUM_SHOWN = 10
DOMAINS = ("landmarks", "inat", "sketch", "instre", "sop", "faces")


def categories_of(file_names: Sequence[str]) -> np.ndarray:
    """Returns the category of each file, int64 `[n]`, in [0, 1200).

    Raises:
        UserError: there are not 12,000 files, they are not sorted, a name is a duplicate, a name does not start with a
            category and "_", or a category does not have ten pictures.
    """
    for before, name in zip(file_names, file_names[1:], strict=False):
        if before == name:
            raise UserError(f"GPR1200 has a duplicate file name {name}, each must occur once; give unique names")
        if before > name:
            raise UserError(f"GPR1200's file {name} comes after {before}; sort the names, ties rank by their order")
    num_categories = NUM_IMAGES // IMAGES_PER_CATEGORY
    categories = np.empty(len(file_names), np.int64)
    for position, name in enumerate(file_names):
        match = re.match(r"([0-9]{1,9})_", os.path.basename(name))
        if match is None:
            raise UserError(f"GPR1200's file {name} does not start with a category and '_'; unpack it again")
        categories[position] = int(match.group(1))
        if categories[position] >= num_categories:
            raise UserError(
                f"GPR1200's file {name} has category {categories[position]}, the last is {num_categories - 1}; unpack "
                "it again"
            )
    uses = np.bincount(categories, minlength=num_categories)
    wrong = np.flatnonzero(uses != IMAGES_PER_CATEGORY)
    if len(wrong):
        raise UserError(
            f"GPR1200 has {len(file_names)} pictures, {uses[wrong[0]]} of them of category {wrong[0]}; it must have "
            f"{NUM_IMAGES}, {IMAGES_PER_CATEGORY} of each; unpack it again"
        )
    return categories


def gpr1200_metrics(embeddings: np.ndarray, file_names: Sequence[str]) -> tuple[dict[str, float], np.ndarray]:
    """Returns `map` and `<domain>.map` of six domains, and each picture's average precision, float64 `[12000]`.

    Args:
        embeddings: L2-normalised float32 `[12000, dim]`, in the order of `file_names`.
        file_names: sorted.

    Raises:
        UserError: the files are not GPR1200's.
        ValueError: an embedding is not finite, or they are not as many.
    """
    categories = categories_of(file_names)
    precisions = gpr1200_average_precisions(embeddings, categories)
    values = {"map": float(precisions.mean())}
    for number, domain in enumerate(DOMAINS):
        values[f"{domain}.map"] = float(precisions[categories // CATEGORIES_PER_DOMAIN == number].mean())
    return values, precisions


@register("gpr1200", version=1, options=Options)
def gpr1200(context: Context, options: Options) -> Result:
    """Retrieval among 12,000 pictures of six domains: mean average precision."""
    layout = "GPR1200/images/<category>_<name>.jpg, 12,000 files; ready embeddings are gpr1200.npy and gpr1200.ids"
    ready = None if (context.data_dir / "GPR1200").exists() else context.model.known_ids("gpr1200")
    if ready is not None:
        images = absent_images("gpr1200", sorted(ready))
    else:
        root = context.folder("GPR1200", get="https://visual-computing.com/project/GPR1200", layout=layout)
        if (root / "images").is_dir():
            root = root / "images"
        images = folder_images("gpr1200", root, list_images(root))
    names = images.ids.tolist()
    domains = categories_of(names) // CATEGORIES_PER_DOMAIN  # before hours of embedding
    embedded = context.embed(images)
    if len(embedded.positions) != NUM_IMAGES:
        raise UserError(
            f"GPR1200 has {len(embedded.positions)} pictures that can be read, it must have {NUM_IMAGES}; get it again"
        )
    vectors = read_rows(embedded.vectors, 0, NUM_IMAGES)
    metrics, precisions = gpr1200_metrics(vectors, names)
    return Result(
        metrics=metrics,
        counts={
            "num_images": NUM_IMAGES,
            "num_queries": NUM_IMAGES,
            "num_categories": NUM_IMAGES // IMAGES_PER_CATEGORY,
            "num_images_per_category": IMAGES_PER_CATEGORY,
            **{f"{domain}.num_queries": CATEGORIES_PER_DOMAIN * IMAGES_PER_CATEGORY for domain in DOMAINS},
        },
        data=[embedded.provenance],
        items={"map": precisions}
        | {f"{domain}.map": precisions[domains == number] for number, domain in enumerate(DOMAINS)},
        groups=DOMAINS,
        figures=_figures(images, vectors, metrics),
    )


def _figures(images: ImageSet, vectors: np.ndarray, metrics: dict[str, float]) -> dict[str, Figure]:
    categories = categories_of(images.ids.tolist())
    domains = [DOMAINS[category // CATEGORIES_PER_DOMAIN] for category in categories.tolist()]
    # The middle category of each domain asks; its own picture comes first and is left out.
    middles = [(2 * number + 1) * CATEGORIES_PER_DOMAIN // 2 for number in range(len(DOMAINS))]
    queries = [int(np.flatnonzero(categories == middle)[0]) for middle in middles]
    found = nearest(vectors, vectors[queries], _NUM_SHOWN + 1).positions
    rows = []
    for query, positions in zip(queries, found.tolist(), strict=True):
        hits = [position for position in positions if position != query][:_NUM_SHOWN]
        title = f"{domains[query]}, category {categories[query]}"
        rows.append(
            GridRow(query=query, title=title, hits=[(hit, bool(categories[hit] == categories[query])) for hit in hits])
        )
    return {
        "domains": Bars(
            title="GPR1200",
            values={domain: metrics[f"{domain}.map"] for domain in DOMAINS},
            label="mean average precision",
        ),
        "map": Map(title="GPR1200 by t-SNE", vectors=vectors, groups=domains),
        "grid": Grid(title="queries and their first ten others", images=images, rows=rows),
    }
