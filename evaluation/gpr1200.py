"""GPR1200: 1,200 categories of ten pictures, of six domains; every picture queries all.

Protocol (version 1), after the benchmark's own script. A file is named `<category>_<anything>`; its domain is
`category // 200`. The query stays in the ranking, as its own match. Average precision is the sum of the precisions at
the ten matches, divided by ten, over the whole ranking. Equal similarities rank by position in the sorted file names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from evaluation.errors import UserError

PROTOCOL_VERSION = 1
NUM_IMAGES = 12_000
IMAGES_PER_CATEGORY = 10
CATEGORIES_PER_DOMAIN = 200
DOMAINS = ("landmarks", "inat", "sketch", "instre", "sop", "faces")
_CHUNK = 256  # queries at a time: 256 x 12,000 similarities are 12 MB


def categories_of(file_names: Sequence[str]) -> np.ndarray:
    """Returns the category of each file, int64 `[n]`, in [0, 1200).

    Raises:
        UserError: there are not 12,000 files, they are not sorted and unique, a name does not start with a category
            and "_", or a category does not have ten pictures.
    """
    if len(file_names) != NUM_IMAGES:
        raise UserError(f"GPR1200 has {len(file_names)} pictures, it must have {NUM_IMAGES}; unpack it again")
    if any(a >= b for a, b in zip(file_names, file_names[1:], strict=False)):
        raise UserError("GPR1200's file names are not sorted and unique; sort them, ties rank by their order")
    categories = np.empty(len(file_names), np.int64)
    for position, name in enumerate(file_names):
        match = re.match(r"(\d+)_", os.path.basename(name))
        if match is None:
            raise UserError(f"GPR1200's file {name} does not start with a category and '_'; unpack it again")
        categories[position] = int(match.group(1))
    num_categories = NUM_IMAGES // IMAGES_PER_CATEGORY
    if categories.max() >= num_categories:
        raise UserError(f"GPR1200 has category {categories.max()}, the last is {num_categories - 1}; unpack it again")
    uses = np.bincount(categories, minlength=num_categories)
    wrong = np.flatnonzero(uses != IMAGES_PER_CATEGORY)
    if len(wrong):
        raise UserError(
            f"GPR1200's category {wrong[0]} has {uses[wrong[0]]} pictures, it must have {IMAGES_PER_CATEGORY}; "
            "unpack it again"
        )
    return categories


def average_precisions(embeddings: np.ndarray, categories: np.ndarray, *, num_matches: int) -> np.ndarray:
    """Returns the average precision of each row as a query of all rows, itself included: float64 `[n]`.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`.
        categories: int `[n]`.
        num_matches: rows of each category.

    Raises:
        ValueError: an embedding is not finite, or a category has another number of rows.
    """
    if not np.isfinite(embeddings).all():
        raise ValueError("an embedding is not finite; embed again")
    if not (np.unique(categories, return_counts=True)[1] == num_matches).all():
        raise ValueError(f"every category must have {num_matches} rows")
    precisions = []
    for start in range(0, len(embeddings), _CHUNK):
        similarities = embeddings[start : start + _CHUNK] @ embeddings.T
        order = np.argsort(-similarities, axis=1, kind="stable")
        matches = categories[order] == categories[start : start + _CHUNK, None]
        ranks = np.nonzero(matches)[1].reshape(len(similarities), num_matches) + 1
        precisions.append((np.arange(1, num_matches + 1) / ranks).sum(axis=1) / num_matches)
    return np.concatenate(precisions)


def gpr1200_metrics(embeddings: np.ndarray, file_names: Sequence[str]) -> dict[str, float]:
    """Returns `gpr1200.map` and `gpr1200.<domain>.map`.

    Args:
        embeddings: L2-normalised float32 `[12000, dim]`, in the order of `file_names`.
        file_names: sorted.

    Raises:
        UserError: the files are not GPR1200's.
        ValueError: an embedding is not finite, or they are not as many.
    """
    categories = categories_of(file_names)
    if len(embeddings) != len(file_names):
        raise ValueError(f"{len(embeddings)} embeddings for {len(file_names)} files; embed them all")
    precisions = average_precisions(embeddings, categories, num_matches=IMAGES_PER_CATEGORY)
    values = {"gpr1200.map": float(precisions.mean())}
    for number, domain in enumerate(DOMAINS):
        values[f"gpr1200.{domain}.map"] = float(precisions[categories // CATEGORIES_PER_DOMAIN == number].mean())
    return values
