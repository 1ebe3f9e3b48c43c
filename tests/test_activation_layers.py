"""Layers whose activations leave the device: what they cost, what the rest keeps, and that the search chooses them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from searching import close, options_of, search_of, space_of
from strategies import coarse_ticks, small_cluster, tiny_config, with_memory

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.estimate import estimate
from cost_models.price import Prices, price
from cost_models.rows import Rows
from cost_models.side_by_side import partly_offloaded
from cost_models.strategy import Offload, Strategy
from cost_models.ticks import Ticks
from cost_models.tiers import ACTIVATIONS
from cost_models.workload import Training
from planner.checks.rederive import Problem, rederive
from planner.named import named_strategy
from planner.read_model import read_model
from planner.search.bounds import objective_of
from planner.search.envelope import envelope
from planner.search.offloads import ways
from planner.search.screen import Screen
from topologies.ready import read_cluster
from topologies.tiers import Tier, with_tiers

MODEL = read_model("llama-3.2-1b")
CLUSTER = with_tiers(read_cluster("dgx-h100:1"), ("dram",))
WORK = Training(seq_len=4096, global_batch=32)
TICKS = Ticks.of(MODEL, CLUSTER, WORK)
SLOW = dataclasses.replace(
    CLUSTER, tiers=(dataclasses.replace(CLUSTER.tiers[0], device_bytes_per_s=8e9, joules_per_byte=1e-9),)
)
"""A link so slow that activations of all layers take longer to leave than forward takes."""


def strategy(first: int | None, second: int | None = None, *, states: int | None = None, **words: int) -> Strategy:
    """Two stages of eight layers whose first ones let activations go, and ``states`` of them optimiser states."""
    named = named_strategy(MODEL, CLUSTER, WORK, {"pp": 2, "dp": 1, "micro_batch": 1, **words})
    out = (first, first if second is None else second)
    stages = tuple(
        dataclasses.replace(stage, offloaded=states, activations_offloaded=out[s % 2])
        for s, stage in enumerate(named.stages)
    )
    offloads = (Offload("activations", "dram"), *([Offload("optimizer", "dram")] if states is not None else []))
    return dataclasses.replace(named, stages=stages, offloads=offloads)


def chain_of(it: Strategy, cluster=CLUSTER) -> Chain:
    return Chain(MODEL, price(MODEL, cluster, WORK, Rows.of(it), calibrate(CLUSTER), TICKS), 0)


def of_layers(chain: Chain, *leaving: int) -> Chain:
    return partly_offloaded(chain, [8, 8], [(None, first) for first in leaving])


def test_what_leaves_lies_in_the_tier_of_every_micro_batch_in_flight():
    """The first stage holds two micro-batches and the second one: of each layer that keeps its own, bytes move back."""
    every, some = (estimate(MODEL, CLUSTER, WORK, strategy(*out)) for out in ((None,), (5, 2)))
    layer = int(chain_of(strategy(None)).kept.saved("none", 0, 1))

    for rank, kept in enumerate((2 * 3, 6)):
        assert every.tiers[0].need_bytes[rank] - some.tiers[0].need_bytes[rank] == pytest.approx(kept * layer, rel=1e-6)
        assert some.need_bytes[rank] - every.need_bytes[rank] == kept * layer


def test_traffic_hides_behind_all_layers_of_the_stage():
    """A pass takes as long as its work until what leaves takes longer on the link; then as long as that takes."""
    chain = chain_of(strategy(None), SLOW)
    layer = int(chain.kept.saved("none", 0, 1))
    forward = [int(of_layers(chain, k, k).forward(0, 8)) for k in range(9)]
    work = int(of_layers(chain, 0, 0).forward(0, 8))
    embedding = int(chain.prices.tier_saved["dram"][0, -2])
    wire = [(embedding + k * layer) / 8e9 / TICKS.second for k in range(9)]

    assert forward[0] == work < forward[8]
    for ticks, on_the_wire in zip(forward, wire, strict=True):
        assert ticks == pytest.approx(max(work, on_the_wire), rel=1e-3)
    assert wire[3] > work / 8 * 3, "of a layer alone less would hide"


def test_terms_of_a_step_that_waits_for_a_tier_sum_to_it():
    found = estimate(MODEL, SLOW, WORK, strategy(None), ticks=TICKS)
    kept = estimate(MODEL, SLOW, WORK, strategy(0), ticks=TICKS)

    assert sum(seconds for _, seconds in found.time) == pytest.approx(found.step_s)
    assert dict(found.time)["memory tiers"] > 0.1 * found.step_s
    assert dict(kept.time).get("memory tiers", 0.0) == 0.0


@pytest.mark.parametrize("states", [None, 3])
@pytest.mark.parametrize("cluster", [CLUSTER, SLOW])
def test_columns_are_priced_as_the_plan_of_them_is(cluster, states):
    """Of every number of layers, beside states by layers or none: ticks, joules and bytes in the tier."""
    it = strategy(5, 2, states=states)
    chain = chain_of(it, cluster)
    out = 8 if states is None else states
    plan_of = partly_offloaded(chain, [8, 8], [(out, 5), (out, 2)])
    i, j = np.array([0, 8]), np.array([8, 16])
    x, y = i + out, i + np.array([5, 2])

    assert chain.forward(i, j, x, y).tolist() == plan_of.forward(i, j).tolist()
    assert chain.backward(i, j, x, y).tolist() == plan_of.backward(i, j).tolist()
    assert chain.joules_pass(i, j, x, y) == pytest.approx(plan_of.joules_pass(i, j), rel=1e-12)
    assert chain.tier_saved("dram", i, j, y).tolist() == plan_of.tier_saved("dram", i, j).tolist()
    for kind in ("none", "selective", "full"):
        assert chain.kept.saved(kind, y, j).tolist() == plan_of.saved(kind, i, j).tolist()


def test_where_activations_lie_changes_traffic_and_bytes_alone():
    """What bounds and columns rely on: work and updates are the same, whatever leaves."""
    out = chain_of(strategy(None, states=8), SLOW).prices
    for one, other in ((out, out.kept), (out.nearer, out.kept.nearer)):
        changed = {name for name in vars(one) if differ(getattr(one, name), getattr(other, name))}
        assert changed <= {"saved", "tier_saved", "sent", "joules_pass", "fixed"}
        assert {"saved", "tier_saved", "sent"} <= changed
        assert all((other.sent[name] <= one.sent[name]).all() for name in one.sent)


def differ(one: object, other: object) -> bool:
    if isinstance(one, dict) and one and isinstance(next(iter(one.values())), np.ndarray):
        return any(differ(one[name], other[name]) for name in one)
    return isinstance(one, np.ndarray) and bool((one != other).any())


def test_no_way_to_leave_is_better_than_that_of_a_row_as_good_as_several():
    """Of rows whose activations leave for one tier or another all share no bytes, and joules where tiers take none."""
    cluster = with_tiers(read_cluster("dgx-h100:1"), ("dram", "cxl-pool:1"))
    tiers = tuple(dataclasses.replace(tier, device_bytes_per_s=8e9, joules_per_byte=0.0) for tier in cluster.tiers)
    cluster = dataclasses.replace(cluster, tiers=tiers)
    every = ways(2)
    rows = Rows.concat([Rows.of(strategy(None)).offloading(way[None], tuple(t.name for t in tiers)) for way in every])
    prices = price(MODEL, cluster, WORK, rows, calibrate(cluster), TICKS)
    whole = np.flatnonzero(every.sum(axis=2)[:, ACTIVATIONS] == 1)
    i, j, x, y = 0, 8, *(a.ravel() for a in np.indices((9, 9)))
    random = np.random.default_rng(0)
    for group in (random.permutation(some)[:2] for some in [whole, np.arange(len(rows))] * 30):
        parts = [Chain(MODEL, prices.take(np.array([r])), 0) for r in group]
        best = Chain(MODEL, envelope([part.prices for part in parts]), 0)
        for part in parts:
            assert (best.forward(i, j, x, y) <= part.forward(i, j, x, y)).all()
            assert (best.backward(i, j, x, y) <= part.backward(i, j, x, y)).all()
            assert (best.joules_pass(i, j, x, y) <= part.joules_pass(i, j, x, y) * (1 + 1e-12)).all()
            assert (best.state_bytes(i, j, x) <= part.state_bytes(i, j, x)).all()
            for tier in tiers:
                assert (best.tier_bytes(tier.name, i, j, 2, x, y) <= part.tier_bytes(tier.name, i, j, 2, x, y)).all()


def test_virtual_stages_hide_traffic_behind_their_own_layers():
    """Every layer leaves there; a slow link shows on each of them, and no layer may keep its own."""
    prices = chain_of(strategy(None), SLOW).prices
    alike = Chain(MODEL, prices.with_virtual(2), 0)

    assert alike.kept is None and alike.nearer is None
    assert int(alike.forward(0, 4)) > int(prices.forward[0, 0]) * 4
    assert isinstance(prices.alike, Prices)


def planted(seed: int, **fields: object) -> Instance:
    """A few layers on two devices with more activations than room, and a tier behind a link of any speed."""
    random = np.random.default_rng(seed)
    pp, seq_len = int(random.integers(1, 3)), int(random.choice([1024, 4096]))
    # Two layers' worth is always on its way: a stage has more.
    layers = int(random.integers(5, 8 if pp == 1 else 7))
    model = read_model(tiny_config(num_hidden_layers=layers, hidden_size=256, intermediate_size=768, vocab_size=512))
    work = Training(seq_len=seq_len, global_batch=int(random.choice([2, 4])))
    cluster = small_cluster(2)
    fits = dataclasses.replace(calibrate(cluster, work.stack), context_bytes=0.0, communicator_bytes=1e4)
    ticks = coarse_ticks(model, cluster, work)
    pins = {"tp": 1, "cp": 1, "dp": 1, "pp": pp, "micro_batch": 1}
    pins |= {"virtual_stages": 1} if random.integers(4) else {}
    plain = Instance(model, cluster, work, fits, ticks, headroom=0.0, pins=tuple(pins.items()), **fields)
    least, most = needs(plain)
    memory = least + random.uniform(0.0, 0.6) * (most - least)
    # From half of to thirty times what moves all that a step saves while it works.
    step_s = best_of_all(dataclasses.replace(plain, objective="time")).value
    rate = float(10 ** random.uniform(-0.3, 1.5)) * (most - least) * work.global_batch / step_s
    room = float(random.choice([1e12, random.uniform(0.3, 1.5) * (most - least)]))
    pool = (rate, 1) if random.integers(2) else (math.inf, 0)
    tier = Tier("slow", "dram", room, rate, rate, rate, 1e-9, 0.0, *pool, 1e-9)
    return dataclasses.replace(plain, cluster=dataclasses.replace(with_memory(cluster, memory), tiers=(tier,)))


def needs(it: Instance) -> tuple[float, float]:
    """Bytes of the fullest device of an even cut with nothing kept for backward, and with all."""
    pp = dict(it.pins)["pp"]
    named = named_strategy(it.model, it.cluster, it.workload, {"pp": pp, "dp": 1, "micro_batch": 1})
    found = estimate(it.model, it.cluster, it.workload, named, fits=it.fits, ticks=it.ticks)
    return (
        max(sum(classes.values()) - classes["activations"] for classes in found.memory),
        max(found.need_bytes),
    )


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), objective=st.sampled_from(["time", "energy"]))
def test_the_search_agrees_with_enumeration(seed, objective):
    it = planted(seed, objective=objective)
    value = best_of_all(it).value
    assume(math.isfinite(value))
    search = search_of(it)
    search.run()

    assert close(search.value, value)
    problem = Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)
    for factor in (1 - 1e-9, 1.001):
        found = rederive(problem, value * factor)
        assert found.complete
        assert bool(found.counter_example) == (factor > 1)


@pytest.mark.parametrize("seed", range(6))
def test_no_plan_is_below_the_bound_of_its_row(seed):
    it = planted(seed)
    answer, screen = best_of_all(it), Screen(space_of(it), it.limit_bytes, it.ticks)
    objective = objective_of(answer.rows, it.cluster, options_of(it))
    bounds, may = screen.promising(answer.prices, objective, np.inf, buffers=True)

    assert (bounds <= np.array(answer.by_row)).all()
    assert np.isinf(np.array(answer.by_row)[~may]).all()


@pytest.mark.slow
def test_some_of_the_planted_leave_by_layers():
    """The random instances ask what they are meant to: of their best plans some let part of a stage's layers do it."""
    best = [search_of(planted(seed)).run().best for seed in range(20)]
    found = [it.found for it in best if it is not None]
    sizes = [[stage[-1][2] - stage[0][1] for stage in it.runs] for it in found]
    some = [
        any(0 < first < size for (_, first), size in zip(it.leaving, of_plan, strict=False))
        for it, of_plan in zip(found, sizes, strict=True)
    ]
    assert sum(some) >= 2
