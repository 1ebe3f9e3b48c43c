"""Runs the search on an oracle's instance, and holds it and its re-derivation against the oracle."""

from __future__ import annotations

import itertools
import time

import pytest
from oracle import Instance, best_of_all

from planner.candidates import Space, legal_space
from planner.checks.rederive import Problem, rederive
from planner.errors import BadInput
from planner.objectives import with_checkpoints
from planner.options import Options
from planner.search.engine import Search, SearchResult


def options_of(it: Instance, time_limit_s: float = 60.0) -> Options:
    """The user's options of an instance."""
    options = Options(
        objective=it.objective, headroom=it.headroom, power_cap_w=it.power_cap_w, pins=dict(it.pins),
        time_limit_s=time_limit_s, clocks=len(it.clocks) > 1, limits=dict(it.limits),
    )  # fmt: skip
    return with_checkpoints(options, it.model, it.workload)


def space_of(it: Instance) -> Space | None:
    """The space of an instance; ``None`` where a pin is refused at once."""
    try:
        return legal_space(it.model, it.cluster, it.workload, dict(it.pins))
    except BadInput:
        return None


def search_of(it: Instance, time_limit_s: float = 60.0) -> Search | None:
    """A search that has not run; ``None`` where a pin is refused at once."""
    space = space_of(it)
    return None if space is None else Search(space, options_of(it, time_limit_s), it.fits, it.ticks)


def value_of(it: Instance) -> tuple[float, SearchResult | None]:
    """The best objective that the search finds, infinite when it finds none."""
    search = search_of(it)
    if search is None:
        return float("inf"), None
    result = search.run()
    return search.value, result


def close(a: float, b: float) -> bool:
    """Whether two objectives are equal but for floats added in another order."""
    return a == b or abs(a - b) <= 1e-9 * abs(b)


def search_agrees(it: Instance) -> None:
    """Fails unless the search finds the best of all plans, or none where there is none, and says it is proved."""
    everything, search = best_of_all(it), search_of(it)
    if search is None:
        assert everything.value == float("inf")
        return
    result = search.run()

    assert close(search.value, everything.value)
    assert result.proved
    assert close(result.bound, search.value)
    assert result.bound_root <= search.value


def rederiving_agrees(it: Instance, factor: float) -> None:
    """Fails unless all plans below ``factor`` times the optimum are excluded, or above 1 the optimum is found."""
    everything, space = best_of_all(it).value, space_of(it)
    if space is None or everything == float("inf"):
        return
    problem = Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)
    found = rederive(problem, everything * factor)

    assert found.complete
    assert close(found.bound, min(everything, found.target))
    assert bool(found.counter_example) == (factor > 1)


def run_by_looks(search):
    """The search's result where every look at the clock takes a second, so that its limit counts looks."""
    clock = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: float(next(clock)))
        return search.run()
