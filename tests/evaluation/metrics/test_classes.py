import numpy as np
import pytest

from evaluation.metrics.classes import hits_at


@pytest.mark.parametrize("k", [1, 2, 5])
def test_hits_are_those_of_a_sort_by_score_and_class_position(k):
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 4, (200, 7)).astype(np.float32), rng.integers(0, 7, 200)
    expected = [
        label in sorted(range(7), key=lambda one: (-row[one], one))[:k]
        for row, label in zip(scores, labels, strict=True)
    ]
    assert hits_at(scores, labels, k).tolist() == expected


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="NaN"):
        hits_at(np.array([[np.nan, 1.0]]), np.array([0]), 1)
