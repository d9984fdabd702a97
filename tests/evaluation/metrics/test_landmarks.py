import numpy as np
import pytest

from evaluation.metrics.blocks import Stacked
from evaluation.metrics.landmarks import (
    GRADES,
    gpr1200_average_precisions,
    gpr1200_average_precisions_of_rankings,
    precision_at,
    revisited_metrics,
    revisited_metrics_of_rankings,
    trapezoidal_average_precision,
)
from evaluation.sets.revisited import QueryTruth
from tests.evaluation.metrics.references import exact_unit_vectors, slow_grade


def query(easy=(), hard=(), junk=()):
    return QueryTruth(easy=easy, hard=hard, junk=junk, box=(0, 0, 1, 1))


def test_trapezoids_by_hand():
    # Ranks 0 and 2 of two positives: (1 + 1)/2/2 + (1/2 + 2/3)/2/2 = 1/2 + 7/24 = 19/24.
    assert trapezoidal_average_precision([0, 2], 2) == pytest.approx(19 / 24)
    # A first positive at rank 1: before it precision is 0/1, after it 1/2.
    assert trapezoidal_average_precision([1], 1) == pytest.approx(1 / 4)
    # A second positive that was not ranked adds nothing.
    assert trapezoidal_average_precision([1], 2) == pytest.approx(1 / 8)


def test_precision_at_k_stops_at_the_last_positive():
    # Positives at ranks 0 and 2 (first and third): of the first min(3, 10) = 3, two are positive.
    assert precision_at([0, 2], 10) == pytest.approx(2 / 3)
    assert precision_at([0, 2], 1) == 1.0


def test_grades_by_hand_with_junk_out_of_the_ranking():
    truth = (query(easy=(1,), hard=(2,), junk=(0,)), query(hard=(3,)))
    # Both rank a, b, d, c.
    gallery = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    values, items = revisited_metrics(np.array([[1, 0], [1, 0]], np.float32), gallery, truth)
    # easy: a (junk) and c (hard) leave: b, d -> b first: 1. The second query has no easy positive and leaves the mean.
    assert values["easy.map"] == 1.0 and len(items["easy.map"]) == 1
    # medium: q ranks b, d, c: ranks 0, 2 of 2: 19/24. r ranks a, b, d, c: d at rank 2 of 1: (0/2 + 1/3)/2 = 1/6.
    np.testing.assert_allclose(items["medium.map"], [19 / 24, 1 / 6])
    assert values["medium.map"] == pytest.approx((19 / 24 + 1 / 6) / 2)
    # hard: q ranks d, c: c at rank 1: 1/4. r: 1/6.
    assert values["hard.map"] == pytest.approx((1 / 4 + 1 / 6) / 2)
    assert values["hard.precision_at_1"] == 0.0
    # q: c is 2nd of min(2, 10): 1/2. r: d is 3rd: 1/3.
    assert values["hard.precision_at_10"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_a_grade_without_queries_has_no_metric():
    truth = [query(easy=(0,))]
    values, items = revisited_metrics(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), truth)
    assert "hard.map" not in values and len(items["hard.map"]) == 0
    assert values["easy.map"] == values["medium.map"] == 1.0


@pytest.mark.parametrize("num_stated", [20, 90])
@pytest.mark.parametrize(("block_rows", "num_threads"), [(None, 1), (37, 2), (128, 2)])
def test_metrics_equal_the_slow_twin_with_ties_and_junk_and_queries_without_positives(
    num_stated, block_rows, num_threads
):
    random = np.random.default_rng(5)
    # Exact in float32 and float16, and full of ties.
    gallery, queries = exact_unit_vectors(random, 300), exact_unit_vectors(random, 12)
    truths = []
    for number in range(12):
        stated = random.choice(200, num_stated, replace=False).tolist()
        parts = np.split(np.array(stated), np.sort(random.integers(0, num_stated + 1, 2)))
        easy, hard, junk = (tuple(part.tolist()) for part in parts)
        truths.append(query(easy=easy if number else (), hard=hard if number > 1 else (), junk=junk))
    stacked = Stacked([gallery[:200], gallery[200:].astype(np.float16)])
    values, items = revisited_metrics(queries, stacked, truths, block_rows=block_rows, num_threads=num_threads)
    similarities = queries @ gallery.T
    for grade, (positive_fields, junk_fields) in GRADES.items():
        expected = []
        for one, row in zip(truths, similarities.tolist(), strict=True):
            positives = {position for field in positive_fields for position in getattr(one, field)}
            junk = {position for field in junk_fields for position in getattr(one, field)}
            if positives:
                expected.append(slow_grade(row, positives, junk))
        assert len(expected) < 12
        for number, name in enumerate(("map", "precision_at_1", "precision_at_5", "precision_at_10")):
            np.testing.assert_allclose(items[f"{grade}.{name}"], np.array(expected)[:, number], atol=1e-12)
            assert values[f"{grade}.{name}"] == pytest.approx(np.mean(np.array(expected)[:, number]))


def test_bad_shapes_and_values_are_errors():
    truth = [query(easy=(0,))]
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="there are 2 queries"):
        revisited_metrics(np.ones((2, 1), np.float32), one, truth)
    with pytest.raises(ValueError, match="not finite"):
        revisited_metrics(one, one * np.nan, truth)


def test_rows_that_are_not_of_length_one_are_refused():
    rows, long = np.eye(2, dtype=np.float32), np.array([[1, 0], [3, 4]], np.float32)
    truths = [query(easy=(0,))] * 2
    with pytest.raises(ValueError, match="^row 1 of `queries` has length 5; divide each row by its norm$"):
        revisited_metrics(long, rows, truths)
    with pytest.raises(ValueError, match="^row 1 of `gallery` has length 5; "):
        revisited_metrics(rows, Stacked([long, rows]), truths)
    with pytest.raises(ValueError, match="^row 1 of `embeddings` has length 5; "):
        gpr1200_average_precisions(long, np.array([0, 0]))


def slow_average_precision(embeddings, categories, query, num_matches):
    """The definition, one rank at a time."""
    similarities = [float(row @ embeddings[query]) for row in embeddings]
    total, found = 0.0, 0
    for rank, position in enumerate(sorted(range(len(embeddings)), key=lambda p: (-similarities[p], p)), 1):
        if categories[position] == categories[query]:
            found += 1
            total += found / rank
    return total / num_matches


@pytest.mark.parametrize("num_threads", [1, 2])
def test_average_precisions_equal_the_slow_twin_with_ties(num_threads):
    random = np.random.default_rng(3)
    embeddings = exact_unit_vectors(random, 300)  # exact in float32, and full of ties
    categories = random.permutation(np.repeat(np.arange(100), 3))
    expected = [slow_average_precision(embeddings, categories, query, 3) for query in range(300)]
    found = gpr1200_average_precisions(embeddings, categories, num_threads=num_threads)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_query_itself_is_a_match():
    # Each row finds itself, then the row of the other category, then its match: (1/1 + 2/3) / 2 for rows 0 and 2.
    angles = np.array([0.0, 0.1, 0.25])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    embeddings = np.concatenate([embeddings, [[-1, 0]]]).astype(np.float32)
    result = gpr1200_average_precisions(embeddings, np.array([0, 1, 0, 1]))
    assert result[0] == pytest.approx((1 + 2 / 3) / 2)


def rankings_of(queries, gallery):
    """All positions by falling similarity, ties by position: int `[queries, gallery]`; products must be exact."""
    return np.argsort(-(queries @ gallery.T), axis=1, kind="stable")


def test_rank_lists_give_what_their_embeddings_give():
    random = np.random.default_rng(9)
    gallery, queries = exact_unit_vectors(random, 90), exact_unit_vectors(random, 8)
    truths = []
    for number in range(8):
        parts = np.split(random.permutation(90)[:30], [10 * (number > 0), 20])  # the first query has no easy one
        easy, hard, junk = (tuple(part.tolist()) for part in parts)
        truths.append(query(easy=easy, hard=hard, junk=junk))
    values, items = revisited_metrics(queries, gallery, truths)
    # The benchmark's own layout: a column per query.
    of_lists, items_of_lists = revisited_metrics_of_rankings(rankings_of(queries, gallery).T, truths)
    assert of_lists == values and len(values) == 12
    for name, of_queries in items.items():
        np.testing.assert_array_equal(items_of_lists[name], of_queries)
    categories = np.repeat(np.arange(18), 5)[random.permutation(90)]
    np.testing.assert_array_equal(
        gpr1200_average_precisions_of_rankings(rankings_of(gallery, gallery), categories),
        gpr1200_average_precisions(gallery, categories),
    )


def test_rank_lists_by_hand():
    # Picture 0 ranks 0, 2, 1, 3; its category is 0 and 1: ranks 1 and 3: (1/1 + 2/3) / 2 = 5/6. Picture 1 ranks both
    # first: 1. Picture 2 ranks 0, 1, 2, 3: its matches 2 and 3 are third and fourth: (1/3 + 2/4) / 2 = 5/12. Picture 3
    # ranks 3, 0, 2, 1: 1 and 3: 5/6.
    rankings = np.array([[0, 2, 1, 3], [1, 0, 2, 3], [0, 1, 2, 3], [3, 0, 2, 1]])
    found = gpr1200_average_precisions_of_rankings(rankings, np.array([0, 0, 1, 1]))
    assert found.tolist() == pytest.approx([5 / 6, 1, 5 / 12, 5 / 6])
    # One query ranks c, a, b with junk c: a (easy) is first.
    values, _ = revisited_metrics_of_rankings(np.array([[2], [0], [1]]), [query(easy=(0,), junk=(2,))])
    assert values["easy.map"] == values["medium.precision_at_10"] == 1.0


def test_rank_lists_that_do_not_fit_are_refused():
    for rankings in (np.zeros(3, int), np.zeros((3, 2), int)):
        with pytest.raises(ValueError, match=r"^rankings have shape .*; \[gallery, 1\] is needed, a column per query$"):
            revisited_metrics_of_rankings(rankings, [query(easy=(0,))])
    for wrong in ([0, 0, 1], [0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match="^the rank list of query 0 must hold each position 0 to 2 once$"):
            revisited_metrics_of_rankings(np.array([wrong]).T, [query(easy=(0,))])
    for position in (3, -1):
        with pytest.raises(ValueError, match=f"^target {position} of query 0 is outside the gallery of 3 rows$"):
            revisited_metrics_of_rankings(np.array([[0], [1], [2]]), [query(easy=(position,))])
    with pytest.raises(ValueError, match=r"^rankings have shape \(2, 3\); \[2, 2\] is needed, a row per query$"):
        gpr1200_average_precisions_of_rankings(np.zeros((2, 3), int), np.array([0, 0]))
    with pytest.raises(ValueError, match="^categories have 1 to 2 rows; every one must have the same number$"):
        gpr1200_average_precisions_of_rankings(np.tile(np.arange(3), (3, 1)), np.array([0, 0, 1]))


def test_a_query_of_which_nothing_is_known_is_in_no_grade():
    values, items = revisited_metrics_of_rankings(np.array([[0, 1], [1, 0]]), [query(), query(easy=(0,))])
    assert values["easy.map"] == 0.25 and len(items["easy.map"]) == 1  # second of two: (0/1 + 1/2) / 2


def test_one_category_alone_is_always_right_and_counts_must_agree():
    rows = np.eye(3, dtype=np.float32)
    assert gpr1200_average_precisions(rows, np.zeros(3, int)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="^there are 3 embeddings and 2 categories; give one each$"):
        gpr1200_average_precisions(rows, np.zeros(2, int))


@pytest.mark.parametrize("truth", [query(easy=(0, 1, 1)), query(easy=(1,), hard=(0,), junk=(1,))])
def test_a_position_twice_in_one_query_is_an_error(truth):
    message = "^query 1 has position 1 2 times among easy, hard and junk; list each position once$"
    rows, truths = np.eye(2, dtype=np.float32), [query(easy=(1,)), truth]
    with pytest.raises(ValueError, match=message):
        revisited_metrics(rows, rows, truths)
    with pytest.raises(ValueError, match=message):
        revisited_metrics_of_rankings(np.array([[0, 1], [1, 0]]), truths)


def test_gpr1200_without_a_row_is_an_error():
    nothing = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="^there are 0 categories; give at least one row$"):
        gpr1200_average_precisions(np.zeros((0, 2), np.float32), nothing)
    with pytest.raises(ValueError, match="^there are 0 categories; give at least one row$"):
        gpr1200_average_precisions_of_rankings(np.zeros((0, 0), np.int64), nothing)
