import re

import numpy as np
import pytest

from evaluation.metrics import intervals
from evaluation.metrics.intervals import bootstrap_interval, paired_bootstrap


def test_an_interval_is_that_of_the_means_of_resamples():
    values = np.random.default_rng(1).random(50)
    draws = np.random.default_rng(3).integers(0, 50, (500, 50))
    means = [np.mean([values[n] for n in draw]) for draw in draws]
    found = bootstrap_interval([values], seed=3, num_resamples=500)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)
    assert bootstrap_interval([np.ones(7)]) == (1.0, 1.0)
    assert bootstrap_interval([values]) == bootstrap_interval([values], seed=0, num_resamples=2000)


def test_an_interval_of_several_metrics_is_that_of_the_mean_of_their_means():
    rng = np.random.default_rng(1)
    long, short, other = rng.random(50), rng.random(9), rng.random(50)
    rng = np.random.default_rng(3)
    draws, short_draws = rng.integers(0, 50, (500, 50)), rng.integers(0, 9, (500, 9))
    means = (long[draws].mean(axis=1) + other[draws].mean(axis=1) + short[short_draws].mean(axis=1)) / 3
    found = bootstrap_interval([long, short, other], seed=3, num_resamples=500)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)


def test_what_is_drawn_does_not_depend_on_how_much_fits_into_memory(monkeypatch):
    values = [np.random.default_rng(1).random(50), np.random.default_rng(2).random(7)]
    whole = bootstrap_interval(values, num_resamples=101)
    for values_at_a_time in (150, 3):  # three draws of 50 at a time, and two in the end; one at a time
        monkeypatch.setattr(intervals, "_VALUES_AT_A_TIME", values_at_a_time)
        assert bootstrap_interval(values, num_resamples=101) == whole


def test_values_without_items_are_an_error():
    for wrong, shape in ((np.zeros(0), r"\(0,\)"), (np.zeros((2, 2)), r"\(2, 2\)")):
        with pytest.raises(ValueError, match=rf"^values have shape {shape}; \[n > 0\] is needed$"):
            bootstrap_interval([np.ones(3), wrong])
    with pytest.raises(ValueError, match="^there are 0 arrays of values, at least 1 is needed$"):
        bootstrap_interval([])


def test_a_bootstrap_is_that_of_the_differences_item_by_item():
    rng = np.random.default_rng(1)
    first, other = rng.random(50), rng.random(50)
    low, high = paired_bootstrap([first], [other], seed=3, num_resamples=500)
    draws = np.random.default_rng(3).integers(0, 50, (500, 50))
    means = [np.mean([other[n] - first[n] for n in draw]) for draw in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)
    same = paired_bootstrap([first], [first])
    assert same == (0.0, 0.0)
    assert paired_bootstrap([first], [other]) == paired_bootstrap([first], [other], seed=0, num_resamples=2000)
    assert low != 0 and paired_bootstrap([first], [other], seed=4, num_resamples=500) != (low, high)


def test_differences_are_taken_in_double_precision():
    # As float32, 1 - 1e8 is -1e8.
    found = paired_bootstrap([np.full(3, 1e8, np.float32)], [np.ones(3, np.float32)])
    assert found == (-99_999_999, -99_999_999)


def test_values_that_cannot_be_compared_item_by_item_are_an_error():
    wrong = [(np.ones(3), np.ones(2)), (np.ones((2, 2)), np.ones((2, 2))), (np.ones(0), np.ones(0))]
    for first, other in wrong:
        shapes = re.escape(f"{first.shape} and {other.shape}")
        with pytest.raises(ValueError, match=rf"^values have shapes {shapes}; both must be \[n > 0\]$"):
            paired_bootstrap([first], [other])
    with pytest.raises(ValueError, match="shorter"):
        paired_bootstrap([np.ones(3), np.ones(3)], [np.ones(3)])


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
