"""The second derivation on hosts that differ, against enumeration of every order of hosts."""

from __future__ import annotations

import math

from host_oracle import best_placed, fronts, irregular_hosts, signatures
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance
from searching import close, options_of, space_of
from strategies import examples
from test_placed_search import clocked, placed_instances

from planner.checks.rederive import Problem
from planner.checks.rederive_hosts import Hosts, rederive_hosts
from topologies.irregular import Irregular

SHAPES = st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (2, 3), (1, 5), (6, 1)])


def agrees(it: Instance, factor: float) -> None:
    everything = best_placed(it).value
    if space_of(it) is None or everything == math.inf:
        return
    problem = Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)
    found = rederive_hosts(problem, everything * factor)

    assert found.complete
    assert close(found.bound, min(everything, found.target))
    assert bool(found.counter_example) == (factor > 1)


@examples(25)
@given(placed_instances(), st.sampled_from([0.9, 1 - 1e-9, 1 + 1e-6, 1.2]))
def test_it_finds_the_least_below_its_target(it, factor):
    agrees(it, factor)


@examples(5)
@given(clocked(), st.sampled_from([1 - 1e-9, 1.2]))
def test_with_clocks(it, factor):
    agrees(it, factor)


@examples(100)
@given(irregular_hosts(most_hosts=6), SHAPES, st.integers(1, 2))
def test_packings_are_those_of_all_orders(it, shape, devices):
    """The best of its packings are the best of all orders of hosts; each of its packings is matched by some order."""
    hosts, groups = shape
    it = Irregular(it.numbers, it.devices, it.nic, it.switches)
    every = signatures(it, devices, hosts, groups)
    found = Hosts(it).packings(devices, hosts, groups)
    one = hosts == 1  # sends nothing, so its rate is called 1; one group has no hops

    said = {(tuple(1.0 if one else rate for rate in it.groups), 1.0 if groups == 1 else it.hop) for it in found}
    assert set(fronts(said)) == set(fronts(every))
