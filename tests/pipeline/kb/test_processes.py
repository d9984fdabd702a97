"""Functions that are called in other processes."""

import math
import operator
import os

import pytest

from pipeline.kb.build.processes import Processes
from pipeline.schema import UserError


@pytest.mark.parametrize("num", [1, 2])
def test_results_come_in_the_order_of_the_calls(num):
    with Processes(num) as processes:
        assert list(processes.map(operator.sub, ((10 * n, n) for n in range(9)))) == [9 * n for n in range(9)]
        waits = [processes.submit(math.factorial, n) for n in (5, 3)]
        assert [wait() for wait in waits] == [120, 6]


@pytest.mark.parametrize(("num", "num_ahead"), [(1, 1), (2, 5)])
def test_few_calls_are_made_ahead_of_the_results(num, num_ahead):
    taken = []

    def calls():
        for n in range(100):
            taken.append(n)
            yield (n,)

    with Processes(num) as processes:
        results = processes.map(math.factorial, calls())
        assert next(results) == 1
        assert len(taken) == num_ahead


@pytest.mark.parametrize("num", [1, 2])
def test_an_error_of_a_function_is_raised_where_its_result_is_asked_for(num):
    with Processes(num) as processes, pytest.raises(ValueError, match="math domain error"):
        list(processes.map(math.sqrt, [(4.0,), (-1.0,)]))


def test_a_process_that_ends_by_itself_is_an_error_then_and_later():
    message = "a process of the build ended by itself; memory may be short; build again with fewer --processes"
    with Processes(2) as processes:
        with pytest.raises(UserError, match=message):
            list(processes.map(os._exit, [(1,)]))
        with pytest.raises(UserError, match=message):
            processes.submit(math.sqrt, 4.0)
