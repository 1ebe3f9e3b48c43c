"""Limits on mean watts of mixed pipelines: the search and what is derived again, against enumeration."""

import dataclasses
import math
import time
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_cases import problem_of
from mixed_oracle import MixedInstance, best_step
from mixed_power_oracle import idle
from strategies import examples
from test_mixed_search import mixed_instances, search_of

from cost_models.mixed import evaluate_mixed
from cost_models.mixed_power import idle_host_w
from cost_models.mixed_power_levels import mixed_level_watts
from cost_models.power_levels import PowerLimits
from planner.checks.rederive_energy import rederive_energy
from planner.mixed.asked import Asked
from planner.mixed.check import broken
from planner.mixed.plan import held_of, pipelines_below
from planner.search.budget import Budget
from planner.search.mixed import engine, packed
from planner.search.mixed.pipelines import strategy_of
from planner.search.mixed.space import MixedSpace

pytestmark = pytest.mark.usefixtures("steady")

LEVELS = ("device", "host", "rack", "site")
shares = st.fixed_dictionaries({level: st.sampled_from([None, None, 0.1, 0.4, 0.8]) for level in LEVELS})


def in_racks(it: MixedInstance, hosts: int) -> MixedInstance:
    """The instance with so many hosts in each rack."""
    parts = tuple(dataclasses.replace(part, hosts_per_rack=hosts) for part in it.machine.cluster.parts)
    cluster = dataclasses.replace(it.machine.cluster, parts=parts)
    return dataclasses.replace(it, machine=dataclasses.replace(it.machine, cluster=cluster))


def limits_of(it: MixedInstance, share: dict[str, float | None]) -> dict[str, float]:
    """Most watts by level: of what the quickest pipeline draws above the least that idling takes, so much."""
    found = search_of(it).run()
    assume(found.best is not None)
    strategy = strategy_of(found.table, found.best)
    step_s, hosts = found.value * it.machine.ticks.second, tuple(part.hosts for part in it.machine.cluster.parts)
    drawn = mixed_level_watts(it.machine, strategy, held_of(it.machine, strategy), hosts, step_s)
    least = {level: min(idle(part)[level] for part in it.machine.cluster.parts) for level in LEVELS}
    return {n: least[n] + part * (drawn[n] - least[n]) for n, part in share.items() if part is not None}


def asked_for(it: MixedInstance, power: dict[str, float], minimised: str, **most) -> Asked:
    watts = tuple(idle_host_w(part) for part in it.machine.cluster.parts)
    limits = PowerLimits(**{f"{level}_w": most_w for level, most_w in power.items()})
    return Asked(minimised, None, **most, idle_w=watts, power=limits)


def searched(it: MixedInstance, power: dict[str, float], minimised: str = "time", **most):
    space = MixedSpace(it.machine, dict(it.pins), it.limits, asked_for(it, power, minimised, **most))
    return pipelines_below(space, Budget(time.monotonic() + 60), math.inf, lambda *_: None)


def least(it: MixedInstance, power: dict[str, float], minimised: str = "time", most_s=math.inf, most_j=math.inf):
    """By enumeration: ticks of steps that wait, or these times watts with joules of stages."""
    tick, watts = it.machine.ticks.second, np.array([idle_host_w(part) for part in it.machine.cluster.parts])

    def value(step, hosts, joules):
        with np.errstate(invalid="ignore"):
            spent = step * (watts @ hosts) + joules / tick
        fits = (step * tick < most_s) & (spent * tick < most_j) & np.isfinite(step)
        return np.where(fits, step if minimised == "time" else spent, math.inf)

    return best_step(it, value, joules=True, power=power)[0]


@given(mixed_instances(), st.sampled_from([1, 2]), shares, st.booleans())
@examples(15)
def test_the_quickest_pipeline_within_watts_is_that_of_enumeration(it, hosts, share, narrow):
    it = in_racks(it, hosts)
    power = limits_of(it, share)
    assume(power)
    truth = least(it, power)
    widths = {"FIRST_WIDTH": 1, "WIDER": 3} if narrow else {"WIDER": engine.WIDER}
    with patch.multiple(engine, **widths), patch.object(packed, "MOST_UNITS", 6):
        found = searched(it, power)

    assert found.bound <= truth
    assert found.value == truth
    assert found.proved
    if found.best is not None:
        strategy = strategy_of(found.table, found.best)
        assert broken(it.machine, strategy, evaluate_mixed(it.machine, strategy), it.limits) == []


@given(mixed_instances(), st.sampled_from([1, 2]), shares)
@examples(10)
def test_the_thriftiest_pipeline_within_watts_is_that_of_enumeration(it, hosts, share):
    it = in_racks(it, hosts)
    power = limits_of(it, share)
    assume(power)
    found, truth = searched(it, power, "energy"), least(it, power, "energy")

    assert found.bound <= truth * (1 + 1e-11)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.proved


@given(mixed_instances(), st.sampled_from([1, 2]), shares, st.sampled_from(["time", "energy"]))
@examples(10)
def test_the_bound_within_watts_is_derived_again_by_other_means(it, hosts, share, minimised):
    """Nothing is below the least of enumeration, and a claim above it is contradicted or said not to be derived."""
    it = in_racks(it, hosts)
    power = limits_of(it, share)
    assume(power)
    truth = least(it, power, minimised) * it.machine.ticks.second
    assume(math.isfinite(truth))
    asked = asked_for(it, power, minimised)

    right = rederive_energy(problem_of(it, power), asked, truth * (1 - 1e-9))
    assert right.bound <= truth
    assert not right.counter_example
    wrong = rederive_energy(problem_of(it, power), asked, truth * 1.01)
    assert wrong.bound <= truth * (1 + 1e-9)
    assert not wrong.complete or wrong.counter_example
    assert wrong.counter_example_value >= truth * (1 - 1e-9)
