"""Entity prediction: does the classifier name what a picture of an unseen rendering shows?

Protocol (version 1). Pictures of held-out renderings whose entity training saw and whose entity is in the classifier's
vocabulary; the others are counted, not scored. All classes compete. Equal scores rank by entity id, ascending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.pictures import Pictures

PROTOCOL_VERSION = 1


def rank_of_truth(scores: np.ndarray, truth: np.ndarray, entity_ids: Sequence[str]) -> np.ndarray:
    """Returns int64 `[n]`: the rank, from 1, of each row's true class; equal scores rank by entity id.

    Args:
        scores: float `[n, classes]`, larger is better.
        truth: int `[n]`, columns of `scores`.
        entity_ids: the classes' ids, unique.

    Raises:
        ValueError: a score is not finite, or a shape does not fit.
    """
    if scores.shape != (len(truth), len(entity_ids)):
        raise ValueError(f"scores have shape {scores.shape}, expected {(len(truth), len(entity_ids))}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite; embed again")
    id_order = np.argsort(np.argsort(np.array(entity_ids, dtype=np.str_)))
    true_scores = np.take_along_axis(scores, truth[:, None], axis=1)
    tied_before = (scores == true_scores) & (id_order[None, :] < id_order[truth][:, None])
    return 1 + ((scores > true_scores) | tied_before).sum(axis=1)


def accuracy_at(ranks: np.ndarray, k: int) -> float:
    """Returns the share of ranks, from 1, that are at most `k`."""
    return float(np.mean(ranks <= k))


def scored_pictures(pictures: Pictures, entity_ids: Sequence[str], *, heldout_entity: bool = False) -> np.ndarray:
    """Returns int64 positions: held-out renderings of seen (or unseen) entities that are among `entity_ids`."""
    known = np.isin(pictures.entity_ids, np.array(entity_ids, dtype=np.str_))
    return np.flatnonzero(pictures.heldout_rendering & (pictures.heldout_entity == heldout_entity) & known)


def classifier_metrics(
    embeddings: np.ndarray,
    pictures: Pictures,
    weights: np.ndarray,
    entity_ids: Sequence[str],
    image_counts: Mapping[str, int] | None = None,
) -> tuple[dict[str, float], dict[str, int]]:
    """Returns `accuracy_at_1`, `accuracy_at_5` (and by frequency), and the counts behind them.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`, in the order of `pictures`.
        pictures: the evaluation's.
        weights: the classifier's rows, L2-normalised float32 `[classes, dim]`.
        entity_ids: the rows' entity ids.
        image_counts: training pictures per entity; with it, accuracies of the most frequent third of the classes
            (`head`), the next (`middle`) and the last (`tail`) are given too.
    """
    scored = scored_pictures(pictures, entity_ids)
    asked = int((pictures.heldout_rendering & ~pictures.heldout_entity).sum())
    counts = {"num_pictures": len(scored), "num_out_of_vocabulary": asked - len(scored), "num_classes": len(entity_ids)}
    if len(scored) == 0:
        return {}, counts
    class_of = {entity_id: position for position, entity_id in enumerate(entity_ids)}
    truth = np.array([class_of[entity_id] for entity_id in pictures.entity_ids[scored]])
    ranks = rank_of_truth(embeddings[scored] @ weights.T, truth, entity_ids)
    values = {"accuracy_at_1": accuracy_at(ranks, 1), "accuracy_at_5": accuracy_at(ranks, 5)}
    if image_counts:
        by_count = sorted(entity_ids, key=lambda entity_id: (-image_counts.get(entity_id, 0), entity_id))
        for name, third in zip(("head", "middle", "tail"), np.array_split(np.array(by_count), 3), strict=True):
            mask = np.isin(pictures.entity_ids[scored], third)
            if mask.any():
                values[f"{name}.accuracy_at_1"] = accuracy_at(ranks[mask], 1)
    return values, counts
