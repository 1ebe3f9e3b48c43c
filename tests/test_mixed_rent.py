"""Rent and limits on mixed clusters: the search over hosts against enumeration, plans end to end, what is refused."""

import dataclasses
import math
import time
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_cases import CLUSTER, MODEL, TIGHT
from mixed_oracle import best_step
from strategies import examples
from test_mixed_search import mixed_instances

from planner import plan
from planner.errors import BadInput, InfeasiblePlan
from planner.mixed.result import MixedPlan
from planner.search.budget import Budget
from planner.search.mixed import rent
from planner.search.mixed.pipelines import durations
from planner.search.mixed.rent import RentSearch, Wanted
from planner.search.mixed.space import MixedSpace

rates_of_two = st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([0.5, 1.0, 4.0]))


def search_of(it, wanted: Wanted, limit_s: float = 30.0) -> RentSearch:
    return RentSearch(MixedSpace(it.machine, dict(it.pins), it.limits), Budget(time.monotonic() + limit_s), wanted)


def least(it, rates, minimised: str, ticks: float = math.inf, most: float = math.inf) -> float:
    """By enumeration: ticks, or ticks times the rent of the hosts in use, of pipelines strictly below both limits."""

    def value(step, hosts):
        paid = step * (np.array(rates) @ hosts)
        return np.where((step < ticks) & (paid < most), step if minimised == "time" else paid, math.inf)

    return best_step(it, value)[0]


@given(mixed_instances(), rates_of_two, st.floats(0.3, 1.5), st.sampled_from([1.0, rent.WIDEST, 1e9]))
@examples(10)
def test_the_cheapest_pipeline_is_that_of_enumeration(it, rates, share, widest):
    """Also with a step that must be quicker than the cheapest one's; wherever outlines are asked."""
    free = search_of(it, Wanted("money", np.array(rates))).run()
    assert free.proved
    assert free.value == pytest.approx(least(it, rates, "money"), rel=1e-9)
    assume(free.best is not None)
    ticks = share * durations(free.table, free.best).step

    with patch.object(rent, "WIDEST", widest):
        found = search_of(it, Wanted("money", np.array(rates), ticks=ticks)).run()
    truth = least(it, rates, "money", ticks=ticks)
    assert found.proved
    assert found.bound <= truth * (1 + 1e-9)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert (found.best is None) == math.isinf(truth)


@given(mixed_instances(), rates_of_two, st.floats(0.5, 1.5))
@examples(10)
def test_the_quickest_pipeline_within_a_rent_is_that_of_enumeration(it, rates, share):
    quickest = least(it, rates, "time")
    assume(math.isfinite(quickest))
    most = share * quickest * sum(rates)
    found, truth = search_of(it, Wanted("time", np.array(rates), rent=most)).run(), least(it, rates, "time", most=most)

    assert found.proved
    assert found.bound <= truth
    assert found.value == truth


ASKED = {"seq_len": 2048, "global_batch": 16, "precision": "bf16", "headroom": TIGHT, "alternatives": 0}


def priced(*usd_per_device_hour: float):
    """The small mixed cluster with prices of its parts."""
    parts = zip(CLUSTER.parts, usd_per_device_hour, strict=True)
    each = [dataclasses.replace(part, price_usd_per_device_hour=price) for part, price in parts]
    return dataclasses.replace(CLUSTER, parts=tuple(each))


def test_the_cheapest_plan_is_no_dearer_than_that_of_a_part():
    cluster = priced(1.0, 3.0)
    found = plan(MODEL, cluster, objective="money", **ASKED)

    assert (found.status, found.objective_name) == ("optimal", "money")
    assert found.objective == found.usd_per_step
    rent_per_s = sum(part.hosts_used * price for part, price in zip(found.parts, (2.0, 3.0), strict=True)) / 3600
    assert found.usd_per_step == pytest.approx(rent_per_s * found.step_s)
    for part in cluster.parts:
        alone = plan(MODEL, part, objective="money", **ASKED)
        assert found.objective <= alone.objective * (1 + 1e-9)
    assert "USD a step" in found.summary()
    assert MixedPlan.from_json(found.to_json()) == found


def test_what_is_cheapest_within_a_time_and_quickest_within_a_rent():
    """Between the quickest plan and the cheapest: a limit on one is paid for in the other."""
    cluster = priced(1.0, 3.0)
    quick, cheap = (plan(MODEL, cluster, objective=name, **ASKED) for name in ("time", "money"))
    assert quick.step_s < cheap.step_s and cheap.usd_per_step < quick.usd_per_step
    between = (quick.step_s + cheap.step_s) / 2, (quick.usd_per_step + cheap.usd_per_step) / 2
    timed = plan(MODEL, cluster, objective="money", limits={"step-time": between[0]}, **ASKED)
    paid = plan(MODEL, cluster, limits={"step-money": between[1]}, **ASKED)

    assert {timed.status, paid.status} == {"optimal"}
    assert timed.step_s <= between[0] and cheap.usd_per_step <= timed.usd_per_step <= quick.usd_per_step
    assert paid.usd_per_step <= between[1] and quick.step_s <= paid.step_s <= cheap.step_s
    same = plan(MODEL, cluster, limits={"step-time": quick.step_s}, **ASKED)
    assert same.step_s == quick.step_s
    for limits in ({"step-time": 0.9 * quick.step_s}, {"step-money": 0.9 * cheap.usd_per_step}):
        with pytest.raises(InfeasiblePlan, match="keeps the limits step-"):
            plan(MODEL, cluster, limits=limits, **ASKED)


def test_limits_of_a_training_run_are_divided_by_its_steps():
    cluster = priced(1.0, 3.0)
    quick = plan(MODEL, cluster, **ASKED)
    tokens = 1000 * quick.workload.tokens
    found = plan(MODEL, cluster, objective="money", tokens=tokens, limits={"train-time": 1100 * quick.step_s}, **ASKED)

    assert found.step_s <= 1.1 * quick.step_s
    assert found.proof.space["step-time"] == pytest.approx(1.1 * quick.step_s)
    with pytest.raises(BadInput, match="add --tokens"):
        plan(MODEL, cluster, limits={"money": "5 USD"}, **ASKED)


@pytest.mark.parametrize("price", [0.0, None])
def test_a_part_without_a_price_is_refused(price):
    part = priced(1.0, 3.0).parts[0]
    figures = part.accelerator.figures.model_copy(update={"price": None})
    bare = dataclasses.replace(part, accelerator=part.accelerator.model_copy(update={"figures": figures}))
    cluster = CLUSTER.with_part(0, dataclasses.replace(bare, price_usd_per_device_hour=price))

    with pytest.raises(BadInput, match="'part-0' has no price above 0"):
        plan(MODEL, cluster, objective="money", **ASKED)
    if price is None:
        assert plan(MODEL, cluster, **ASKED).usd_per_step is None
