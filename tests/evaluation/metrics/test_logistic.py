import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from evaluation import progress
from evaluation.metrics import linear
from evaluation.metrics.descent import fit_best_sgd
from evaluation.metrics.linear import Selected, best_setting, softmax, stratified_split, workers
from evaluation.metrics.logistic import _Problem, _Solution, _two_loops, check_grid, fit, fit_best, fit_probe, objective
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


def test_the_objective_is_added_up_in_double_precision_over_all_rows():
    features, labels = clouds(9000, 8, 3)  # three blocks
    rng = np.random.default_rng(1)
    weights, bias = rng.standard_normal((3, 8)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
    logits = features.astype(np.float64) @ weights.T.astype(np.float64) + bias
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(9000), labels]
    expected = losses.sum() + np.square(weights.astype(np.float64)).sum() / 2
    assert objective(features, labels, weights, bias) == pytest.approx(expected, rel=1e-12)
    # Logits of 1000 and 0, whose powers overflow.
    large = objective(np.array([[1000.0]]), np.array([1]), np.array([[1.0], [0]]), np.zeros(2))
    assert large == pytest.approx(1000 + 0.5)


def test_the_plain_fit_hands_its_settings_on():
    features, labels = clouds(60, 6, 3)
    usual = fit(features, labels)
    for settings in ({"c": 3.0}, {"tolerance": 1e-1}, {"max_iterations": 2}):
        weights, bias = fit(features, labels, **settings)
        probe = fit_probe(features, labels, **settings)
        assert weights.tobytes() == probe.weights.tobytes() != usual[0].tobytes()
        assert bias.tobytes() == probe.bias.tobytes()
    usual_probe = fit_probe(features, labels, c=1.0, num_classes=3, tolerance=1e-6, max_iterations=1000)
    assert usual[0].tobytes() == usual_probe.weights.tobytes()
    with pytest.raises(UserError, match="^label 2 is outside 0 to 1"):
        fit(features, labels, num_classes=2)


def test_a_fit_says_what_it_is_and_whether_it_came_to_an_end():
    features, labels = clouds(60, 6, 3)
    probe = fit_probe(features, labels, c=3.0)
    assert (probe.chosen, probe.validation_accuracies, probe.validation_losses, probe.converged) == (3.0, {}, {}, True)
    assert not fit_probe(features, labels, max_iterations=2).converged
    assert abs(float(probe.bias.sum())) < 1e-5  # a common shift is taken out


@pytest.mark.parametrize("choose", [fit, fit_probe, fit_best])
def test_threads_are_those_asked_for(choose, monkeypatch):
    asked = []

    class Pool(linear.ThreadPoolExecutor):
        def __init__(self, num_threads):
            asked.append(num_threads)
            super().__init__(num_threads)

    monkeypatch.setattr(linear, "ThreadPoolExecutor", Pool)
    choose(*clouds(20, 4, 2), num_threads=3)
    assert asked == [3]


def problem_of(features, labels, pool, num_classes=None):
    labels = np.array(labels)
    return _Problem(Selected([features], np.arange(len(labels))), labels, num_classes or int(labels.max()) + 1, pool)


SQUARE = np.array([[3, 1], [3, -1], [-3, 1], [-3, -1]], np.float32) + np.float32(5)  # variances 9 and 1, mean (5, 5)


def test_the_search_starts_at_the_frequencies_of_the_classes_or_at_a_given_probe():
    with workers(1) as pool:
        problem = problem_of(SQUARE, [0, 2, 2, 2], pool, num_classes=4)
        weights, bias = problem.weights_and_bias(problem.start())
        assert not weights.any() and weights.shape == (4, 2)
        # Log priors log(1/4) and log(3/4), less their mean; classes 1 and 3 have no row.
        half = np.log(3) / 2
        assert bias.tolist() == pytest.approx([-half, -np.inf, half, -np.inf])
        given = np.array([[1, 2], [9, 9], [-3, 4], [9, 9]], np.float32), np.array([1, 9, -1, 9], np.float32)
        weights, bias = problem.weights_and_bias(problem.start(given))
        np.testing.assert_allclose(weights, [[1, 2], [0, 0], [-3, 4], [0, 0]], atol=1e-5)
        assert bias.tolist() == pytest.approx([1, -np.inf, -1, -np.inf], abs=1e-5)
        # A class that the given probe did not know starts at its frequency.
        start = problem.start((given[0], np.array([1, 9, -np.inf, 9], np.float32)))
        weights, bias = problem.weights_and_bias(start)
        assert weights[2].tolist() == [0, 0] and start.converged is False
        assert start.params[-1].tolist() == pytest.approx([1 + 5 * 1 + 5 * 2, np.log(3 / 4)], abs=1e-5)


def test_the_first_step_is_scaled_by_the_curvature_where_all_probabilities_are_equal():
    with workers(1) as pool:
        problem = problem_of(SQUARE, [0, 1, 0, 1], pool)
        start = problem.start()
        value, gradient, spread = problem._evaluate(start.params, 0.5)
        assert value == pytest.approx(0.5 * 4 * np.log(2))
        # Each class's mean of p (1 - p) is 1/4. Class 0 has the two rows at +1 along the axis of variance 1, class 1
        # the two at -1: the gradient along it is c * sum of (p - hit) * row = 0.5 * (2 * -1/2 * 1 + 2 * 1/2 * -1).
        assert spread.tolist() == pytest.approx([0.25, 0.25])
        assert np.abs(gradient[0]).tolist() == pytest.approx([1, 1]) and gradient[0].sum() == pytest.approx(0)
        np.testing.assert_allclose(gradient[1:], 0, atol=1e-6)
        # 1 / (c * p (1 - p) * rows * variance + 1) for the weights, without the penalty's 1 for the bias.
        inverse = problem._inverse_curvature(spread, 0.5)
        expected = [1 / (0.5 * 0.25 * 4 * 1 + 1), 1 / (0.5 * 0.25 * 4 * 9 + 1), 1 / (0.5 * 0.25 * 4)]
        np.testing.assert_allclose(inverse, np.repeat(expected, 2).reshape(3, 2), rtol=1e-6)
        # A class that is certain counts as if it had a hundredth of the mean, and at least a millionth.
        inverse = problem._inverse_curvature(np.array([0.2, 0], np.float32), 0.5)
        assert inverse[2].tolist() == pytest.approx([1 / (0.5 * 0.2 * 4), 1 / (0.5 * 0.001 * 4)])
        inverse = problem._inverse_curvature(np.array([1e-8, 0], np.float32), 0.5)
        assert inverse[2].tolist() == pytest.approx([1 / (0.5 * 1e-6 * 4)] * 2)


def test_the_gradient_is_that_of_the_objective():
    features, labels = clouds(9000, 3, 4, seed=2)  # three blocks
    with workers(2) as pool:
        problem = problem_of(features, labels, pool)
        rng = np.random.default_rng(0)
        params = rng.standard_normal(problem.start().params.shape).astype(np.float32)

        def value_of(moved):
            weights, bias = problem.weights_and_bias(_Solution(params=moved, converged=True))
            return objective(features, labels, weights, bias, c=0.01)

        value, gradient, spread = problem._evaluate(params, 0.01)
        assert value == pytest.approx(value_of(params), rel=1e-5)
        for place in ((0, 1), (2, 3), (3, 0)):
            step = np.zeros_like(params)
            step[place] = 0.05
            slope = (value_of(params + step) - value_of(params - step)) / 0.1
            assert gradient[place] == pytest.approx(slope, rel=1e-2, abs=1e-2)
        weights, bias = problem.weights_and_bias(_Solution(params=params, converged=True))
        powers = np.exp(features @ weights.T + bias)
        shares = powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(spread, (shares * (1 - shares)).mean(axis=0), rtol=1e-4)


def test_losses_and_the_penalty_are_added_up_in_double_precision():
    features, labels = clouds(6000, 3, 3)
    with workers(1) as pool:
        problem = problem_of(features, labels, pool)
        # At the start every row has the same loss, log 3 in float32.
        _, losses = softmax(np.full((1, 3), problem.start().params[-1, 0]), np.array([0]))
        value, _, _ = problem._evaluate(problem.start().params, 1.0)
        assert value == pytest.approx(6000 * float(losses[0]), rel=1e-12)
        params = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
        value, _, _ = problem._evaluate(params, 0.0)
        assert value == pytest.approx(np.square(params[:-1].astype(np.float64)).sum() / 2, rel=1e-12)


class Scripted(_Problem):
    """One weight, whose objective and slope are those of `function`; it notes where they are asked for.

    The spread is the number of the evaluation, and the inverse curvature 1.
    """

    def __init__(self, function):
        self.function, self.points, self.spreads = function, [], []

    def _evaluate(self, params, c):
        self.points.append(float(params[0, 0]))
        value, slope = self.function(self.points[-1], len(self.points) - 1)
        return value, np.array([[slope]], np.float32), np.array([len(self.points) - 1])

    def _inverse_curvature(self, spread, c):
        self.spreads.append(int(spread[0]))
        return np.ones((1, 1), np.float32)

    def solved(self, start=1.0, max_iterations=20):
        params = np.full((1, 1), start, np.float32)
        solution = self.solve(
            1.0, _Solution(params=params, converged=False), tolerance=1e-6, max_iterations=max_iterations
        )
        return float(solution.params[0, 0]), solution.converged


def parabola(steepness, wall=np.inf, beyond=np.inf):
    return lambda x, _: (beyond if abs(x) > wall else steepness / 2 * x * x, steepness * x)


@pytest.mark.parametrize(
    ("function", "points"),
    [
        # The first step is the slope times the inverse curvature, 1 * 1.
        (parabola(1), [1, 0]),
        # 1 - 4 = -3 is worse: 18 for 2. The parabola through both values has its minimum at a quarter of the way:
        # 16 / (2 * (18 - 2 + 16)).
        (parabola(4), [1, -3, 0]),
        # At 1 - 100 it is at a hundredth, at least a tenth is gone: 1 - 10. There it is at a tenth: 1 - 1.
        (parabola(100), [1, -99, -9, 0]),
        # 1 - 1.9999 is better, but by less than a ten-thousandth of what the slope promises. At most half is gone.
        (parabola(1.9999), [1, -0.9999, 0.00005, 0]),
        # What is not finite is too far: a tenth, to 1 - 0.4. From there BFGS knows the curvature.
        (parabola(4, wall=2), [1, -3, 0.6, 0]),
        (parabola(4, wall=2, beyond=np.nan), [1, -3, 0.6, 0]),
    ],
)
def test_a_step_that_is_too_long_is_cut_to_where_a_parabola_has_its_minimum(function, points):
    problem = Scripted(function)
    end, is_converged = problem.solved()
    more = len(problem.points) - len(points)  # where rounding leaves something to do
    assert problem.points == pytest.approx([*points, *[0] * more], abs=2e-6) and more < 3
    assert end == pytest.approx(0, abs=2e-6) and is_converged


def test_a_search_that_finds_nothing_lower_ends_where_it_was():
    problem = Scripted(lambda x, number: (2.0 if number else 1.0, 1.0))
    assert problem.solved() == (1.0, True)
    # Of each step s, s / (2 * (2 - 1 + s)) is left, and at least a tenth: 1/4, then 1/10 of it again and again, until
    # it is under 1e-4.
    steps = [1, 0.25, 0.025, 0.0025, 0.00025, 0.000025]
    assert problem.points == pytest.approx([1.0, *(1 - step for step in steps)], abs=1e-7)


def test_only_the_first_step_may_be_higher_by_the_rounding_of_float32():
    problem = Scripted(lambda x, number: (10 + 5e-7 * number, 1e-6))
    assert problem.solved(start=0.0)[1] and len(problem.points) == 2  # it promises 1e-12, which ends the search
    problem = Scripted(lambda x, number: (10 + 3e-6 * number, 1e-6))
    assert problem.solved(start=0.0) == (0.0, True) and len(problem.points) > 2
    # A second step is refused for as little.
    problem = Scripted(lambda x, number: [(1, 0.1), (0.9, 0.01), (0.9 + 5e-8, 0.01)][min(number, 2)])
    end, is_converged = problem.solved()
    assert end == problem.points[1] == pytest.approx(0.9) and is_converged and len(problem.points) > 3


def test_the_search_ends_when_a_step_promises_a_millionth_of_the_objective_but_for_the_first():
    for slope, num_points in ((0.9e-3, 2), (1.1e-3, 3)):  # it promises the square
        problem = Scripted(lambda x, number, slope=slope: (1 - 0.1 * (number > 1), slope if number < 2 else 0))
        assert problem.solved()[1] and len(problem.points) == num_points


def test_a_search_that_starts_at_the_minimum_stays_there():
    problem = Scripted(parabola(1))
    assert problem.solved(start=0.0) == (0.0, True) and problem.points == [0, 0]


def test_a_search_that_is_stopped_is_where_it_came_to():
    problem = Scripted(lambda x, number: (10.0 - number, 1.0))
    assert problem.solved(max_iterations=3) == (-2.0, False)
    assert problem.points == [1, 0, -1, -2]


def test_the_curvature_is_found_again_after_some_steps_and_of_the_steps_since_few_are_kept(monkeypatch):
    kept = []

    def two_loops(gradient, pairs, inverse):
        kept.append(len(pairs))
        return gradient

    monkeypatch.setattr("evaluation.metrics.logistic._two_loops", two_loops)
    monkeypatch.setattr("evaluation.metrics.logistic._REFRESH", 4)
    monkeypatch.setattr("evaluation.metrics.logistic._MEMORY", 2)
    problem = Scripted(lambda x, number: (100.0 - number, 1 / (1 + number)))
    problem.solved(max_iterations=9)
    assert problem.spreads == [0, 4, 8]
    assert kept == [0, 1, 2, 2, 0, 1, 2, 2, 0]
    # Where the slope does not change, or falls while the step goes down, there is no curvature to keep.
    for slope in (lambda number: 1.0, lambda number: 1.0 + number):
        kept.clear()
        Scripted(lambda x, number, slope=slope: (100.0 - 20 * number, slope(number))).solved(max_iterations=3)
        assert kept == [0, 0, 0]


@pytest.mark.parametrize(("value", "slope"), [(np.inf, 1.0), (np.nan, 1.0), (1.0, np.inf), (1.0, np.nan)])
def test_what_overflows_is_an_error(value, slope):
    message = r"^float32 overflows at c = 1; give a smaller one, or L2-normalise the features$"
    with pytest.raises(UserError, match=message):
        Scripted(lambda x, number: (value, slope)).solved()


def test_an_axis_with_a_millionth_of_the_largest_deviation_is_left_out():
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float32)
    labels = (signs[:, 2] > 0).astype(int)
    for small, is_in in ((1, False), (1.5, True)):
        weights, _ = fit(signs * np.array([1e6, 1e3, small], np.float32), labels)
        assert (np.abs(weights[:, 2]) > 0.1).tolist() == [is_in, is_in]


def test_the_step_is_the_gradient_times_the_inverse_hessian_of_bfgs():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    hessian = root @ root.T + np.eye(4)
    diagonal = 1 / np.diag(hessian)
    pairs, changes = [], rng.standard_normal((2, 4)).astype(np.float32)
    for change in changes:
        gradient_change = (hessian @ change).astype(np.float32)
        pairs.append((change, gradient_change, float(change @ gradient_change)))
    _, last, curvature = pairs[-1]
    inverse = np.diag(diagonal) * curvature / (last @ (diagonal * last))
    for change, gradient_change, curvature in pairs:  # the update of BFGS, literally
        left = np.eye(4) - np.outer(change, gradient_change) / curvature
        inverse = left @ inverse @ left.T + np.outer(change, change) / curvature
    gradient = rng.standard_normal(4).astype(np.float32)
    step = _two_loops(gradient, pairs, diagonal.astype(np.float32))
    np.testing.assert_allclose(step, inverse @ gradient, rtol=1e-4)
    np.testing.assert_allclose(_two_loops(gradient, [], diagonal.astype(np.float32)), diagonal * gradient, rtol=1e-6)


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
    weights, bias = fit(features, labels, c=10.0)
    losses = []
    for row, label in zip(val_features, val_labels, strict=True):
        powers = np.exp(weights @ row + bias)
        if label != 3:
            losses.append(-np.log(powers[label] / powers.sum()))
    for num_threads in (1, 2):
        probe = fit_best(features, labels, val_features, val_labels, 4, log10_c=(1.0,), num_threads=num_threads)
        assert probe.validation_losses[10.0] == pytest.approx(np.mean(losses), rel=1e-2)


def test_progress_is_in_fits(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_EVERY_SEC", 0.0)
    features, labels = clouds(40, 4, 2)
    fit_best(features, labels, log10_c=(-2.0, 0.0, 2.0), num_refinements=2)
    lines = capsys.readouterr().err.splitlines()
    # Three of the grid, and two neighbours in each of two refinements.
    assert "choose c:   0%" in lines[0] and " 0/7 " in lines[0]
    assert "choose c: 100%" in lines[-1] and " 7/7 " in lines[-1] and "fit/s" in lines[-1]
    fit_best(features, labels, log10_c=(0.0,), num_refinements=2)
    assert " 1/1 " in capsys.readouterr().err.splitlines()[-1]  # nothing lies between


def test_without_validation_rows_the_share_of_the_seed_is_held_out():
    features, labels = clouds(60, 4, 3)
    kept, heldout = stratified_split(labels, 0.25, 4)
    fixed = {"log10_c": (0.0,), "train_on_validation": False}
    probe = fit_best(features, labels, heldout_share=0.25, seed=4, **fixed)
    same = fit_best(features[kept], labels[kept], features[heldout], labels[heldout], **fixed)
    assert probe.weights.tobytes() == same.weights.tobytes()
    assert probe.validation_losses == same.validation_losses
    usual = fit_best(features, labels, **fixed)
    assert usual.weights.tobytes() == fit_best(features, labels, heldout_share=0.1, seed=0, **fixed).weights.tobytes()


def test_each_c_starts_at_the_solution_of_its_neighbour_and_the_last_fit_at_the_best(monkeypatch):
    solved = []  # (log10(c), where it started, the solution)

    def solve(problem, c, start, *, tolerance, max_iterations, real=_Problem.solve):
        solution = real(problem, c, start, tolerance=tolerance, max_iterations=max_iterations)
        solved.append((round(float(np.log10(c)), 6), start, solution))
        return solution

    def validate(rows, labels, weights, bias, pool):
        return 1.0, abs(np.log10(np.square(weights).sum()) - middle)  # smallest near the c in the middle of the grid

    features, labels = clouds(60, 6, 3)
    weights = fit(features, labels, c=1.0)[0]
    middle = np.log10(np.square(weights).sum())
    monkeypatch.setattr(_Problem, "solve", solve)
    monkeypatch.setattr("evaluation.metrics.logistic.validate", validate)
    fit_best(features, labels, features, labels, log10_c=(-2.0, 0.0, 2.0), num_refinements=1, train_on_validation=False)
    exponents, starts, solutions = zip(*solved, strict=True)
    assert exponents == (-2, 0, 2, -1, 1, 0)
    assert (starts[0].params[:-1] == 0).all()
    # -1 lies between -2 and 0, and 1 between 0 and 2: of neighbours as near, the smaller.
    for number, of in ((1, 0), (2, 1), (3, 0), (4, 1)):
        assert starts[number] is solutions[of]
    np.testing.assert_allclose(starts[5].params[:-1], solutions[1].params[:-1], atol=1e-4)


def test_validation_rows_can_be_left_out_of_the_last_fit():
    features, labels = clouds(120, 6, 3, noise=3)
    sets = features[:80], labels[:80], features[80:], labels[80:], 3
    probe = fit_best(*sets, log10_c=(0.0,), train_on_validation=False)
    best = objective(*sets[:2], *fit(*sets[:2], c=1.0), c=1.0)
    assert objective(*sets[:2], probe.weights, probe.bias, c=1.0) == pytest.approx(best, rel=1e-5)


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
    probe = fit_best(features, labels, val_features, val_labels, 3, log10_c=(-1.0,), num_refinements=0)
    whole, whole_labels = np.concatenate([features, val_features]), np.concatenate([labels, val_labels])
    weights, bias = fit(whole, whole_labels, c=0.1)
    best = objective(whole, whole_labels, weights, bias, c=0.1)
    assert objective(whole, whole_labels, probe.weights, probe.bias, c=0.1) == pytest.approx(best, rel=1e-5)
    assert np.square(probe.weights).sum() == pytest.approx(np.square(weights).sum(), rel=0.01)
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
    remedy = "at least 1 is needed; number classes without gaps, or use fit_best, which leaves such classes out"
    for labels, which in (([0, 2, 2], r"\(1 of 3 classes has none\)"), ([0, 3, 3], r"\(2 of 4 classes have none\)")):
        with pytest.raises(UserError, match=f"^class 1 of the labels has 0 training pictures {which}, {remedy}$"):
            fit(np.eye(3, dtype=np.float32), np.array(labels))


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
        ({"val_features": np.zeros((0, 4), np.float32), "val_labels": np.zeros(0, int)}, "0 validation rows"),
    ],
)
def test_a_search_that_cannot_be_made_is_an_error(arguments, message):
    features, labels = clouds(30, 4, 3)
    with pytest.raises(UserError, match=message):
        fit_best(features, labels, **arguments)


@pytest.mark.parametrize(
    ("grid", "shown", "remedy"),
    [
        ((0.0, 40.0), r"\(0.0, 40.0\)", "stay within 30 of 0; -6 to 6 is usual"),
        ((float("nan"),), r"\(nan,\)", "stay within 30 of 0; -6 to 6 is usual"),
        ((), r"\(\)", "rise in even steps; give at least one"),
        ((1.0, 1.0), r"\(1.0, 1.0\)", "rise in even steps; give at least one"),
        ((1.0, 0.0), r"\(1.0, 0.0\)", "rise in even steps; give at least one"),
        ((0.0, 1.0, 2.001), r"\(0.0, 1.0, 2.001\)", "rise in even steps; give at least one"),
    ],
)
def test_a_grid_that_does_not_rise_evenly_within_its_limits_is_an_error(grid, shown, remedy):
    with pytest.raises(UserError, match=rf"^the grid of log10\(c\) is {shown}, it must {remedy}$"):
        check_grid(grid)


def test_a_grid_may_have_steps_below_one_that_are_even_but_for_rounding():
    check_grid(np.linspace(-30, 30, 181))
    check_grid((0.1, 0.2, 0.30000000000000004))


def test_classes_of_one_picture_each_leave_nothing_to_hold_out():
    with pytest.raises(UserError, match="none of 3 rows can be held out"):
        fit_best(np.eye(3, dtype=np.float32), np.arange(3))


def test_the_largest_and_the_smallest_c_give_finite_probes_and_what_overflows_is_an_error():
    features, labels = clouds(60, 8, 3, noise=0.3)
    probe = fit_best(features, labels, log10_c=(-30.0, 0.0, 30.0), num_refinements=0)
    assert np.isfinite([*probe.validation_losses.values()]).all()
    for c in (1e-30, 1e30):
        assert np.isfinite(fit(features, labels, c=c)[0]).all()
    for c in (0.0, 9e-31, 1e31, float("nan")):
        message = f"^c is {re.escape(str(c))}, it must be from 1e-30 to 1e30; 1 is a start$"
        with pytest.raises(UserError, match=message):
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
