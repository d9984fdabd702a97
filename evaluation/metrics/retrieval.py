"""Retrieval: average precision, recall and accuracy of rankings, with or without the query's own row."""

from __future__ import annotations

import numpy as np

from evaluation.metrics.ranks import target_ranks

PLACES = (1, 5, 10)


def retrieval_ranks(
    images: np.ndarray, captions: np.ndarray, image_of: np.ndarray, *, num_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rank, from 1, of each picture's best caption, int64 `[images]`, and of each caption's picture.

    Args:
        images: L2-normalised float32 `[images, dim]`.
        captions: L2-normalised float32 `[captions, dim]`.
        image_of: int `[captions]`, which picture a caption is of.
        num_threads: None: one a core.

    Raises:
        ValueError: a picture has no caption, shapes do not fit, or a similarity is not finite.
    """
    image_of = np.asarray(image_of, np.int64)
    if len(image_of) != len(captions):
        raise ValueError(f"{len(image_of)} pictures for {len(captions)} captions; name one for each")
    uses = np.bincount(image_of, minlength=len(images))
    if len(uses) != len(images) or not uses.all():
        raise ValueError(f"every one of the {len(images)} pictures needs a caption, and every caption one of them")
    of_image = np.split(np.argsort(image_of, kind="stable"), np.cumsum(uses)[:-1])
    to_text = target_ranks(images, captions, of_image, num_threads=num_threads)
    to_image = target_ranks(captions, images, list(image_of[:, None]), num_threads=num_threads)
    return np.array([ranks.min() for ranks in to_text]), np.concatenate(to_image)


def found_at(image_ranks: np.ndarray, caption_ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `image_to_text.recall_at_<k>` and `text_to_image.recall_at_<k>`, 1 or 0 a query; their means are recalls.

    Args:
        image_ranks: int `[images]`, from 1, see `retrieval_ranks`.
        caption_ranks: int `[captions]`, from 1.
    """
    ranks = {"image_to_text": image_ranks, "text_to_image": caption_ranks}
    return {f"{way}.recall_at_{k}": (of <= k).astype(np.float32) for way, of in ranks.items() for k in PLACES}
