"""Packings against every order of hosts."""

from __future__ import annotations

import numpy as np
from host_oracle import _signature, fronts, irregular_hosts, pair_rates, signatures
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from planner.search.packing import Option, Packing, Shape
from planner.search.uneven import in_order
from topologies.irregular import Irregular, Switch

SHAPES = st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (2, 3), (1, 5), (6, 1)])


def rates_of(option: Option, rates: np.ndarray) -> tuple[float, ...]:
    return tuple(float(rates[level]) for level in in_order(option))


@examples(150)
@given(irregular_hosts(most_hosts=6), SHAPES, st.integers(1, 2))
def test_options_are_the_best_of_all_orders(it, shape, devices):
    """No order of hosts beats them all, each is one, and its hosts have just the rates it says; spares stay out."""
    hosts, groups = shape
    it = Irregular(it.numbers, it.devices, it.nic, it.switches)
    options = Packing(it).options(Shape(devices, hosts, groups, 1))
    best = set(fronts(signatures(it, devices, hosts, groups)))

    alone = groups == 1  # no hops: any rate will do
    assert {(_or_one(rates_of(o, it.rates), hosts), 1.0 if alone else float(it.rates[o.hop])) for o in options} == best


def _or_one(rates: tuple[float, ...], hosts: int) -> tuple[float, ...]:
    """A group of one host sends nothing, so its rate is called 1."""
    return tuple(1.0 for _ in rates) if hosts == 1 else rates


@examples(150)
@given(irregular_hosts(most_hosts=6), SHAPES, st.randoms(use_true_random=False))
def test_hosts_realise_an_option_in_any_order_of_groups(it, shape, random):
    hosts, groups = shape
    packing = Packing(it)
    for option in packing.options(Shape(1, hosts, groups, 1)):
        levels = list(in_order(option))
        random.shuffle(levels)
        order = packing.hosts(Shape(1, hosts, groups, 1), option, tuple(levels))
        inside, hop = _signature(pair_rates(it), order, hosts)

        assert len(set(order)) == hosts * groups
        assert inside == _or_one(tuple(float(it.rates[level]) for level in levels), hosts)
        assert groups == 1 or hop == it.rates[option.hop]


def test_a_slow_host_stays_idle_unless_all_are_needed():
    """Four hosts, one slow: three groups of one leave it out; four take it, and every hop is as slow."""
    it = Irregular((0, 1, 2, 3), (8,) * 4, (1.0, 0.1, 1.0, 1.0))
    packing = Packing(it)
    (three,), (four,) = packing.options(Shape(8, 1, 3, 1)), packing.options(Shape(8, 1, 4, 1))

    assert packing.hosts(Shape(8, 1, 3, 1), three, in_order(three)) == (0, 2, 3)
    assert (it.rates[three.hop], it.rates[four.hop]) == (1.0, 0.1)


def test_leaves_can_hold_stages_or_replicas():
    """Two leaves of two hosts behind narrow uplinks, two groups of two: stages inside leaves, or hops inside them."""
    leaves = (Switch("a", (0, 1), 0.25), Switch("b", (2, 3), 0.25))
    it = Irregular((0, 1, 2, 3), (8,) * 4, (1.0,) * 4, leaves)
    packing, shape = Packing(it), Shape(8, 2, 2, 1)
    found = {(o.spread, float(it.rates[o.hop])): packing.hosts(shape, o, in_order(o)) for o in packing.options(shape)}

    assert found == {(False, 0.25): (0, 1, 2, 3), (True, 1.0): (0, 2, 1, 3)}
