from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from evaluation.metrics.linear import (
    LinearProbe,
    ProbeSets,
    Selected,
    best_setting,
    check_labels,
    moments_of,
    row_slices,
    rows_of_scores,
    softmax,
    stratified_split,
    validate,
    workers,
)
from pipeline.schema import UserError


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def probe_of(weights, bias):
    return LinearProbe(
        weights=np.array(weights, np.float32),
        bias=np.array(bias, np.float32),
        chosen=1.0,
        validation_accuracies={},
        validation_losses={},
        converged=True,
    )


def all_rows(array):
    return Selected([array], np.arange(len(array)))


def test_scores_are_products_plus_the_bias_and_the_first_of_equal_scores_wins():
    probe = probe_of([[1, 0], [0, 2], [1, 0]], [0.5, -1, 0.5])
    scores = probe.scores(np.array([[3, 1], [0, 4]], np.float16))
    assert scores.tolist() == [[3.5, 1, 3.5], [0.5, 7, 0.5]]  # 3 + 0.5, 2 * 1 - 1; 0 + 0.5, 2 * 4 - 1
    assert scores.dtype == np.float32
    assert probe.predict(np.array([[3, 1], [0, 4]], np.float32)).tolist() == [0, 1]


def test_features_are_rounded_to_float32_before_they_are_scored():
    # As float32, 1 + 1e-9 is 1, and 1e8 * (1 + 1e-9) - 1e8 is 0 where float64 has 0.1.
    assert probe_of([[1e8, -1e8]], [0]).scores(np.array([[1 + 1e-9, 1]])).tolist() == [[0]]


def test_a_row_to_be_scored_that_is_not_finite_is_named_by_its_place_among_all():
    features = np.ones((5000, 2), np.float32)
    features[[4098, 4999], 1] = np.nan  # past the first block of 4,096
    message = "^row 4098 of the features is not finite; embed again, float16 overflows at 65,504$"
    with pytest.raises(UserError, match=message):
        probe_of([[1, 1]], [0]).scores(features)


@pytest.mark.parametrize("shape", [(2, 5), (4,), (1, 2, 4)])
def test_features_of_another_shape_than_the_probes_are_an_error(shape):
    shown = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"^features have shape {shown}, the probe takes \[n, 4\]; use the same encoder$"
    with pytest.raises(UserError, match=message):
        probe_of(np.ones((2, 4)), [0, 0]).scores(np.ones(shape, np.float32))


def test_of_equal_accuracies_the_lowest_loss_wins_and_of_equal_losses_the_smallest_setting():
    accuracies = {1.0: 0.9, 0.01: 0.9, 100.0: 0.9, 0.0001: 0.5}
    assert best_setting(accuracies, {1.0: 0.3, 0.01: 0.4, 100.0: 0.5, 0.0001: 0.1}) == 1.0
    assert best_setting(accuracies, {1.0: 0.3, 0.01: 0.3, 100.0: 0.3, 0.0001: 0.1}) == 0.01


def test_a_part_of_every_class_is_held_out_but_never_all_of_it():
    labels = np.repeat([0, 1, 2, 3], [1, 2, 14, 40])
    kept, heldout = stratified_split(labels, 0.1, seed=3)
    assert sorted([*kept, *heldout]) == list(range(57))
    assert np.bincount(labels[heldout], minlength=4).tolist() == [0, 1, 1, 4]
    assert (stratified_split(labels, 0.1, seed=3)[1] == heldout).all()
    assert (stratified_split(labels, 0.1, seed=4)[1] != heldout).any()


def test_what_is_held_out_is_drawn_from_the_rows_of_each_class_in_their_order():
    labels = np.random.default_rng(0).integers(0, 3, 600)
    rng = np.random.default_rng(5)
    expected = []
    for label in range(3):
        rows = [row for row in range(600) if labels[row] == label]
        expected += rng.permutation(rows)[: round(0.1 * len(rows))].tolist()
    kept, heldout = stratified_split(labels, 0.1, seed=5)
    assert heldout.tolist() == sorted(expected)
    assert kept.tolist() == sorted(set(range(600)) - set(expected))


def test_selected_rows_of_one_array_and_of_two_are_float32_in_the_order_asked_for():
    first, second = np.array([[1.0, 2], [3, 4]]), np.array([[5.0, 6], [7, 8], [9, 10]])
    of_one, of_two = Selected([first], np.array([1, 0, 1])), Selected([first, second], np.array([4, 1, 2]))
    assert (len(of_one), len(of_two), of_two.dim) == (3, 3, 2)
    assert of_one.take(slice(1, 3)).tolist() == [[1, 2], [3, 4]]
    assert of_two.take(slice(0, 3)).tolist() == [[9, 10], [3, 4], [5, 6]]
    assert of_two.take(np.array([2, 1])).tolist() == [[5, 6], [3, 4]]
    assert of_one.take(slice(0, 1)).dtype == of_two.take(slice(0, 1)).dtype == np.float32
    second[2, 0] = np.inf
    with pytest.raises(UserError, match="^row 4 of the features is not finite"):
        of_two.take(np.array([1, 0]))


def sets_of(labels, val_features=None, val_labels=None, num_classes=None):
    features = np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 2)
    return ProbeSets.of(features, np.array(labels), val_features, val_labels, num_classes, 0.5, 0)


def test_validation_rows_come_after_the_training_rows_and_may_be_of_one_class():
    sets = sets_of([0, 1, 1], np.full((2, 2), 7, np.float32), np.array([1, 1]))
    assert (len(sets.train), len(sets.val), len(sets.both), sets.num_classes) == (3, 2, 5, 2)
    assert sets.train.take(slice(0, 3)).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert sets.val.take(slice(0, 2)).tolist() == [[7, 7], [7, 7]]
    assert sets.both.take(slice(2, 4)).tolist() == [[4, 5], [7, 7]]
    assert [sets.train_labels.tolist(), sets.val_labels.tolist()] == [[0, 1, 1], [1, 1]]
    assert sets.both_labels.tolist() == [0, 1, 1, 1, 1]


def test_without_validation_rows_a_share_of_each_class_is_held_out():
    sets = sets_of([0, 0, 1, 1], num_classes=5)
    assert [sorted(sets.train_labels), sorted(sets.val_labels), sets.num_classes] == [[0, 1], [0, 1], 5]
    rows = np.concatenate([sets.train.take(slice(0, 2)), sets.val.take(slice(0, 2))])
    assert sorted(rows[:, 0]) == [0, 2, 4, 6]
    assert sets.both.take(slice(0, 4))[:, 0].tolist() == [0, 2, 4, 6]
    assert sets.both_labels.tolist() == [0, 0, 1, 1]


def test_what_is_held_out_depends_on_the_share_and_the_seed():
    features, labels = np.arange(40, dtype=np.float32)[:, None], np.arange(40) % 2
    for share, seed in ((0.25, 0), (0.25, 7), (0.5, 7)):
        sets = ProbeSets.of(features, labels, None, None, None, share, seed)
        assert sets.val.take(slice(None))[:, 0].tolist() == stratified_split(labels, share, seed)[1].tolist()


TWO_ROWS = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("val_features", "val_labels", "message"),
    [
        (
            None,
            None,
            "none of 3 rows can be held out: each class has one; give validation rows, or fit with a fixed c",
        ),
        (
            TWO_ROWS[:0],
            np.zeros(0, int),
            "there are 0 validation rows, at least 1 is needed; leave them out to hold some out",
        ),
        (
            np.zeros((2, 3), np.float32),
            np.array([0, 1]),
            r"validation features have shape \(2, 3\) and training features \(3, 2\); embed both with the same encoder",
        ),
        (TWO_ROWS, np.array([0, 3]), "label 3 is outside 0 to 2; number the classes from 0"),
        (TWO_ROWS, np.array([[0], [1]]), r"labels have shape \(2, 1\) of int64; whole numbers \[n\] are needed"),
    ],
)
def test_validation_rows_that_do_not_fit_are_an_error(val_features, val_labels, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        sets_of([0, 1, 2], val_features, val_labels)


def test_validation_features_and_labels_belong_together():
    remedy = "give both, or neither to hold rows out"
    with pytest.raises(ValueError, match=f"^val_features is given and val_labels is None; {remedy}$"):
        sets_of([0, 0, 1, 1], TWO_ROWS, None)
    with pytest.raises(ValueError, match=f"^val_labels is given and val_features is None; {remedy}$"):
        sets_of([0, 0, 1, 1], None, np.array([0, 1]))


@pytest.mark.parametrize(
    ("features", "labels", "num_classes", "message"),
    [
        (np.ones(2), [0, 1], None, r"features have shape \(2,\) of float64 for 2 labels; .* n labels are needed"),
        (np.ones((3, 1)), [0, 1], None, r"features have shape \(3, 1\) of float64 for 2 labels; floats \[n, dim\] and"),
        (np.ones((2, 1), int), [0, 1], None, r"features have shape \(2, 1\) of int64 for 2 labels; floats"),
        (np.ones((2, 1)), [0.0, 1.0], None, r"labels have shape \(2,\) of float64; whole numbers \[n\] are needed$"),
        (np.ones((2, 1)), [[0], [1]], None, r"labels have shape \(2, 1\) of int64; whole numbers \[n\] are needed$"),
        (
            np.ones((2, 1)),
            [1, 1],
            None,
            "the labels hold 1 class, at least 2 are needed; give pictures of another class$",
        ),
        (np.ones((2, 1)), [-1, 1], None, "label -1 is outside 0 to 1; number the classes from 0$"),
        (np.ones((2, 1)), [0, 2], 2, "label 2 is outside 0 to 1; number the classes from 0$"),
    ],
)
def test_rows_and_labels_that_do_not_fit_are_an_error(features, labels, num_classes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check_labels(features, np.array(labels), num_classes)


def test_the_number_of_classes_is_the_one_given_or_one_more_than_the_largest_label():
    features = np.ones((3, 1), np.float16)
    assert check_labels(features, np.array([4, 0, 3]), None) == 5
    assert check_labels(features, np.array([4, 0, 3]), 9) == 9


def test_probabilities_take_the_place_of_scores():
    # Beside 1000, the scores of row 0 would vanish: each row has its own scale.
    scores = np.array([[0, np.log(3)], [1000, 1000]])
    probabilities, losses = softmax(scores, np.array([0, 1]))
    np.testing.assert_allclose(probabilities, [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_allclose(losses, [np.log(4), np.log(2)])
    assert probabilities is scores


def test_moments_are_those_of_all_rows_in_double_precision(pool):
    rows = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float32) + np.float32(100)  # three blocks
    mean, covariance = moments_of(all_rows(rows), pool)
    expected = rows.astype(np.float64)
    np.testing.assert_allclose(mean, expected.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(expected.T, bias=True), rtol=1e-9, atol=1e-12)
    mean, variances = moments_of(all_rows(rows), pool, diagonal=True)
    np.testing.assert_allclose(mean, expected.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(variances, expected.var(axis=0), rtol=1e-9)


def test_validation_counts_right_rows_of_all_classes_and_the_loss_of_those_that_training_has(pool):
    rows = all_rows(np.array([[0.0], [0], [1]], np.float32))
    # At 0 classes 0 and 1 have score 0, and the first wins; at 1 their scores are 0 and log 3.
    # Class 2 has no training row.
    weights, bias = np.array([[0], [np.log(3)], [0]], np.float32), np.array([0, 0, -np.inf], np.float32)
    accuracy, loss = validate(rows, np.array([0, 1, 1]), weights, bias, pool)
    assert accuracy == pytest.approx(2 / 3)
    assert loss == pytest.approx((np.log(2) + np.log(2) + np.log(4 / 3)) / 3)
    accuracy, loss = validate(rows, np.array([0, 2, 2]), weights, bias, pool)
    assert (accuracy, loss) == (pytest.approx(1 / 3), pytest.approx(np.log(2)))
    assert validate(rows, np.array([2, 2, 2]), weights, bias, pool) == (0, 0)


def test_validation_losses_are_added_up_in_double_precision(pool):
    rows, labels = all_rows(np.zeros((6001, 1), np.float32)), np.zeros(6001, int)
    weights, bias = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
    _, losses = softmax(np.zeros((1, 3), np.float32), labels[:1])
    assert validate(rows, labels, weights, bias, pool)[1] == pytest.approx(float(losses[0]), rel=1e-12)


@pytest.mark.parametrize(
    ("num_classes", "num_rows"),
    [(2, 4096), (488, 4096), (489, 4089), (1000, 2000), (7000, 285), (7813, 256), (20_000, 256)],
)
def test_two_million_scores_are_computed_at_a_time_but_256_to_4096_rows(num_classes, num_rows):
    assert rows_of_scores(num_classes) == num_rows


def test_slices_cover_all_rows_once():
    assert list(row_slices(10, 4)) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(row_slices(8, 4)) == [slice(0, 4), slice(4, 8)]
    assert list(row_slices(0, 4)) == []


def test_workers_run_blas_alone_and_restore_its_threads():
    def num_threads():
        return {library["filepath"]: library["num_threads"] for library in threadpool_info()}

    with threadpool_limits(2):
        before = num_threads()
        with workers(3) as pool:
            assert set(num_threads().values()) == {1}
            assert list(pool.map(abs, [-3, 4])) == [3, 4]
        assert num_threads() == before
