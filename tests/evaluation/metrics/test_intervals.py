import numpy as np
import pytest

from evaluation.metrics.intervals import bootstrap_interval, paired_bootstrap


def test_an_interval_is_that_of_the_means_of_resamples():
    values = np.random.default_rng(1).random(50)
    draws = np.random.default_rng(3).integers(0, 50, (500, 50))
    means = [np.mean([values[n] for n in draw]) for draw in draws]
    found = bootstrap_interval([values], seed=3, num_resamples=500)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)
    assert bootstrap_interval([np.ones(7)]) == (1.0, 1.0)
    for nothing in ([], [np.zeros(0)], [np.zeros((2, 2))]):
        with pytest.raises(ValueError, match="n > 0|at least 1 is needed"):
            bootstrap_interval(nothing)


def test_a_bootstrap_is_that_of_the_differences_item_by_item():
    rng = np.random.default_rng(1)
    first, other = rng.random(50), rng.random(50)
    low, high = paired_bootstrap([first], [other], seed=3, num_resamples=500)
    draws = np.random.default_rng(3).integers(0, 50, (500, 50))
    means = [np.mean([other[n] - first[n] for n in draw]) for draw in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)
    same = paired_bootstrap([first], [first])
    assert same == (0.0, 0.0)
    with pytest.raises(ValueError, match="both must be"):
        paired_bootstrap([first], [other[:10]])


def test_a_bootstrap_of_a_mean_draws_shared_pictures_alike():
    rng = np.random.default_rng(1)
    first, other = rng.random(50), rng.random(50)
    once = paired_bootstrap([first], [other])
    assert paired_bootstrap([first, first], [other, other]) == pytest.approx(once)  # of two tasks that agree
    opposite = paired_bootstrap([first, other], [other, first])
    assert opposite == pytest.approx((0, 0), abs=1e-12)
    # Of a task on other pictures, less is left.
    apart = paired_bootstrap([first, np.tile(first, 2)], [other, np.tile(other, 2)])
    assert apart[1] - apart[0] < 0.9 * (once[1] - once[0])
