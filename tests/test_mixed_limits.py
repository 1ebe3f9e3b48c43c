"""Searches over mixed pipelines that are ended early: by units of work always alike, and never with a wrong bound."""

import itertools
import math
import time
from unittest.mock import patch

import pytest
from test_mixed_bands import instance
from test_mixed_search import search_of

from planner import plan
from planner.search.budget import Budget
from planner.search.mixed.engine import MixedResult

pytestmark = pytest.mark.usefixtures("steady")


def ended(units: float) -> MixedResult:
    search = search_of(instance(50.0))
    search.budget = Budget(units=units)
    return search.run()


def test_units_of_work_end_a_search_at_the_same_place():
    """Whatever the clock says; and what is left open is below the best plan and below what was found."""
    best, clock, open_ones = ended(math.inf), itertools.count(0.0, 1e3), 0
    assert best.proved
    for units in (0.02, 0.1):
        one = ended(units)
        with patch.object(time, "monotonic", lambda: float(next(clock))):
            other = ended(units)

        assert (one.value, one.bound, one.counts) == (other.value, other.bound, other.counts)
        assert one.bound <= best.value <= one.value
        assert one.proved or one.stopped == "deterministic limit"
        open_ones += not one.proved and math.isfinite(one.value)
    assert open_ones


def test_a_search_that_the_clock_ends_anywhere_has_a_bound():
    best, open_ones = search_of(instance(50.0)).run().value, 0
    for most in (5, 200, 400, 500):
        left, monotonic = itertools.count(), time.monotonic
        with patch.object(time, "monotonic", lambda n=left, k=most, now=monotonic: now() + 1e6 * (next(n) > k)):
            found = search_of(instance(50.0)).run()

        assert found.bound <= best <= found.value
        open_ones += not found.proved and math.isfinite(found.value)
    assert open_ones


def test_a_plan_within_units_of_work():
    asked = {"global_batch": 16, "deterministic_limit": 0.3}
    found = [plan("tiny-llama", "dgx-a100:1+dgx-h100:1", **asked) for _ in range(2)]

    assert found[0].status == "feasible"
    assert any("deterministic limit" in note for note in found[0].notes)
    assert (found[0].step_s, found[0].bound, found[0].stages) == (found[1].step_s, found[1].bound, found[1].stages)


def test_bounds_that_are_told_on_the_way_hold():
    """Batches that nobody has opened yet count too."""
    told, search = [], search_of(instance(50.0))
    search.report = lambda stage, value, bound: told.append(bound)

    assert search.run().proved
    assert told and max(told) <= search.value


def test_an_interrupt_leaves_the_best_plan_with_a_bound():
    """Ctrl-C once there is a pipeline, before any part alone was looked at; without one it goes on up."""
    asked = ("tiny-llama", "dgx-a100:1+dgx-h100:1")

    def interrupted(stage: str, best: float, bound: float) -> None:
        if at_once or math.isfinite(best):
            raise KeyboardInterrupt

    at_once = False
    found = plan(*asked, global_batch=16, progress=interrupted)
    assert (found.status, found.bound) == ("feasible", 0.0)
    assert any("interrupt" in note for note in found.notes)
    at_once = True
    with pytest.raises(KeyboardInterrupt):
        plan(*asked, global_batch=16, progress=interrupted)
