"""Even cuts by brute force; rows with virtual stages against enumeration."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import best_of_all
from searching import options_of
from strategies import examples, instances

from cost_models.chain import Chain
from planner.search.bounds import objective_of
from planner.search.even import even_values
from planner.search.interleaved import even_cuts, legal_virtual, point


def compositions(total, parts):
    for inner in itertools.combinations(range(1, total), parts - 1):
        yield (0, *inner, total)


@given(st.integers(2, 13), st.integers(2, 4), st.integers(2, 3))
def test_even_cuts_by_brute_force(layers, pp, virtual):
    """All cuts whose parts are equal once the embedding, the head, both or neither count as a layer."""
    wanted = set()
    for cut in compositions(layers, pp * virtual):
        sizes = [b - a for a, b in itertools.pairwise(cut)]
        for first, last in itertools.product((0, 1), repeat=2):
            counted = [sizes[0] + first, *sizes[1:-1], sizes[-1] + last]
            if len(set(counted)) == 1:
                wanted.add(cut)

    assert set(even_cuts(layers, pp, virtual)) == wanted
    assert (virtual in legal_virtual(layers, pp)) == bool(wanted)


def test_one_stage_has_no_virtual_stages():
    assert legal_virtual(12, 1) == ()
    assert legal_virtual(12, 2) == (2, 3, 6)
    assert legal_virtual(126, 8) == (2, 4, 8)


@examples(80)
@given(instances(most_layers=10, most_devices=4), st.sampled_from([2, 3]))
def test_points_equal_enumeration(it, virtual):
    pins = {"virtual_stages": virtual} | {k: v for k, v in it.pins if k == "recompute"}
    it = dataclasses.replace(it, pins=tuple(pins.items()))
    answer = best_of_all(it)
    if answer.rows is None:
        return
    for r in np.flatnonzero((answer.rows.pp > 1) & (answer.rows.micro_batches % answer.rows.pp == 0))[:40]:
        prices = answer.prices.take(np.array([r])).with_virtual(virtual)
        objective = objective_of(prices.rows, it.cluster, options_of(it))
        chain, size = Chain(it.model, prices, 0), int(prices.rows.stage_size[0])
        pin = dict(it.pins).get("recompute")
        found = [
            point(chain, np.array(cut), objective, size, it.limit_bytes, pin, np.inf)
            for cut in even_cuts(it.model.layers, chain.pp, virtual)
        ]
        best = min((f.value for f in found if f is not None), default=np.inf)
        assert best == pytest.approx(answer.by_row[r], rel=1e-12)


@examples(48)
@given(instances(most_layers=10, most_devices=4), st.sampled_from([2, 3]))
def test_even_values_are_the_longest_paths_of_even_plans(it, virtual):
    """With the same recompute; of cuts of which some do not fit only that no plan is below is held."""
    it = dataclasses.replace(it, pins=tuple(pin for pin in it.pins if pin[0] == "recompute"))
    answer, pin = best_of_all(it), dict(it.pins).get("recompute")
    if answer.rows is None:
        return
    legal = (answer.rows.pp > 1) & (answer.rows.micro_batches % answer.rows.pp == 0)
    prices = answer.prices.take(np.flatnonzero(legal)[:40])
    objective = objective_of(prices.rows, it.cluster, options_of(it))
    least = even_values(it.model, prices, virtual, objective, it.limit_bytes, pin)
    for r, value in enumerate(least.tolist()):
        chain = Chain(it.model, prices.take(np.array([r])).with_virtual(virtual), 0)
        own, size = objective.take(np.array([r])), int(prices.rows.stage_size[r])
        cuts = [np.array(cut) for cut in even_cuts(it.model.layers, chain.pp, virtual)]
        plans = [point(chain, cut, own, size, it.limit_bytes, pin, np.inf) for cut in cuts]
        found = [plan for plan in plans if plan is not None]
        assert value <= min((plan.value for plan in found), default=np.inf)
        if len(found) == len(cuts):
            assert value == pytest.approx(
                min((by_paths(chain, own, plan) for plan in found), default=np.inf), rel=1e-10
            )
        elif not found:
            assert value == np.inf or own.counts_joules


def by_paths(chain, objective, plan):
    """The objective of a plan, were its step the longest of the seed paths."""
    e = plan.evaluation
    ticks = max(path.ticks(e.forward, e.backward, chain.hop, e.tail) for path in chain.schedule.seed_paths())
    return float(objective.value(np.array([ticks * chain.prices.ticks.second]), np.array([plan.dynamic_j]))[0])
