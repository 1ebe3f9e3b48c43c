"""A solver that does not listen is waited for no longer than it is told to stop; its answer is not asked for."""

from __future__ import annotations

import _thread
import threading
import time

import pytest
from ortools.sat.python import cp_model

from planner.search.watched import GRACE_S, Watched


class Deaf:
    """A solver whose presolve lasts as long as it likes, whatever it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.end, self.error, self.asked = threading.Event(), error, 0

    def solve(self, model: object) -> int:
        if self.error:
            raise self.error
        self.end.wait(20)
        return cp_model.OPTIMAL

    def stop_search(self) -> None:
        self.asked += 1


def test_a_deaf_solver_is_left_to_itself():
    solver, began = Deaf(), time.monotonic()
    watched = Watched(solver, cp_model.CpModel())
    watched.run(began + 0.2)

    assert time.monotonic() - began < 0.2 + GRACE_S + 0.5
    assert not watched.answered
    assert solver.asked > 0
    solver.end.set()


def test_ctrl_c_does_not_wait_for_it_either():
    solver, began = Deaf(), time.monotonic()
    timer = threading.Timer(0.1, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        Watched(solver, cp_model.CpModel()).run(began + 20)
    assert time.monotonic() - began < GRACE_S + 0.6
    assert solver.asked > 0
    solver.end.set()


def test_its_errors_are_the_callers():
    with pytest.raises(MemoryError):
        Watched(Deaf(MemoryError()), cp_model.CpModel()).run(time.monotonic() + 5)


def test_a_real_solver_answers():
    model = cp_model.CpModel()
    x = model.new_int_var(3, 9, "x")
    model.minimize(x)
    watched = Watched(cp_model.CpSolver(), model)
    watched.run(time.monotonic() + 20)

    assert watched.answered
    assert watched.status == cp_model.OPTIMAL
    assert watched.solver.value(x) == 3
