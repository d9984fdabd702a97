import numpy as np
import pytest

from evaluation.index import nearest


def slow_nearest(gallery, query, k):
    similarities = [float(np.float32(row @ query)) for row in gallery]
    return sorted(range(len(gallery)), key=lambda position: (-similarities[position], position))[:k]


def test_ties_go_to_the_smaller_position_even_past_the_cut():
    # Positions 1, 3 and 4 tie at similarity 1; the two smallest are returned.
    gallery = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    found = nearest(gallery, np.array([[1, 0]], np.float32), 2)
    assert found.positions.tolist() == [[1, 3]]
    assert found.similarities.tolist() == [[1.0, 1.0]]
    assert found.num_near_ties == 1


def test_many_equal_rows_come_in_order():
    gallery = np.ones((500, 1), np.float32)
    assert nearest(gallery, np.ones((1, 1), np.float32), 7).positions.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_equals_the_slow_twin():
    random = np.random.default_rng(0)
    # Small integers: sums are exact in float32, and ties abound.
    gallery = random.integers(-2, 3, (60, 4)).astype(np.float32)
    queries = random.integers(-2, 3, (15, 4)).astype(np.float32)
    found = nearest(gallery, queries, 9)
    assert found.positions.tolist() == [slow_nearest(gallery, query, 9) for query in queries]


def test_k_is_cut_to_the_gallery_and_bad_input_is_named():
    gallery = np.eye(2, dtype=np.float32)
    assert nearest(gallery, gallery, 5).positions.shape == (2, 2)
    assert nearest(gallery, gallery, 1).num_near_ties == 0
    with pytest.raises(ValueError, match="k is 0"):
        nearest(gallery, gallery, 0)
    with pytest.raises(ValueError, match="must be"):
        nearest(gallery, np.ones((1, 3), np.float32), 1)
    with pytest.raises(ValueError, match="not finite"):
        nearest(gallery, np.full((1, 2), np.nan, np.float32), 1)
