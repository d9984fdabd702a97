"""Classification by class vectors: ranks of the true classes, accuracies, calibration, groups by frequency."""

from __future__ import annotations

import numpy as np


def hits_at(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Returns bool `[n]`: whether the true class is among the first `k`; equal scores rank by class position.

    Args:
        scores: float `[n, classes]`.
        labels: int `[n]`.
        k: at least 1.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; fit again")
    true = scores[np.arange(len(labels)), labels][:, None]
    tied_before = (scores == true) & (np.arange(scores.shape[1]) < labels[:, None])
    return ((scores > true) | tied_before).sum(axis=1) < k
