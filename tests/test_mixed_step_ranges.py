"""Bounds of energy by ranges of a step's length against every pipeline: none spends less, and little is left out."""

import math
import time
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_oracle import MixedInstance, best_step
from strategies import examples
from test_mixed_bands import instance
from test_mixed_energy import FREE, idle_w, least, search_of, watts_of_two
from test_mixed_search import mixed_instances

from planner.search.budget import Budget
from planner.search.mixed import step_ranges
from planner.search.mixed.rent import RentSearch
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.step_ranges import StepRanges
from planner.search.mixed.tables import Tables

pytestmark = pytest.mark.usefixtures("steady")


def ranges_of(it: MixedInstance, watts: np.ndarray, limit: float, ticks: float = math.inf) -> StepRanges:
    """All ranges below a limit, narrowed to the end."""
    space, search = MixedSpace(it.machine, dict(it.pins), it.limits, FREE), search_of(it, watts)
    found = StepRanges(space, Tables(space, keeps=True), watts, limit, ticks)
    for batch in space.batches():
        found.add(batch, search._spent(batch), Budget())
    found.narrow(Budget(time.monotonic() + 20))
    return found


def spending_between(it: MixedInstance, watts: np.ndarray, first: float, last: float) -> float:
    """By enumeration, the least energy of pipelines whose steps are that long."""
    tick = it.machine.ticks.second

    def value(step, hosts, joules):
        return np.where((first <= step) & (step <= last), step * (watts @ hosts) + joules / tick, math.inf)

    return best_step(it, value, joules=True)[0]


@given(mixed_instances(), watts_of_two, st.floats(1.0, 4.0), st.floats(0.7, 2.0), st.sampled_from([1.2, 2.0, 9.0]))
@examples(10)
def test_no_pipeline_spends_less_than_the_ranges_of_its_length_say(it, factors, above, share, wide):
    """Of all, of those of some lengths, and of those that must be quicker; at limits near and far."""
    watts = idle_w(it, factors)
    truth = least(it, watts, "energy")
    assume(math.isfinite(truth))
    with patch.multiple(step_ranges, WIDE=wide, CLOSER=min(1.5, wide)):
        found = ranges_of(it, watts, above * truth * (1 + 1e-9))
        first = share * min((one.first for one in found.open), default=1.0)
        quicker = ranges_of(it, watts, above * truth * (1 + 1e-9), ticks=2 * first)
    assert found.bound <= truth * (1 + 1e-11)
    spent = spending_between(it, watts, first, 2 * first)
    inside = min(found.least(batch, first, 2 * first) for batch in found.space.batches())
    assert inside <= spent * (1 + 1e-11) or spent >= found.limit
    spent = spending_between(it, watts, 0.0, np.nextafter(2 * first, 0.0))
    assert quicker.bound <= spent * (1 + 1e-11) or spent >= quicker.limit


@pytest.mark.slow
@pytest.mark.parametrize("room", [0.3])
def test_little_of_what_the_thriftiest_pipeline_spends_is_left_out(room):
    """Its idle joules and those of its stages, at numbers of hosts that nothing told apart."""
    it = instance(room)
    for factors in ((1.0, 1.0), (0.01, 0.01), (30.0, 1.0)):
        watts = idle_w(it, factors)
        truth = least(it, watts, "energy")
        assert SHARE * truth < ranges_of(it, watts, 2 * truth).bound <= truth


SHARE = 0.8


def test_ranges_spare_numbers_of_hosts_their_search():
    it = instance(0.7)
    watts = idle_w(it, (1.0, 1.0))
    search = search_of(it, watts)
    found = search.run()
    with patch.object(RentSearch, "_take_ranges", lambda self: None):
        without = search_of(it, watts).run()

    assert found.proved
    assert found.value == without.value
    assert found.counts["host_counts"] <= without.counts["host_counts"]
    assert SHARE * found.value < search.ranges.bound <= found.value


@pytest.mark.parametrize("factors", [(0.0, 1e4), (1e4, 0.0)])
def test_steps_on_hosts_that_draw_nothing_idle_may_last(factors):
    """Pipelines on such a part alone spend no more however long they take."""
    it = instance(0.7, layers=2, sequences=2)
    watts = idle_w(it, factors)
    truth = least(it, watts, "energy")
    assert ranges_of(it, watts, 2 * truth).bound <= truth


def test_idle_joules_are_most_of_what_is_left_where_hosts_draw_most():
    it = instance(0.7, layers=2, sequences=2)
    watts = idle_w(it, (300.0, 300.0))
    truth = least(it, watts, "energy")
    assert 0.5 * truth < ranges_of(it, watts, 2 * truth).bound <= truth
