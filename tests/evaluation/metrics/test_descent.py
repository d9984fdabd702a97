import numpy as np
import pytest

from evaluation import progress
from evaluation.metrics import linear
from evaluation.metrics.descent import fit_best_sgd
from evaluation.metrics.logistic import fit_best
from pipeline.schema import UserError
from tests.evaluation.builders import clouds


def test_gradient_descent_comes_close_to_the_exact_probe_and_repeats_its_bits():
    features, labels = clouds(2000, 16, 5, noise=2)
    test, test_labels = clouds(1000, 16, 5, noise=2, seed=0)
    exact = (fit_best(features, labels).predict(test) == test_labels).mean()
    probes = [
        fit_best_sgd(features, labels, learning_rates=(0.001, 0.1), num_epochs=10, batch_size=600, num_threads=n)
        for n in (1, 2)
    ]
    assert (probes[0].predict(test) == test_labels).mean() > exact - 0.02
    assert probes[0].weights.tobytes() == probes[1].weights.tobytes()
    assert set(probes[0].validation_accuracies) == {0.001, 0.1}
    other = fit_best_sgd(features, labels, learning_rates=(0.001, 0.1), num_epochs=10, batch_size=600, seed=1)
    assert other.weights.tobytes() != probes[0].weights.tobytes()


def literal_descent(rows, labels, *, num_classes, rate, num_epochs, batch_size, seed):
    """Weights and biases for standardised rows, a row at a time."""
    (num_rows, dim), num_batches = rows.shape, -(-len(rows) // batch_size)
    weights, bias, speed, bias_speed = np.zeros((num_classes, dim)), np.zeros(num_classes), 0, 0
    step = 0
    for epoch in range(num_epochs):
        order = np.random.default_rng([seed, epoch]).permutation(num_rows)
        for start in range(0, num_rows, batch_size):
            batch = order[start : start + batch_size]
            gradient, bias_gradient = 0, 0
            for row in batch:
                powers = np.exp(weights @ rows[row] + bias)
                error = powers / powers.sum() - (np.arange(num_classes) == labels[row])
                gradient += np.outer(error, rows[row]) / len(batch)
                bias_gradient += error / len(batch)
            speed, bias_speed = 0.9 * speed + gradient, 0.9 * bias_speed + bias_gradient
            now = rate * (1 + np.cos(np.pi * step / (num_epochs * num_batches))) / 2
            weights, bias = weights - now * speed, bias - now * bias_speed
            step += 1
    return weights, bias


def test_gradient_descent_is_its_literal_twin():
    features, labels = clouds(45, 4, 3)
    probe = fit_best_sgd(
        features, labels, features, labels, 4, learning_rates=(0.2,), num_epochs=3, batch_size=16, seed=2
    )
    rows, row_labels = np.concatenate([features, features]).astype(np.float64), np.concatenate([labels, labels])
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    # Six steps an epoch, the last of ten rows.
    weights, bias = literal_descent(standard, row_labels, num_classes=4, rate=0.2, num_epochs=3, batch_size=16, seed=2)
    expected = standard[:45] @ weights.T + bias
    expected[:, 3] = -np.inf  # class 3 has no row
    np.testing.assert_allclose(probe.scores(features), expected, atol=1e-4)
    assert probe.weights[3].tolist() == [0] * 4
    assert probe.weights.dtype == probe.bias.dtype == np.float32
    assert probe.converged and probe.chosen == 0.2


def test_batches_larger_than_what_a_thread_takes_are_stepped_over_whole():
    features, labels = clouds(600, 3, 2)
    probe = fit_best_sgd(
        features,
        labels,
        features[:0:-1],
        labels[:0:-1],
        learning_rates=(0.2,),
        num_epochs=1,
        batch_size=600,
        train_on_validation=False,
    )
    rows = features.astype(np.float64)
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    weights, bias = literal_descent(standard, labels, num_classes=2, rate=0.2, num_epochs=1, batch_size=600, seed=0)
    np.testing.assert_allclose(probe.scores(features), standard @ weights.T + bias, atol=1e-5)


def test_the_rate_is_chosen_by_validation_rows_which_are_then_trained_on_or_left_out():
    features, labels = clouds(60, 4, 3)
    fixed = {"num_epochs": 3, "batch_size": 16}
    sets = features, labels, features[::2], labels[::2], 3
    without = fit_best_sgd(*sets, learning_rates=(0.2,), train_on_validation=False, **fixed)
    with_both = fit_best_sgd(*sets, learning_rates=(0.2,), **fixed)
    # Rates may come in any order, and twice.
    rates = (1e-6, 0.2, 1e-5, 0.2)
    best = fit_best_sgd(*sets, learning_rates=rates, train_on_validation=False, **fixed)
    assert best.chosen == 0.2
    assert [*best.validation_losses] == [*best.validation_accuracies] == [1e-6, 1e-5, 0.2]
    assert best.validation_losses[0.2] == without.validation_losses[0.2] < best.validation_losses[1e-5]
    assert best.weights.tobytes() == without.weights.tobytes() != with_both.weights.tobytes()
    assert fit_best_sgd(*sets, learning_rates=rates, **fixed).weights.tobytes() == with_both.weights.tobytes()


def test_without_validation_rows_the_share_of_the_seed_is_held_out():
    features, labels = clouds(60, 4, 3)
    kept, heldout = linear.stratified_split(labels, 0.25, 4)
    fixed = {"learning_rates": (0.2,), "num_epochs": 1, "seed": 4, "train_on_validation": False}
    probe = fit_best_sgd(features, labels, heldout_share=0.25, **fixed)
    same = fit_best_sgd(features[kept], labels[kept], features[heldout], labels[heldout], **fixed)
    assert probe.weights.tobytes() == same.weights.tobytes()
    assert probe.validation_losses == same.validation_losses


def test_a_dimension_that_varies_by_a_millionth_of_the_largest_stays_out():
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]] * 2, np.float32)
    # Standard deviations of 1e6 beside 1 and beside 1.5.
    for small, is_in in ((1, False), (1.5, True)):
        features = signs * np.array([1e6, small], np.float32)
        probe = fit_best_sgd(features, (signs[:, 1] > 0).astype(int), features, np.tile([1, 0], 4), num_epochs=2)
        assert (probe.weights[:, 1] != 0).tolist() == [is_in, is_in]
        assert np.isfinite(probe.weights).all()


def test_a_dimension_that_is_constant_has_no_weight():
    features, labels = clouds(40, 4, 2)
    features[:, 2] = 0.3
    assert fit_best_sgd(features, labels, num_epochs=1).weights[:, 2].tolist() == [0, 0]


def test_progress_is_in_steps(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_EVERY_SEC", 0.0)
    features, labels = clouds(50, 4, 2)
    fit_best_sgd(features, labels, features, labels, num_epochs=2, batch_size=16, train_on_validation=False)
    lines = capsys.readouterr().err.splitlines()
    # 50 rows are 4 batches.
    assert "descend:   0%" in lines[0] and " 0/8 " in lines[0]
    assert "descend: 100%" in lines[-1] and " 8/8 " in lines[-1] and "step/s" in lines[-1]


def test_threads_are_those_asked_for(monkeypatch):
    asked = []

    class Pool(linear.ThreadPoolExecutor):
        def __init__(self, num_threads):
            asked.append(num_threads)
            super().__init__(num_threads)

    monkeypatch.setattr(linear, "ThreadPoolExecutor", Pool)
    fit_best_sgd(*clouds(20, 4, 2), num_epochs=1, num_threads=3)
    assert asked == [3]


@pytest.mark.parametrize("rates", [(), (0.0,), (0.1, 100.1), (float("nan"),)])
def test_learning_rates_out_of_range_are_an_error(rates):
    shown = str(rates).replace("(", r"\(").replace(")", r"\)")
    message = f"^the learning rates are {shown}; give one or more, all above 0 and at most 100$"
    with pytest.raises(UserError, match=message):
        fit_best_sgd(*clouds(20, 4, 2), learning_rates=rates)


def test_the_largest_learning_rate_and_the_smallest_schedule_are_allowed():
    probe = fit_best_sgd(*clouds(20, 4, 2), learning_rates=(100.0,), num_epochs=1, batch_size=1)
    assert probe.chosen == 100


@pytest.mark.parametrize(("num_epochs", "batch_size"), [(0, 5), (5, 0)])
def test_a_schedule_without_a_step_is_an_error(num_epochs, batch_size):
    message = f"^{num_epochs} epochs and {batch_size} rows a batch; at least 1 of each is needed$"
    with pytest.raises(UserError, match=message):
        fit_best_sgd(*clouds(20, 4, 2), num_epochs=num_epochs, batch_size=batch_size)
