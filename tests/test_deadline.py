"""The alarm behind the clock: it ends what does not look, leaves the rest alone, and nothing of it stays behind."""

from __future__ import annotations

import threading
import time

import pytest

from planner.search.deadline import OutOfTime, held, in_time, left_s


def busy(seconds: float) -> None:
    """Work that never looks at a clock that matters."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(1000))


def quiet_after(seconds: float = 0.25) -> None:
    """Fails when an alarm still goes off."""
    busy(seconds)


def test_work_that_ends_in_time_is_left_alone():
    done: list[int] = []

    assert in_time(time.monotonic() + 5, lambda: done.append(1))
    assert done == [1]
    quiet_after(0.05)


def test_work_that_does_not_look_is_ended():
    began = time.monotonic()

    assert not in_time(began + 0.1, lambda: busy(20))
    assert time.monotonic() - began < 1
    quiet_after()


def test_work_that_swallows_one_exception_is_ended_by_the_next():
    def deaf() -> None:
        try:
            busy(20)
        except OutOfTime:
            busy(20)

    began = time.monotonic()
    assert not in_time(began + 0.1, deaf)
    assert time.monotonic() - began < 1
    quiet_after()


def test_a_moment_in_the_past_ends_work_at_once():
    began = time.monotonic()

    assert not in_time(began - 1, lambda: busy(20))
    assert time.monotonic() - began < 1


def test_the_inner_of_two_ends_alone():
    def outer() -> None:
        assert not in_time(time.monotonic() + 0.1, lambda: busy(20))
        busy(0.1)

    assert in_time(time.monotonic() + 20, outer)


@pytest.mark.parametrize("inner_s", [0.1, 0.11, 5.0])
def test_the_outer_of_two_ends_both(inner_s: float):
    began, after = time.monotonic(), []

    def outer() -> None:
        in_time(began + inner_s, lambda: busy(20))
        busy(20)
        after.append(1)

    assert not in_time(began + 0.1, outer)
    assert time.monotonic() - began < 1
    assert after == []
    quiet_after()


def test_what_is_held_is_not_torn():
    done: list[int] = []

    def work() -> None:
        with held():
            busy(0.3)
            done.append(1)
        busy(20)

    assert not in_time(time.monotonic() + 0.05, work)
    assert done == [1]


def test_errors_pass_through_and_switch_it_off():
    def wrong() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_time(time.monotonic() + 0.1, wrong)
    quiet_after()


def test_another_thread_is_not_meant():
    answers: list[bool] = []
    other = threading.Thread(target=lambda: answers.append(in_time(time.monotonic() + 0.1, lambda: busy(20))))
    other.start()
    busy(0.4)
    other.join()

    assert answers == [False]


def test_left_is_never_below_nothing():
    assert left_s(time.monotonic() - 5) == 0
    assert 4 < left_s(time.monotonic() + 5) <= 5
