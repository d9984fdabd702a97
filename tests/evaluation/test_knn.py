import math

import numpy as np
import pytest

from evaluation.knn import class_votes, knn_metrics


def slow_prediction(gallery, gallery_classes, query, k, temperature):
    """The definition, with Python's floats."""
    similarities = [float(np.float32(row @ query)) for row in gallery]
    neighbours = sorted(range(len(gallery)), key=lambda position: (-similarities[position], position))[:k]
    votes: dict[int, float] = {}
    for position in neighbours:
        label = int(gallery_classes[position])
        votes[label] = votes.get(label, 0.0) + math.exp(similarities[position] / temperature)
    return min(votes, key=lambda label: (-votes[label], label))


def test_votes_by_hand():
    # Largest 1.0. Class 0: exp(0) = 1; class 1: 2 exp(-0.07 / 0.07) = 2/e.
    votes = class_votes(np.array([[1.0, 0.93, 0.93]]), np.array([[0, 1, 1]]), num_classes=3)
    np.testing.assert_allclose(votes, [[1, 2 / math.e, 0]])


def test_a_small_temperature_does_not_overflow():
    votes = class_votes(np.array([[1.0, 0.5]], np.float32), np.array([[0, 1]]), num_classes=2, temperature=1e-3)
    assert np.isfinite(votes).all() and votes[0, 0] == 1.0


def test_equals_the_slow_twin():
    random = np.random.default_rng(11)
    gallery = random.normal(size=(80, 6)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries = random.normal(size=(40, 6)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    gallery_classes, query_classes = random.integers(0, 4, 80), random.integers(0, 4, 40)
    values = knn_metrics(gallery, gallery_classes, queries, query_classes, ks=(1, 7, 30))
    for k in (1, 7, 30):
        predicted = [slow_prediction(gallery, gallery_classes, query, k, 0.07) for query in queries]
        assert values[f"knn.{k}.accuracy_at_1"] == pytest.approx(np.mean(np.array(predicted) == query_classes))


def test_bad_input_is_named():
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="k is 10 with 1 pictures"):
        knn_metrics(one, np.array([0]), one, np.array([0]), ks=(10,))
    with pytest.raises(ValueError, match="above 0"):
        class_votes(one, np.array([[0]]), num_classes=1, temperature=0)
    with pytest.raises(ValueError, match="not finite"):
        class_votes(np.array([[np.nan]]), np.array([[0]]), num_classes=1)
