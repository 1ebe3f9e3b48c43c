"""What must follow when the problem changes in a known way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import search_of, value_of
from strategies import examples, instances, models, small_cluster, with_memory

from cost_models.calibration import calibrate
from cost_models.ticks import Ticks


def without_limits(it, **changes):
    return dataclasses.replace(it, power_cap_w=None, **changes)


@examples(30)
@given(instances(), st.sampled_from([2, 8]))
def test_a_machine_uniformly_faster_runs_the_same_plan(it, factor):
    """Rates times a power of two, latencies over it: the same plan in exactly that much less time."""
    fits = calibrate(it.cluster)
    it = without_limits(it, objective="time", fits=fits)
    cluster = it.cluster.scaled(factor)
    twin = dataclasses.replace(it, cluster=cluster, fits=calibrate(cluster), ticks=Ticks(it.ticks.second / factor))
    slow, fast = search_of(it), search_of(twin)
    if slow is None:
        return
    first, second = slow.run(), fast.run()

    assert fast.value == slow.value / factor
    if first.best is not None:
        assert slow.strategy(first.best) == fast.strategy(second.best)


@examples(25)
@given(instances(), st.floats(1.0, 4.0))
def test_more_memory_is_never_worse(it, factor):
    more = dataclasses.replace(it, cluster=with_memory(it.cluster, it.cluster.memory_bytes * factor))

    assert value_of(more)[0] <= value_of(it)[0] * (1 + 1e-9)


@examples(25)
@given(instances(), st.floats(0.0, 1.0))
def test_less_headroom_is_never_worse(it, part):
    assert value_of(dataclasses.replace(it, headroom=it.headroom * part))[0] <= value_of(it)[0] * (1 + 1e-9)


@examples(25)
@given(instances(), st.floats(1.0, 3.0))
def test_a_higher_cap_is_never_worse(it, factor):
    it = dataclasses.replace(it, power_cap_w=it.power_cap_w or 500.0 * it.cluster.devices)
    higher = dataclasses.replace(it, power_cap_w=it.power_cap_w * factor)
    none = dataclasses.replace(it, power_cap_w=None)
    values = [value_of(case)[0] for case in (it, higher, none)]

    assert values[0] * (1 + 1e-9) >= values[1]
    assert values[1] * (1 + 1e-9) >= values[2]


@examples(20)
@given(instances(most_devices=4), st.integers(1, 2))
def test_one_more_host_is_never_worse(it, inside):
    def on(hosts):
        cluster = with_memory(small_cluster(inside, hosts), it.cluster.memory_bytes)
        return value_of(dataclasses.replace(it, cluster=cluster, fits=calibrate(cluster)))[0]

    assert on(3) <= on(2) * (1 + 1e-9)


@examples(25)
@given(instances())
def test_a_pin_is_never_better_and_the_plans_own_values_cost_nothing(it):
    free = without_limits(it, pins=())
    search = search_of(free)
    result = search.run()
    assert value_of(without_limits(it))[0] >= search.value * (1 - 1e-9)
    if result.best is None:
        return
    strategy = search.strategy(result.best)
    own = [(axis, getattr(strategy.degrees, axis)) for axis in ("tp", "cp", "pp", "dp_shard", "dp_replicate")]
    pins = (*own, ("zero", strategy.zero), ("micro_batch", strategy.schedule.micro_batch))
    assert value_of(dataclasses.replace(free, pins=pins))[0] == pytest.approx(search.value, rel=1e-9)


@examples(15)
@given(instances(), models(most_layers=3, experts=False))
def test_the_same_problem_gives_the_same_plan(it, _):
    one, two = search_of(it), search_of(it)
    if one is None:
        return
    first, second = one.run(), two.run()

    assert one.value == two.value or (np.isinf(one.value) and np.isinf(two.value))
    assert first.counts == second.counts
    if first.best is not None:
        assert one.strategy(first.best) == two.strategy(second.best)
