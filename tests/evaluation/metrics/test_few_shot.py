import numpy as np
import pytest

from evaluation.metrics.few_shot import few_shot_accuracies, few_shot_predictions, few_shot_rows, few_shot_scores
from tests.evaluation.builders import clouds


def slow_scores(train, labels, test, num_classes, l2):
    """The minimum by its normal equations, with one loop per feature for the whitening."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    columns, asked = [], []
    for feature in range(train.shape[1]):
        values = train[:, feature]
        mean = sum(values) / len(values)
        deviation = (sum((one - mean) ** 2 for one in values) / len(values)) ** 0.5 + 1e-5
        columns.append((values - mean) / deviation)
        asked.append((test[:, feature] - mean) / deviation)
    rows = np.stack([*columns, np.full(len(train), 100.0)], axis=1)
    targets = np.array([[1.0 if label == one else -1.0 for one in range(num_classes)] for label in labels])
    weights = np.linalg.inv(rows.T @ rows + l2 * np.eye(rows.shape[1])) @ rows.T @ targets
    return np.stack([*asked, np.full(len(test), 100.0)], axis=1) @ weights


@pytest.mark.parametrize(("num_rows", "dim"), [(12, 30), (60, 8)])  # fewer rows than features, and more
@pytest.mark.parametrize("l2", [2.0**10, 1.0])
def test_predictions_are_those_of_the_normal_equations(num_rows, dim, l2):
    train, labels = clouds(num_rows, dim, 4, noise=2)
    test, _ = clouds(200, dim, 4, noise=2)
    train[:, 3] = 0.25  # a constant feature
    scores = slow_scores(train, labels, test, 4, l2)
    np.testing.assert_allclose(few_shot_scores(train, labels, test, l2=l2), scores, rtol=1e-6, atol=1e-9)
    found = few_shot_predictions(train, labels, test, l2=l2)
    assert found.tolist() == scores.argmax(axis=1).tolist() and len(set(found)) == 4


def test_one_feature_by_hand():
    # Rows -1 and 1 of classes 0 and 1: mean 0, deviation 1 + 1e-5. Without a penalty the score of class 1 is the
    # feature itself, that of class 0 its negative: what is below 0 is of class 0.
    train = np.array([[-1.0], [1.0]])
    found = few_shot_predictions(train, np.array([0, 1]), np.array([[-5.0], [-0.1], [0.1], [7.0]]), l2=1e-6)
    assert found.tolist() == [0, 0, 1, 1]


def test_the_bias_is_hardly_held_by_the_penalty():
    # Three of four rows are of class 1, at a feature that says nothing: targets have the means -1/2 and 1/2. With the
    # constant 100 over 4 rows, the bias keeps 40,000 / (40,000 + 1,024) of that, and class 1 wins.
    train = np.zeros((4, 1))
    assert few_shot_predictions(train, np.array([0, 1, 1, 1]), np.zeros((1, 1))).tolist() == [1]


def test_equal_scores_go_to_the_smaller_class_and_a_class_without_rows_may_be_named():
    train = np.zeros((2, 1))
    assert few_shot_predictions(train, np.array([2, 1]), np.zeros((1, 1)), num_classes=5).tolist() == [1]


def test_draws_are_those_of_big_vision():
    labels = np.array([0, 1, 0, 1, 0, 2])
    random = np.random.default_rng(7)
    zeros, ones, twos = (random.permutation(rows) for rows in ([0, 2, 4], [1, 3], [5]))
    assert few_shot_rows(labels, 2, 7).tolist() == [*zeros[:2], *ones, *twos]
    assert few_shot_rows(labels, 1, 7).tolist() == [zeros[0], ones[0], twos[0]]
    assert few_shot_rows(labels, 25, 7).tolist() == [*zeros, *ones, *twos]


def test_accuracies_are_of_each_draw():
    train, labels = clouds(90, 10, 3, noise=2)
    test, test_labels = clouds(120, 10, 3, noise=2)
    found = few_shot_accuracies(train, labels, test, test_labels, shots=(1, 10), num_seeds=2)
    assert list(found) == [1, 10]
    for shots, values in found.items():
        for seed, value in enumerate(values):
            rows = few_shot_rows(labels, shots, seed)
            predicted = slow_scores(train[rows], labels[rows], test, 3, 2.0**10).argmax(axis=1)
            assert value == np.mean(predicted == test_labels)
        assert len(values) == 2
    assert found[10].mean() > found[1].mean() > 1 / 3
    default = few_shot_accuracies(train, labels, test, test_labels)
    assert list(default) == [1, 5, 10, 25] and default[10].tolist()[:2] == found[10].tolist() and len(default[1]) == 3
    assert few_shot_accuracies(train, labels, test, test_labels, shots=(1,), num_seeds=1)[1] == default[1][:1]
    weak = few_shot_accuracies(train, labels, test, test_labels, shots=(10,), l2=1e-3)
    assert weak[10].tolist() != default[10].tolist()


ROWS, LABELS = np.eye(3), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": ROWS[0]}, r"^train \(3,\) and test \(3, 3\) must be \[n > 0, dim\] and \[m, dim\]$"),
        ({"test": ROWS[0]}, r"must be \[n > 0, dim\]"),
        ({"test": ROWS[:, :2]}, r"must be \[n > 0, dim\]"),
        ({"train": ROWS[:0], "train_labels": LABELS[:0]}, r"must be \[n > 0, dim\]"),
        ({"train_labels": LABELS[:2]}, "^there are 3 training rows and 2 labels; give one each$"),
        ({"num_classes": 2}, "^labels are 0 to 2; they must be 0 to 1$"),
        ({"train_labels": LABELS - 1}, "^labels are -1 to 1; they must be 0 to 1$"),
        ({"l2": 0.0}, "^l2 is 0.0; it must be above 0$"),
        ({"l2": float("nan")}, "^l2 is nan; it must be above 0$"),
        ({"train": ROWS * np.nan}, "^an embedding is not finite; embed again$"),
        ({"test": ROWS * np.nan}, "^an embedding is not finite; embed again$"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        few_shot_predictions(**{"train": ROWS, "train_labels": LABELS, "test": ROWS, **arguments})


def test_bad_draws_are_named():
    with pytest.raises(ValueError, match="^shots is 0; it must be at least 1$"):
        few_shot_rows(LABELS, 0, 0)
    for labels in (LABELS[:0], LABELS - 1):
        with pytest.raises(ValueError, match="^labels must be class numbers from 0, at least one$"):
            few_shot_rows(labels, 1, 0)
    with pytest.raises(ValueError, match="^num_seeds is 0; it must be at least 1$"):
        few_shot_accuracies(ROWS, LABELS, ROWS, LABELS, num_seeds=0)
    with pytest.raises(ValueError, match="^there are 3 test rows and 2 labels; give one each, at least 1$"):
        few_shot_accuracies(ROWS, LABELS, ROWS, LABELS[:2])
    with pytest.raises(ValueError, match="^there are 0 test rows and 0 labels; give one each, at least 1$"):
        few_shot_accuracies(ROWS, LABELS, ROWS[:0], LABELS[:0])


@pytest.mark.parametrize("num_labels", [2, len(ROWS) + 1])
def test_training_labels_of_another_length_are_an_error(num_labels):
    message = f"^there are {len(ROWS)} training rows and {num_labels} labels; give one each$"
    with pytest.raises(ValueError, match=message):
        few_shot_accuracies(ROWS, np.resize(LABELS, num_labels), ROWS, LABELS, shots=(1,), num_seeds=1)
