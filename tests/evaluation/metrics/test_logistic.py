import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from evaluation.metrics.descent import fit_best_sgd
from evaluation.metrics.linear import best_setting
from evaluation.metrics.logistic import fit, fit_best, objective
from pipeline.schema import UserError
from tests.evaluation.builders import clouds


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_the_exact_fit_is_scikit_learns_solution(c):
    features, labels = clouds(400, 12, 5)
    weights, bias = fit(features, labels, c=c)
    reference = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(features.astype(np.float64), labels)
    best = objective(features, labels, reference.coef_, reference.intercept_, c=c)
    assert objective(features, labels, weights, bias, c=c) == pytest.approx(best, rel=1e-5)
    scores, expected = features @ weights.T + bias, features @ reference.coef_.T + reference.intercept_
    assert np.abs(scores - expected).max() < 0.02 * np.abs(expected).max()
    assert weights.dtype == bias.dtype == np.float32


def test_two_classes_are_scikit_learns_single_vector_at_twice_the_c():
    features, labels = clouds(200, 6, 2)
    weights, bias = fit(features, labels, c=1.0, tolerance=1e-9)
    reference = LogisticRegression(C=2.0, tol=1e-9, max_iter=10_000).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(weights[1] - weights[0], reference.coef_[0], atol=2e-3)
    assert bias[1] - bias[0] == pytest.approx(reference.intercept_[0], abs=2e-3)


def test_the_objective_is_its_literal_definition():
    features, labels = clouds(7, 3, 3)
    rng = np.random.default_rng(1)
    weights, bias = rng.standard_normal((3, 3)), rng.standard_normal(3)
    expected = 0.5 * sum(float(one) ** 2 for one in weights.ravel())
    for row, label in zip(features, labels, strict=True):
        logits = [
            sum(float(a) * b for a, b in zip(row, w, strict=True)) + b0 for w, b0 in zip(weights, bias, strict=True)
        ]
        expected += 2.5 * -np.log(np.exp(logits[label]) / sum(np.exp(one) for one in logits))
    assert objective(features, labels, weights, bias, c=2.5) == pytest.approx(expected, rel=1e-12)


def test_equal_input_gives_equal_bits_whatever_the_number_of_threads():
    features, labels = clouds(9000, 8, 3)  # three blocks
    once, again, alone = (fit(features, labels, num_threads=n) for n in (2, 2, 1))
    for one, two, three in zip(once, again, alone, strict=True):
        assert one.tobytes() == two.tobytes() == three.tobytes()


def test_more_dimensions_than_rows_and_constant_dimensions_are_fine():
    features, labels = clouds(20, 50, 4)
    features[:, 7] = 0.25
    weights, bias = fit(features, labels, c=10.0)
    reference = LogisticRegression(C=10.0, tol=1e-9, max_iter=10_000).fit(features.astype(np.float64), labels)
    best = objective(features, labels, reference.coef_, reference.intercept_, c=10.0)
    assert objective(features, labels, weights, bias, c=10.0) == pytest.approx(best, rel=1e-5)
    assert np.abs(weights[:, 7]).max() < 1e-6


def test_embeddings_on_disk_in_half_precision_are_read_as_they_are(tmp_path: Path):
    features, labels = clouds(300, 8, 3)
    np.save(tmp_path / "half.npy", features.astype(np.float16))
    from_disk = fit(np.load(tmp_path / "half.npy", mmap_mode="r"), labels)
    in_memory = fit(features.astype(np.float16).astype(np.float32), labels)
    assert from_disk[0].tobytes() == in_memory[0].tobytes()


def test_a_held_out_part_that_every_c_classifies_without_a_fault_leads_to_a_probe_that_tells_classes_apart():
    features, labels = clouds(150, 16, 10, noise=0.05)
    features, labels = features[:141], labels[:141]  # 15 of class 0, 14 of each other; 13 of each are not held out
    useless = fit_best(features, labels, log10_c=(-6.0,))
    assert useless.validation_accuracies == {1e-6: 1.0}
    assert (useless.predict(features) == 0).all()  # at so small a c, the one picture more decides
    probe = fit_best(features, labels)
    assert set(probe.validation_accuracies.values()) == {1.0}
    assert probe.validation_losses[probe.chosen] == min(probe.validation_losses.values())
    assert (probe.predict(features) == labels).all()
    sgd = fit_best_sgd(features, labels, learning_rates=(1e-6, 0.1), num_epochs=10)
    assert sgd.chosen == 0.1 and sgd.validation_losses[0.1] < sgd.validation_losses[1e-6]


def test_the_validation_loss_is_the_mean_log_loss_of_the_classes_that_training_has():
    features, labels = clouds(120, 6, 4, noise=2)
    val_features, val_labels = clouds(60, 6, 4, noise=2, seed=0)
    features, labels = features[labels != 3], labels[labels != 3]
    weights, bias = fit(features, labels, c=1.0)
    losses = []
    for row, label in zip(val_features, val_labels, strict=True):
        powers = np.exp(weights @ row + bias)
        if label != 3:
            losses.append(-np.log(powers[label] / powers.sum()))
    for num_threads in (1, 2):
        probe = fit_best(features, labels, val_features, val_labels, 4, log10_c=(0.0,), num_threads=num_threads)
        assert probe.validation_losses[1.0] == pytest.approx(np.mean(losses), rel=1e-2)


def test_c_is_searched_coarsely_and_then_around_the_best():
    features, labels = clouds(300, 20, 5, noise=4)
    probe = fit_best(features, labels, log10_c=(-2, 0, 2), num_refinements=2)
    accuracies = {round(float(np.log10(c)), 6): one for c, one in probe.validation_accuracies.items()}
    losses = {round(float(np.log10(c)), 6): one for c, one in probe.validation_losses.items()}
    coarse = best_setting({key: accuracies[key] for key in (-2, 0, 2)}, losses)
    assert {-2.0, 0.0, 2.0} <= set(accuracies)
    assert all(key in accuracies for key in (coarse - 1, coarse + 1) if -2 <= key <= 2)
    assert probe.chosen == best_setting(probe.validation_accuracies, probe.validation_losses)


@pytest.mark.parametrize(
    ("sign", "tried"),
    [
        # The smallest weights are best: -2 stays so, and of its neighbours at 1, 1/2 and 1/4 the upper ones are tried.
        (1, [-2, -1.75, -1.5, -1, 0]),
        # The largest are: 0 stays best, and the lower neighbours are tried.
        (-1, [-2, -1, -0.5, -0.25, 0]),
    ],
)
def test_the_search_of_c_never_leaves_its_grid(sign, tried, monkeypatch):
    def validate(rows, labels, weights, bias, pool):
        return 1.0, sign * float(np.square(weights).sum())

    monkeypatch.setattr("evaluation.metrics.logistic.validate", validate)
    features, labels = clouds(60, 6, 3)
    probe = fit_best(features, labels, log10_c=(-2, 0))
    assert np.log10([*probe.validation_losses]).tolist() == pytest.approx(tried)
    assert probe.chosen == pytest.approx(0.01 if sign == 1 else 1.0)


def test_the_last_fit_is_of_all_rows():
    features, labels = clouds(120, 6, 3, noise=3)
    val_features, val_labels = clouds(60, 6, 3, noise=3, seed=0)
    probe = fit_best(features, labels, val_features, val_labels, 3, log10_c=(0.0,), num_refinements=0)
    whole, whole_labels = np.concatenate([features, val_features]), np.concatenate([labels, val_labels])
    best = objective(whole, whole_labels, *fit(whole, whole_labels, c=1.0), c=1.0)
    assert objective(whole, whole_labels, probe.weights, probe.bias, c=1.0) == pytest.approx(best, rel=1e-5)
    assert probe.converged


@pytest.mark.parametrize("choose", [partial(fit_best, log10_c=(2.0,)), fit_best_sgd], ids=["exact", "sgd"])
def test_a_class_that_only_validation_has_is_learnt_in_the_end_and_one_without_rows_is_never_predicted(choose):
    features, labels = clouds(200, 8, 4, noise=0.5)
    train, val = labels != 3, np.arange(200) % 2 == 0
    probe = choose(features[train], labels[train], features[val | ~train], labels[val | ~train], 6)
    predicted = probe.predict(features)
    assert (predicted == labels).mean() > 0.9
    assert np.isneginf(probe.scores(features)[:, 4:]).all()


def test_labels_of_one_class_are_an_error():
    with pytest.raises(UserError, match="hold 1 class, at least 2"):
        fit(np.eye(3, dtype=np.float32), np.zeros(3, int))


def test_a_class_without_rows_is_an_error_of_the_plain_fit():
    with pytest.raises(UserError, match="class 1 of the labels has 0 training pictures .1 of 3"):
        fit(np.eye(3, dtype=np.float32), np.array([0, 2, 2]))


def test_a_label_outside_the_classes_is_an_error():
    with pytest.raises(UserError, match="label 7 is outside 0 to 2"):
        fit_best(np.eye(3, dtype=np.float32), np.array([0, 1, 7]), num_classes=3)


def test_embeddings_of_another_width_are_an_error():
    features, labels = clouds(30, 4, 3)
    probe = fit_best(features, labels, log10_c=(0.0,))
    with pytest.raises(UserError, match=r"shape \(2, 5\), the probe takes \[n, 4\]"):
        probe.scores(np.ones((2, 5), np.float32))
    with pytest.raises(UserError, match="same encoder"):
        fit_best(features, labels, np.ones((2, 5), np.float32), np.array([0, 1]), 3)


@pytest.mark.parametrize("choose", [fit, fit_best, fit_best_sgd])
def test_a_row_that_is_not_finite_is_an_error_that_names_it(choose):
    features, labels = clouds(30, 4, 3)
    features[17, 2] = np.inf
    with pytest.raises(UserError, match="row 17 of the features is not finite"):
        choose(features, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log10_c": (1.0, 0.0)}, "must rise in even steps"),
        ({"log10_c": (0.0, 1.0, 3.0)}, "must rise in even steps"),
        ({"log10_c": ()}, "give at least one"),
        ({"log10_c": (0.0, 40.0)}, "must stay within 30 of 0"),
        ({"log10_c": (float("nan"),)}, "must stay within 30 of 0"),
        ({"val_features": np.zeros((0, 4), np.float32), "val_labels": np.zeros(0, int)}, "0 validation rows"),
    ],
)
def test_a_search_that_cannot_be_made_is_an_error(arguments, message):
    features, labels = clouds(30, 4, 3)
    with pytest.raises(UserError, match=message):
        fit_best(features, labels, **arguments)


def test_classes_of_one_picture_each_leave_nothing_to_hold_out():
    with pytest.raises(UserError, match="none of 3 rows can be held out"):
        fit_best(np.eye(3, dtype=np.float32), np.arange(3))


def test_the_largest_and_the_smallest_c_give_finite_probes_and_what_overflows_is_an_error():
    features, labels = clouds(60, 8, 3, noise=0.3)
    probe = fit_best(features, labels, log10_c=(-30.0, 0.0, 30.0), num_refinements=0)
    assert np.isfinite([*probe.validation_losses.values()]).all()
    for c in (1e-30, 1e30):
        assert np.isfinite(fit(features, labels, c=c)[0]).all()
    for c in (0.0, 1e31, float("nan")):
        with pytest.raises(UserError, match=f"c is {re.escape(str(c))}, it must be from 1e-30 to 1e30"):
            fit(features, labels, c=c)
    with pytest.raises(UserError, match=r"float32 overflows at c = 1e\+30; give a smaller one"):
        fit(features * np.float32(1e10), labels, c=1e30)


@pytest.mark.parametrize("fit_probe", [fit_best, fit_best_sgd])
def test_validation_features_and_labels_belong_together(fit_probe):
    features, labels = clouds(40, 4, 2)
    with pytest.raises(ValueError, match="^val_features is given and val_labels is None; give both, or neither to "):
        fit_probe(features, labels, features, None)
    with pytest.raises(ValueError, match="^val_labels is given and val_features is None; give both, or neither to "):
        fit_probe(features, labels, None, labels)
