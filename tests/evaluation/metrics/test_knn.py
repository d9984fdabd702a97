import math

import numpy as np
import pytest

from evaluation.metrics.knn import class_votes, knn_predictions
from pipeline.schema import UserError
from tests.evaluation.metrics.references import unit


def slow_prediction(gallery, gallery_classes, query, k, temperature, num_classes):
    """The definition, with Python's floats: all classes, most votes first."""
    similarities = [sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in gallery]
    neighbours = sorted(range(len(gallery)), key=lambda position: (-similarities[position], position))[:k]
    votes = dict.fromkeys(range(num_classes), 0.0)
    for position in neighbours:
        label = int(gallery_classes[position])
        votes[label] += math.exp((similarities[position] - 1) / temperature)
    return sorted(votes, key=lambda label: (-votes[label], label))


def test_votes_by_hand():
    # Largest 1.0. Class 0: exp(0) = 1; class 1: 2 exp(-0.07 / 0.07) = 2/e.
    votes = class_votes(np.array([[1.0, 0.93, 0.93]]), np.array([[0, 1, 1]]), num_classes=3)
    np.testing.assert_allclose(votes, [[1, 2 / math.e, 0]])


def test_a_small_temperature_does_not_overflow():
    votes = class_votes(np.array([[1.0, 0.5]], np.float32), np.array([[0, 1]]), num_classes=2, temperature=1e-3)
    assert np.isfinite(votes).all() and votes[0, 0] == 1.0
    # Each row's own largest similarity is subtracted: exp((0.1 - 1) / 1e-3) would be 0.
    rows = np.array([[1.0, 0.5], [0.1, 0.05]], np.float32)
    votes = class_votes(rows, np.array([[0, 1], [1, 0]]), num_classes=2, temperature=1e-3)
    assert votes[0, 0] == votes[1, 1] == 1.0


@pytest.mark.parametrize("temperature", [0.01, 0.03, 0.07])
@pytest.mark.parametrize(("block_rows", "num_threads"), [(None, 1), (33, 2)])
def test_predictions_equal_the_slow_twin_with_ties(temperature, block_rows, num_threads):
    random = np.random.default_rng(11)
    gallery = unit(random, (120, 6))
    gallery[80:] = gallery[:40]  # of other classes: equal votes, so the smaller class wins
    queries = np.concatenate([unit(random, (40, 6)), gallery[:10]])
    gallery_classes = random.integers(0, 7, 120)
    found = knn_predictions(
        gallery,
        gallery_classes,
        queries,
        ks=(1, 2, 7, 30),
        temperature=temperature,
        block_rows=block_rows,
        num_threads=num_threads,
    )
    for k, predicted in found.items():
        expected = [slow_prediction(gallery, gallery_classes, query, k, temperature, 7) for query in queries]
        assert predicted.tolist() == [one[:5] for one in expected]
    for top, columns in ((1, 1), (3, 3), (9, 7)):
        predicted = knn_predictions(gallery, gallery_classes, queries, ks=(7,), temperature=temperature, top=top)[7]
        expected = [slow_prediction(gallery, gallery_classes, query, 7, temperature, 7) for query in queries]
        assert predicted.tolist() == [one[:columns] for one in expected]


def test_numbers_of_neighbours_and_the_temperature_are_by_default_those_of_wu_et_al():
    random = np.random.default_rng(4)
    gallery, queries, classes = unit(random, (220, 4)), unit(random, (9, 4)), random.integers(0, 12, 220)
    found = knn_predictions(gallery, classes, queries)
    assert list(found) == [10, 20, 100, 200] and {one.dtype for one in found.values()} == {np.dtype(np.int64)}
    for k, predicted in found.items():
        expected = [slow_prediction(gallery, classes, query, k, 0.07, 12)[:5] for query in queries]
        assert predicted.tolist() == expected


def test_votes_that_do_not_fit_into_memory_are_counted_in_turns(monkeypatch):
    monkeypatch.setattr("evaluation.metrics.knn._MAX_VOTES", 21)  # three queries of seven classes at a time
    random = np.random.default_rng(5)
    gallery, queries, classes = unit(random, (50, 4)), unit(random, (11, 4)), np.arange(50) % 7
    predicted = knn_predictions(gallery, classes, queries, ks=(9,))[9]
    assert predicted.tolist() == [slow_prediction(gallery, classes, query, 9, 0.07, 7)[:5] for query in queries]


def test_bad_input_is_named():
    one = np.ones((1, 1), np.float32)
    with pytest.raises(UserError, match="k is 10, the training pictures are 1"):
        knn_predictions(one, np.array([0]), one, ks=(10,))
    with pytest.raises(UserError, match="^there are 0 test pictures, at least 1 is needed; name another test folder$"):
        knn_predictions(one, np.array([0]), one[:0], ks=(1,))
    with pytest.raises(ValueError, match="2 classes"):
        knn_predictions(one, np.array([0, 1]), one, ks=(1,))
    with pytest.raises(ValueError, match="above 0"):
        class_votes(one, np.array([[0]]), num_classes=1, temperature=0)
    with pytest.raises(ValueError, match="^a similarity is not finite; embed again$"):
        class_votes(np.array([[np.nan]]), np.array([[0]]), num_classes=1)
    for arguments in ({"ks": (0, 1)}, {"ks": (1,), "top": 0}):
        with pytest.raises(ValueError, match="; they must be at least 1, 1 and 0$"):
            knn_predictions(one, np.array([0]), one, **arguments)
    with pytest.raises(ValueError, match="the least class -1; they must be"):
        knn_predictions(one, np.array([-1]), one, ks=(1,))


def test_rows_that_are_not_of_length_one_are_refused():
    rows, long, classes = np.eye(2, dtype=np.float32), np.array([[1, 0], [3, 4]], np.float32), np.arange(2)
    with pytest.raises(ValueError, match="^row 1 of `gallery` has length 5; divide each row by its norm$"):
        knn_predictions(long, classes, rows, ks=(1,))
    with pytest.raises(ValueError, match="^row 1 of `queries` has length 5; "):
        knn_predictions(rows, classes, long, ks=(1,))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog", "cat"], "^classes are <U3, .*'dog'.* first; they must be integers from 0, such as "),
        ([0.0, 1.0], "^classes are float64, .* first; they must be integers from 0, such as "),
    ],
)
def test_classes_that_are_not_integers_are_refused(classes, message):
    remedy = r"np\.unique\(classes, return_inverse=True\)\[1\]$"
    with pytest.raises(ValueError, match=message + remedy):
        knn_predictions(np.eye(2, dtype=np.float32), np.array(classes), np.eye(2, dtype=np.float32), ks=(1,))


def test_one_number_of_neighbours_may_be_given_as_it_is():
    rows = np.eye(2, dtype=np.float32)
    predicted = knn_predictions(rows, np.array([1, 0]), rows, ks=1)
    assert list(predicted) == [1] and predicted[1].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_vote_for_no_class_is_an_error(wrong):
    with pytest.raises(ValueError, match=f"^a neighbour's class is {wrong}; it must be 0 to 1, set num_classes$"):
        class_votes(np.array([[1.0, 0.5], [1.0, 0.5]]), np.array([[0, 1], [1, wrong]]), num_classes=2)


def test_no_number_of_neighbours_is_an_error():
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="^ks is empty; give at least one number of neighbours$"):
        knn_predictions(one, np.array([0]), one, ks=())


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16])
def test_classes_may_be_of_any_integer_type(dtype):
    gallery = np.eye(2, dtype=np.float32)
    found = knn_predictions(gallery, np.array([1, 0], dtype), gallery, ks=(1,), top=1)
    assert found[1].tolist() == [[1], [0]]
