import io
import os
import pickle

import numpy as np
import pytest

from evaluation.errors import UserError
from evaluation.revisited import (
    GroundTruth,
    QueryTruth,
    precision_at,
    read_ground_truth,
    revisited_metrics,
    trapezoidal_average_precision,
)

CONTENT = {
    "imlist": ["a", "b", "c", "d"],
    "qimlist": ["q"],
    "gnd": [{"easy": np.array([1]), "hard": [2], "junk": np.array([], int), "bbx": [1.0, 2.0, np.float64(3), 4]}],
}


def pickled(content, protocol=2):
    return io.BytesIO(pickle.dumps(content, protocol))


def query(easy=(), hard=(), junk=()):
    return QueryTruth(easy=easy, hard=hard, junk=junk, box=(0, 0, 1, 1))


def slow_trapezoids(ranking, positives):
    """The curve drawn point by point: precision before and after each picture of the ranking."""
    area, found = 0.0, 0
    for seen, position in enumerate(ranking):
        before = found / seen if seen else 1.0
        found += position in positives
        after = found / (seen + 1)
        if position in positives:
            area += (before + after) / 2 / len(positives)
    return area


def test_trapezoids_by_hand():
    # Ranks 0 and 2 of two positives: (1 + 1)/2/2 + (1/2 + 2/3)/2/2 = 1/2 + 7/24 = 19/24.
    assert trapezoidal_average_precision([0, 2], 2) == pytest.approx(19 / 24)
    # A first positive at rank 1: before it precision is 0/1, after it 1/2.
    assert trapezoidal_average_precision([1], 1) == pytest.approx(1 / 4)


def test_trapezoids_equal_the_slow_twin():
    random = np.random.default_rng(5)
    for _ in range(50):
        ranking = random.permutation(30).tolist()
        positives = set(random.choice(30, 6, replace=False).tolist())
        ranks = [rank for rank, position in enumerate(ranking) if position in positives]
        assert trapezoidal_average_precision(ranks, 6) == pytest.approx(slow_trapezoids(ranking, positives))


def test_precision_at_k_stops_at_the_last_positive():
    # Positives at ranks 0 and 2 (first and third): of the first min(3, 10) = 3, two are positive.
    assert precision_at([0, 2], 10) == pytest.approx(2 / 3)
    assert precision_at([0, 2], 1) == 1.0


def test_grades_by_hand_with_junk_out_of_the_ranking():
    truth = GroundTruth(
        gallery_names=("a", "b", "c", "d"),
        query_names=("q", "r"),
        queries=(query(easy=(1,), hard=(2,), junk=(0,)), query(hard=(3,))),
    )
    # Both rank a, b, d, c.
    similarities = np.array([[0.9, 0.8, 0.1, 0.5]] * 2, np.float32)
    values = revisited_metrics(similarities, truth, "x")
    # easy: a (junk) and c (hard) leave: b, d -> b first: 1. The second query has no easy positive and leaves the mean.
    assert values["x.easy.map"] == 1.0 and values["x.easy.num_queries"] == 1
    # medium: q ranks b, d, c: ranks 0, 2 of 2: 19/24. r ranks a, b, d, c: d at rank 2 of 1: (0/2 + 1/3)/2 = 1/6.
    assert values["x.medium.map"] == pytest.approx((19 / 24 + 1 / 6) / 2)
    # hard: q ranks d, c: c at rank 1: 1/4. r: 1/6.
    assert values["x.hard.map"] == pytest.approx((1 / 4 + 1 / 6) / 2)
    assert values["x.hard.precision_at_1"] == 0.0
    # q: c is 2nd of min(2, 10): 1/2. r: d is 3rd: 1/3.
    assert values["x.hard.precision_at_10"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_bad_similarities_are_errors():
    truth = GroundTruth(gallery_names=("a",), query_names=("q",), queries=(query(easy=(0,)),))
    with pytest.raises(ValueError, match="expected"):
        revisited_metrics(np.zeros((1, 2), np.float32), truth, "x")
    with pytest.raises(ValueError, match="not finite"):
        revisited_metrics(np.full((1, 1), np.nan), truth, "x")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_ground_truth_with_arrays_is_read(protocol):
    truth = read_ground_truth(pickled(CONTENT, protocol))
    assert truth.gallery_names == ("a", "b", "c", "d")
    assert truth.queries == (QueryTruth(easy=(1,), hard=(2,), junk=(), box=(1.0, 2.0, 3.0, 4.0)),)


def test_the_old_module_name_of_numpy_is_read():
    old = pickle.dumps(CONTENT, 0).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in old
    assert read_ground_truth(io.BytesIO(old)).queries[0].easy == (1,)


class Attack:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def test_a_pickle_that_would_run_code_is_refused():
    with pytest.raises(UserError, match=r"names (posix|nt)\.system"):
        read_ground_truth(pickled({**CONTENT, "gnd": Attack()}))


def test_cut_or_wrong_ground_truths_are_errors():
    with pytest.raises(UserError, match="cannot be read"):
        read_ground_truth(io.BytesIO(pickled(CONTENT).getvalue()[:40]))
    with pytest.raises(UserError, match="KeyError"):
        read_ground_truth(pickled({"imlist": []}))
    wrong = {**CONTENT, "gnd": [{**CONTENT["gnd"][0], "hard": [4]}]}
    with pytest.raises(UserError, match=r"q has position \[4\] of 4 pictures"):
        read_ground_truth(pickled(wrong))
