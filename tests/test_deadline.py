"""Limits that work looks at by itself: who set one gets its answer, the outermost that has passed ends all."""

from __future__ import annotations

import threading
import time

import pytest

from planner.search.deadline import in_time, left_s, look


def busy(seconds: float) -> None:
    """Work that looks at the clock now and then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))
        look()


def test_work_that_ends_in_time_is_left_alone():
    done: list[int] = []

    assert in_time(time.monotonic() + 5, lambda: done.append(1))
    assert done == [1]
    look()


@pytest.mark.parametrize("limit_s", [0.1, -1.0])
def test_work_that_looks_is_ended(limit_s: float):
    began = time.monotonic()

    assert not in_time(began + limit_s, lambda: busy(20))
    assert time.monotonic() - began < 1
    look()


def test_an_inner_limit_ends_the_inner_work_only():
    after: list[int] = []

    def outer() -> None:
        assert not in_time(time.monotonic() + 0.05, lambda: busy(20))
        after.append(1)

    assert in_time(time.monotonic() + 20, outer)
    assert after == [1]


@pytest.mark.parametrize("inner_s", [20.0, 0.05])
def test_an_outer_limit_ends_what_is_inside_whatever_its_own(inner_s: float):
    began, after = time.monotonic(), []

    def outer() -> None:
        in_time(began + inner_s, lambda: busy(20))
        busy(20)
        after.append(1)

    assert not in_time(began + 0.1, outer)
    assert time.monotonic() - began < 1
    assert after == []


def test_errors_pass_through_and_leave_no_limit_behind():
    def wrong() -> None:
        raise KeyError("wrong")

    with pytest.raises(KeyError):
        in_time(time.monotonic() - 1, wrong)
    look()


def test_threads_have_limits_of_their_own():
    answers: list[bool] = []
    other = threading.Thread(target=lambda: answers.append(in_time(time.monotonic() + 0.1, lambda: busy(20))))
    other.start()
    busy(0.2)
    other.join(5)

    assert answers == [False]


def test_what_is_left_is_never_below_zero():
    assert left_s(time.monotonic() - 5) == 0
    assert 4 < left_s(time.monotonic() + 5) <= 5
