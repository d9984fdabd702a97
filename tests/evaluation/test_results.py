import json

import numpy as np
import pytest

from evaluation import compare
from evaluation.protocol import Result
from evaluation.report.results_page import metric_rows
from evaluation.results import without_small_groups
from pipeline.schema import UserError
from tests.evaluation.test_compare import record


def result_of(**num_items: int) -> Result:
    """Returns a result with an accuracy of 0.5 for each group, and for all queries."""
    items = {f"{name}.accuracy": np.full(count, 0.5) for name, count in num_items.items()} | {
        "accuracy": np.full(3, 0.5)
    }
    return Result(metrics=dict.fromkeys(items, 0.5), counts={}, items=items, groups=list(num_items))


def test_a_group_of_five_queries_shows_a_number_and_one_of_four_does_not():
    shown, too_few = without_small_groups(result_of(four=4, five=5))
    assert set(shown.metrics) == set(shown.items) == {"five.accuracy", "accuracy"}
    assert too_few == {"four.accuracy": 4}


def test_a_metric_with_a_dot_is_of_no_group_unless_its_benchmark_says_so():
    shown, too_few = without_small_groups(Result(metrics={"10.map": 1.0}, counts={}, items={"10.map": np.ones(4)}))
    assert set(shown.metrics) == {"10.map"} and not too_few
    _, too_few = without_small_groups(result_of(four=4), is_group=True)
    assert too_few == {"four.accuracy": 4, "accuracy": 3}


def test_a_mean_with_a_small_member_is_left_out_with_it():
    result = result_of(three=3, four=4, five=5, six=6)
    means = {
        "mean_of_small": ["three.accuracy", "four.accuracy", "five.accuracy"],
        "mean_of_large": ["five.accuracy", "six.accuracy"],
    }
    metrics = {**result.metrics, **dict.fromkeys(means, 0.5)}
    shown, too_few = without_small_groups(
        Result(metrics=metrics, counts={}, items=result.items, means=means, groups=result.groups)
    )
    assert set(shown.metrics) == {"five.accuracy", "six.accuracy", "accuracy", "mean_of_large"}
    assert set(shown.means) == {"mean_of_large"}
    # The smallest member counts.
    assert too_few == {"three.accuracy": 3, "four.accuracy": 4, "mean_of_small": 3}


def test_two_names_of_one_number_share_a_row_unless_one_of_them_is_not_shown():
    both = {"metrics": {"map": 0.5, "mrr": 0.5, "recall": 0.25}, "same_as": {"mrr": "map"}}
    assert [(name, value) for name, value, *_ in metric_rows(both)] == [("map = mrr", 0.5), ("recall", 0.25)]
    alone = {"metrics": {"mrr": 0.5}, "same_as": {"mrr": "map"}}
    assert [(name, value) for name, value, *_ in metric_rows(alone)] == [("mrr", 0.5)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": None}, "a.json lacks the field format_version; measure again"),
        ({"protocol": None}, "a.json lacks the field protocol; measure again"),
        ({"protocol": {"version": 1}}, "a.json lacks the field protocol.settings; measure again"),
        ({"data": {"test": {}}}, "a.json lacks the field data.test.ids; measure again"),
        ({"model": {}}, "a.json lacks the field model.hash; measure again"),
        ({"benchmark": ["x"]}, 'a.json: the field benchmark is ["x"], it must be a text; measure again'),
        ({"metrics": [1]}, "a.json: the field metrics is [1], it must be an object; measure again"),
        ({"metrics": {"map": "high"}}, 'a.json: the field metrics.map is "high", it must be a number; measure again'),
    ],
)
def test_json_of_something_else_is_an_error_that_names_the_file_and_the_field(tmp_path, change, words):
    # None: the field is left out.
    whole = {name: value for name, value in {**record(), **change}.items() if value is not None}
    (tmp_path / "a.json").write_text(json.dumps(whole))
    with pytest.raises(UserError) as error:
        compare.compare([tmp_path, tmp_path])
    assert str(error.value) == f"{tmp_path}/{words}"
