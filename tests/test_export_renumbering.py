"""Hosts renumbered for frameworks: against every rank's coordinates, and refused where no numbering does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from golden_plans import golden
from hypothesis import given
from hypothesis import strategies as st
from plans import make_plan
from strategies import examples

from cost_models.strategy import DENSE_ORDER
from planner.export.renumbering import experts_lie_as_planned, framework_grid, host_numbers
from planner.ranks import GRID_ORDER, rank_grid
from planner.result import Plan


def placed(levels: list[tuple[int, ...]], devices_per_host: int) -> Plan:
    """A plan whose axes have these factors, a tuple in DENSE_ORDER for each level, innermost first."""
    placement = {axis: [level[i] for level in levels] for i, axis in enumerate(DENSE_ORDER)}
    degrees = {axis: int(np.prod(factors)) for axis, factors in placement.items()}
    return make_plan(zero=3, placement=placement, devices_per_host=devices_per_host, config=None,
                     layers_per_stage=[1] * degrees["pp"], **degrees)  # fmt: skip


def coordinates_by_host(grid: np.ndarray, each: int) -> dict[int, set[tuple]]:
    found: dict[int, set[tuple]] = {}
    for index in itertools.product(*map(range, grid.shape)):
        found.setdefault(int(grid[index]) // each, set()).add(index)
    return found


def by_hand(plan: Plan, order: tuple[str, ...]) -> dict[int, set[tuple]]:
    """Coordinates that the framework puts on each of its hosts, counted with plain sums."""
    each, found = plan.cluster.devices_used // plan.cluster.hosts_used, {}
    for index in itertools.product(*(range(getattr(plan.strategy, axis)) for axis in GRID_ORDER)):
        at, rank, weight = dict(zip(GRID_ORDER, index, strict=True)), 0, 1
        for axis in order:
            rank, weight = rank + weight * at[axis], weight * getattr(plan.strategy, axis)
        found.setdefault(rank // each, set()).add(index)
    return found


factor = st.sampled_from([1, 1, 2, 3])


@examples(160)
@given(st.lists(st.tuples(*[factor] * 5), min_size=2, max_size=2), st.sampled_from([DENSE_ORDER, DENSE_ORDER[::-1]]))
def test_a_numbering_is_right_and_found_whenever_there_is_one(levels, order):
    plan = placed(levels, int(np.prod(levels[0])))
    each = plan.cluster.devices_used // plan.cluster.hosts_used
    planned, wanted = coordinates_by_host(rank_grid(plan.strategy), each), by_hand(plan, order)
    numbers = host_numbers(plan, order)

    possible = sorted(map(sorted, planned.values())) == sorted(map(sorted, wanted.values()))
    assert (numbers is not None) == possible
    if numbers is not None:
        assert sorted(numbers) == list(range(plan.cluster.hosts_used))
        assert all(planned[host] == wanted[number] for host, number in enumerate(numbers))


def test_the_first_host_stays_the_first():
    numbers = host_numbers(golden(4))

    assert numbers[0] == 0
    assert numbers != sorted(numbers)


def test_domains_smaller_than_a_host_keep_their_place():
    """Pairs of devices in hosts of four: tp in a pair, then dp in the host or across."""
    pairs = {"tp": [2, 1, 1], "cp": [1, 1, 1], "dp_shard": [1, 2, 2], "dp_replicate": [1, 1, 1], "pp": [1, 1, 1]}
    plan = make_plan(tp=2, dp_shard=4, zero=3, placement=pairs, devices_per_host=4)
    plan = plan.model_copy(update={"cluster": plan.cluster.model_copy(update={"hosts": 2, "hosts_used": 2})})
    assert host_numbers(plan) == [0, 1]
    assert host_numbers(plan, ("dp_shard", "tp", "cp", "dp_replicate", "pp")) is None
    across = {"tp": [2, 1, 1], "cp": [1, 1, 1], "dp_shard": [1, 2, 1], "dp_replicate": [1, 1, 1], "pp": [1, 1, 2]}
    plan = make_plan(tp=2, dp_shard=2, pp=2, zero=3, placement=across, devices_per_host=4)
    plan = plan.model_copy(update={"cluster": plan.cluster.model_copy(update={"hosts": 2, "hosts_used": 2})})
    assert host_numbers(plan) == [0, 1]
    assert host_numbers(plan, ("tp", "pp", "dp_shard", "cp", "dp_replicate")) is None, "pairs of two hosts in one"


@pytest.mark.parametrize(("ep", "edp", "lie"), [([4, 1], [2, 2], True), ([2, 2], [4, 1], False)])
def test_experts_are_where_the_plan_has_them(ep, edp, lie):
    """Sixteen ranks in two hosts: a framework puts ep inside edp."""
    plan = placed([(1, 1, 8, 1, 1), (1, 1, 2, 1, 1)], 8)
    placement = plan.strategy.placement | {"etp": [1, 1], "ep": ep, "edp": edp}
    strategy = plan.strategy.model_copy(update={"ep": 4, "edp": 4, "placement": placement})

    assert experts_lie_as_planned(strategy, framework_grid(strategy, DENSE_ORDER).ravel()) is lie


def test_clocks_stay_with_their_stages():
    """pp inside a host: where a framework numbers its devices otherwise, a clock would hit another stage."""
    plan = placed([(1, 1, 2, 1, 2)], 4)
    assert host_numbers(plan, ("pp", *DENSE_ORDER[:4])) == [0]
    slow = plan.model_copy(update={"strategy": plan.strategy.model_copy(update={"clocks": [1.0, 0.9]})})
    assert host_numbers(slow) == [0]
    assert host_numbers(slow, ("pp", *DENSE_ORDER[:4])) is None
