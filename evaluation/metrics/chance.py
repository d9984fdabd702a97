"""What a ranking without any knowledge scores, on average over all orders."""

from __future__ import annotations

import functools

import numpy as np


def chance_average_precision(num_matches: int, num_gallery: int) -> float:
    """Returns the expected average precision of a random order.

    The precision at a match in place k is (1 + (k - 1) (R - 1) / (N - 1)) / k on average, and each place is as likely.

    Args:
        num_matches: R, from 1 to `num_gallery`.
        num_gallery: N.

    Raises:
        ValueError: there is no match, or there are more matches than items.
    """
    if not 1 <= num_matches <= num_gallery:
        raise ValueError(f"there are {num_matches} matches in a gallery of {num_gallery}; give 1 to {num_gallery}")
    if num_gallery == 1:
        return 1.0
    harmonic = _harmonic(num_gallery)
    return (harmonic + (num_matches - 1) / (num_gallery - 1) * (num_gallery - harmonic)) / num_gallery


@functools.lru_cache(maxsize=1024)
def _harmonic(n: int) -> float:
    return float((1 / np.arange(1, n + 1)).sum())
