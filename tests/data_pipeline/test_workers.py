"""Worker processes; their tasks stand at module level so that they can be pickled."""

import os
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from data_pipeline.errors import DatasetError
from data_pipeline.workers import Workers, chunked


def slow_square(number: int) -> int:
    time.sleep(0.002 * (number % 3 == 0))
    return number * number


def fail_at_seven(number: int) -> int:
    if number == 7:
        raise DatasetError("seven")
    return number


def die_at_seven(number: int) -> int:
    if number == 7:
        os._exit(1)
    return number


def test_results_come_in_input_order_and_few_inputs_are_in_flight():
    taken: list[int] = []

    def inputs():
        for number in range(40):
            taken.append(number)
            yield number

    with Workers(slow_square, 2) as pool:
        for done, (number, square) in enumerate(pool.map(inputs())):
            assert (number, square) == (done, done * done)
            assert len(taken) <= done + 6
    assert done == 39


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_is_raised_here(workers):
    with pytest.raises(DatasetError, match="seven"), Workers(fail_at_seven, workers) as pool:
        list(pool.map(range(20)))


def test_a_worker_that_dies_stops_the_work():
    with pytest.raises(BrokenProcessPool), Workers(die_at_seven, 2) as pool:
        list(pool.map(range(20)))


def test_there_is_at_least_one_worker():
    with pytest.raises(ValueError, match="workers >= 1, found 0"):
        Workers(slow_square, 0)


def test_chunks_are_bounded_by_size_and_number_and_lose_nothing():
    found = list(chunked([3, 3, 3, 9, 1, 1, 1, 1, 50, 2], lambda size: size, limit=7, most=3))
    assert found == [[3, 3], [3], [9], [1, 1, 1], [1], [50], [2]]
    assert list(chunked([], len, limit=7, most=3)) == []
