"""Energy on mixed clusters: the search over hosts and joules against enumeration."""

import math
import time
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_oracle import MixedInstance, best_step
from strategies import examples
from test_mixed_search import mixed_instances

from cost_models.mixed import evaluate_mixed
from planner.mixed.asked import Asked
from planner.mixed.check import broken
from planner.search.budget import Budget
from planner.search.mixed import engine, packed, rent
from planner.search.mixed.pipelines import strategy_of
from planner.search.mixed.rent import RentSearch, Wanted
from planner.search.mixed.space import MixedSpace

FREE = Asked("energy")
watts_of_two = st.tuples(st.sampled_from([0.01, 0.3, 1.0, 30.0]), st.sampled_from([0.01, 0.3, 1.0, 30.0]))


def idle_w(it: MixedInstance, factors) -> np.ndarray:
    """Watts of an idle host of every part, so many times those of its devices."""
    parts = zip(it.machine.cluster.parts, factors, strict=True)
    return np.array([part.devices_per_host * part.accelerator.figures.idle_power.value * by for part, by in parts])


def search_of(it: MixedInstance, watts: np.ndarray, minimised: str = "energy", limit_s: float = 30.0, **most):
    """A search for what no part has a price for."""
    space = MixedSpace(it.machine, dict(it.pins), it.limits, FREE)
    wanted = Wanted(minimised, np.zeros(len(watts)), watts=watts, **most)
    return RentSearch(space, Budget(time.monotonic() + limit_s), wanted)


def least(it: MixedInstance, watts, minimised: str, ticks: float = math.inf, energy: float = math.inf) -> float:
    """By enumeration: ticks, or ticks times watts, of pipelines strictly below both limits."""
    tick = it.machine.ticks.second

    def value(step, hosts, joules):
        spent = step * (watts @ hosts) + joules / tick
        return np.where((step < ticks) & (spent < energy), step if minimised == "time" else spent, math.inf)

    return best_step(it, value, joules=True)[0]


@given(mixed_instances(), watts_of_two, st.floats(0.3, 1.5), st.sampled_from([1.0, rent.WIDEST, 1e9]), st.booleans())
@examples(10)
def test_the_thriftiest_pipeline_is_that_of_enumeration(it, factors, share, widest, narrow):
    """Also with a step that must be quicker than the thriftiest one's; wherever outlines are asked, and with beams so
    narrow that jobs are cut into bands and labels stand for others."""
    watts = idle_w(it, factors)
    free = search_of(it, watts).run()
    truth = least(it, watts, "energy")
    assert free.proved
    assert free.value == pytest.approx(truth, rel=1e-9)
    assert free.bound <= truth * (1 + 1e-11)
    assume(free.best is not None)
    strategy = strategy_of(free.table, free.best)
    priced = evaluate_mixed(it.machine, strategy)
    assert broken(it.machine, strategy, priced, it.limits) == []

    ticks = share * priced.step
    widths = {"FIRST_WIDTH": 1, "WIDER": 3} if narrow else {"WIDER": engine.WIDER}
    with patch.object(rent, "WIDEST", widest), patch.multiple(engine, **widths), patch.object(packed, "MOST_UNITS", 6):
        found = search_of(it, watts, ticks=ticks).run()
    truth = least(it, watts, "energy", ticks=ticks)
    assert found.proved
    assert found.bound <= truth * (1 + 1e-11)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert (found.best is None) == math.isinf(truth)


@given(mixed_instances(), watts_of_two, st.floats(0.8, 2.0))
@examples(10)
def test_the_quickest_pipeline_within_an_energy_is_that_of_enumeration(it, factors, share):
    watts = idle_w(it, factors)
    thriftiest = least(it, watts, "energy")
    assume(math.isfinite(thriftiest))
    most = share * thriftiest
    found, truth = search_of(it, watts, "time", energy=most).run(), least(it, watts, "time", energy=most)

    assert found.proved
    assert found.bound <= truth
    assert found.value == truth
