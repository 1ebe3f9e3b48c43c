"""Room in memory tiers: every place that asks whether a stage or a device fits asks the tiers too."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from strategies import with_memory

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.estimate import evaluate, tier_uses
from cost_models.pipeline import in_flight
from cost_models.price import Prices, price
from cost_models.rows import Rows
from cost_models.strategy import Offload, Strategy
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.checks.branching import least_value
from planner.checks.check import check_strategy
from planner.checks.check_offloads import pipeline_ranks
from planner.checks.rederive import Problem
from planner.named import named_strategy
from planner.options import Options
from planner.read_model import read_model
from planner.search.columns import stage_columns
from planner.search.interleaved import device_recompute, even_cuts
from topologies.cluster import Cluster
from topologies.ready import read_cluster
from topologies.tiers import Tier, with_tiers

MODEL = read_model("llama-3.2-1b")
CLUSTER = with_tiers(read_cluster("dgx-h100:1"), ("dram",))
WORK = Training(seq_len=4096, global_batch=32)
FITS, TICKS = calibrate(CLUSTER), Ticks.of(MODEL, CLUSTER, WORK)
PLENTY = 10**15


def strategy(virtual: int = 1):
    """Two pipeline ranks, everything that can leave the device in the host's memory."""
    words = {"pp": 2, "dp": 1, "micro_batch": 1, "virtual_stages": virtual}
    offloads = (Offload("optimizer", "dram"), Offload("activations", "dram"))
    return dataclasses.replace(named_strategy(MODEL, CLUSTER, WORK, words), offloads=offloads)


def prices(virtual: int = 1, room: int | None = None) -> Prices:
    """Prices of that strategy's row, with ``room`` bytes a device in the tier."""
    found = price(MODEL, CLUSTER, WORK, Rows.of(strategy(virtual)), FITS, TICKS)
    return found if room is None else dataclasses.replace(found, tier_room={"dram": np.array([room])})


def need(chain: Chain, stage: int, i: int, j: int, out: int) -> int:
    """Bytes in the tier of one 1F1B stage, of ``out`` layers the optimiser states and activations, and of its ends."""
    kinds = [int(k) for k in chain.order[i:j]] + [-2] * (i == 0) + [-1] * (j == chain.layers)
    states, saved = chain.prices.tier_states["dram"][0], chain.prices.tier_saved["dram"][0]
    tied = int(chain.prices.tier_tied["dram"][0]) if j == chain.layers and i else 0
    leave = [k for at, k in enumerate(kinds) if at < out or k < 0]
    return sum(int(states[k] + (2 - stage) * saved[k]) for k in leave) + tied


def test_columns_hold_the_segments_that_the_tier_has_room_for():
    """With plenty of memory on the device nothing of a layer need leave; with too little for any, all must."""
    free = Chain(MODEL, prices(), 0)
    ends = np.arange(1, 16)
    least = int(free.state_bytes(0, 1) + free.fixed_bytes + 2 * free.saved_ends(0, 1))
    for limit, all_leave, some in ((PLENTY, False, ends), (least, True, ends[:1])):
        needs = {need(free, 0, 0, int(j), int(j) if all_leave else 0) for j in some}
        assert len(needs) == 1, "embedding and head lie there alone, or the one layer that fits"
        for room, fit in ((min(needs), len(some)), (min(needs) - 1, 0)):
            found = stage_columns(Chain(MODEL, prices(room=room), 0), 0 * some, 0 * some, some, limit)
            assert found.j.tolist() == some[:fit].tolist()
            assert found.out.tolist() == [int(j) if all_leave else 0 for j in some[:fit]]
            assert (found.j - found.kept).tolist() == found.out.tolist()


def test_interleaved_devices_ask_the_tier_at_their_fullest_moment():
    free = Chain(MODEL, prices(2), 0)
    cut = np.array(even_cuts(MODEL.layers, 2, 2)[0])
    moments = in_flight(2, 2, free.micro_batches, 0)
    spans = [(int(cut[c]), int(cut[c + 1])) for c in (0, 2)]
    states = sum(int(free.tier_states("dram", i, j)) for i, j in spans)
    saved = [int(free.tier_saved("dram", i, j)) for i, j in spans]
    full = states + max(sum(f * s for f, s in zip(moment, saved, strict=True)) for moment in moments)

    assert device_recompute(Chain(MODEL, prices(2, full), 0), cut, 0, PLENTY, None) is not None
    assert device_recompute(Chain(MODEL, prices(2, full - 1), 0), cut, 0, PLENTY, None) is None


@pytest.mark.parametrize("virtual", [1, 2])
def test_an_evaluated_plan_fits_up_to_the_last_byte(virtual):
    chain = Chain(MODEL, prices(virtual), 0)
    runs = chain.runs(strategy(virtual).stages)
    fullest = max(tier_uses(chain, runs)[0].need_bytes)
    for room, fits in ((fullest, True), (fullest - 1, False)):
        tight = Chain(MODEL, prices(virtual, room), 0)
        assert evaluate(tight, runs).fits(tight, PLENTY) is fits


@pytest.mark.parametrize("virtual", [1, 2])
def test_the_re_derivation_asks_the_tier(virtual):
    problem = Problem(MODEL, CLUSTER, WORK, Options(), FITS, TICKS)
    counts = dict.fromkeys(("rows", "bounded", "branched", "leaves", "interleaved"), 0)

    assert least_value(problem, prices(virtual), virtual, 1e9, counts) < 1e9
    assert least_value(problem, prices(virtual, 0), virtual, 1e9, counts) >= 1e9


def test_the_check_names_tier_need_and_room():
    little = dataclasses.replace(CLUSTER.tiers[0], capacity_bytes=2e9)
    small = dataclasses.replace(CLUSTER, tiers=(little,))
    complaints = check_strategy(MODEL, small, WORK, strategy())

    assert any("keeps" in text and "'dram'" in text and "0.9313 GiB" in text for text in complaints)


@pytest.mark.parametrize(
    ("offload", "text"),
    [
        (Offload("optimizer", "nvme"), "'nvme', which is none of the memory tiers"),
        (Offload("embeddings", "dram"), "'embeddings', which is no tensor class"),
        (Offload("optimizer", "dram", 1.5), "offloads 1.5 of optimizer"),
    ],
)
def test_offloads_that_make_no_sense(offload, text):
    wrong = dataclasses.replace(strategy(), offloads=(offload,))

    assert any(text in complaint for complaint in check_strategy(MODEL, CLUSTER, WORK, wrong))


def pooled(capacity: float, pools: int = 1, hosts: int = 4, **words: int) -> tuple[Cluster, Strategy]:
    """Four hosts with pools of that size, and a pipeline over them that keeps activations there."""
    tier = Tier("pool", "cxl-pool", capacity, 5e10, 5e10, 5e10, 1e-6, pool_bytes_per_s=1e11, pools=pools)
    cluster = dataclasses.replace(read_cluster(f"dgx-h100:{hosts}"), tiers=(tier,))
    named = named_strategy(MODEL, cluster, WORK, {"pp": 4, "dp": 8, "micro_batch": 1, "zero": 0, **words})
    return cluster, dataclasses.replace(named, offloads=(Offload("activations", "pool"),))


def chain_of(cluster: Cluster, it: Strategy) -> Chain:
    return Chain(MODEL, price(MODEL, cluster, WORK, Rows.of(it), calibrate(cluster), TICKS), 0)


def test_ranks_share_a_pool_as_they_need_it():
    """The first of four ranks holds four micro-batches, the last one: 10 parts of room do, of 16 if all had as much."""
    cluster, it = pooled(1e15)
    chain = chain_of(cluster, it)
    runs = chain.runs(it.stages)
    need = tier_uses(chain, runs)[0].need_bytes
    total = 8 * sum(need)

    assert need[0] > 3 * need[-1]
    for capacity, fits in ((total, True), (total - 1, False)):
        cluster, it = pooled(capacity)
        tight = chain_of(cluster, it)
        said = [text for text in check_strategy(MODEL, cluster, WORK, it) if "pool 0 of 'pool' would hold" in text]
        assert evaluate(tight, runs).fits(tight, PLENTY) is fits
        assert bool(said) is not fits


@pytest.mark.parametrize("room", [PLENTY, 4e9, 7e9])
def test_the_re_derivation_asks_the_pool(room):
    """Of all splits of four ranks the one that keeps least there is the last to fit; every rank alone would in less.

    Each rank keeps as many layers' activations, all recomputed, as it has ``room`` for beside states of four layers.
    """
    chain = chain_of(*pooled(1e15))
    counts = dict.fromkeys(("rows", "bounded", "branched", "leaves", "interleaved"), 0)
    limit = int(chain.fixed_bytes + chain.state_bytes(4, 8) + room)
    uses = [
        [least_in_pool(chain, limit, s, i, j) for s, (i, j) in enumerate(itertools.pairwise([0, *inner, 16]))]
        for inner in itertools.combinations(range(1, 16), 3)
    ]
    least = 8 * min(sum(use) for use in uses if None not in use)
    for capacity, fits in ((least, True), (least - 1, False)):
        cluster, it = pooled(capacity)
        problem = Problem(MODEL, with_memory(cluster, limit), WORK, Options(headroom=0.0), calibrate(cluster), TICKS)
        assert (least_value(problem, chain_of(cluster, it).prices, 1, 1e9, counts) < 1e9) is fits


def least_in_pool(chain: Chain, limit: int, s: int, i: int, j: int) -> int | None:
    """The fewest bytes that a stage of the pipeline over four hosts keeps in the pool; ``None`` where it fits not."""
    flight = 4 - s
    held = chain.fixed_bytes + chain.state_bytes(i, j) + chain.logit_bytes(i, j) + flight * chain.saved_ends(i, j)
    fits = [y for y in range(i, j + 1) if held + flight * chain.kept.saved("full", y, j) <= limit]
    return flight * int(chain.tier_saved("pool", i, j, fits[0])) if fits else None


@pytest.mark.parametrize("pools", [1, 2, 3, 4])
@pytest.mark.parametrize("words", [{}, {"tp": 2, "dp": 4}, {"pp": 2, "dp": 16}, {"pp": 8, "dp": 4}, {"pp": 2, "dp": 2}])
def test_which_ranks_meet_in_a_pool(pools, words):
    """Counted host by host in the order of ranks, as the check does, whatever lies inside a host."""
    cluster, it = pooled(1e12, pools, **words)
    devices, _ = chain_of(cluster, it).pools["pool"]
    hosts = pipeline_ranks(cluster, it)
    each = -(-len(hosts) // pools)
    counted = {
        tuple(sum(ranks.count(s) for ranks in hosts[at : at + each]) for s in range(it.degrees.pp))
        for at in range(0, len(hosts), each)
    }

    assert {tuple(row) for row in devices.tolist()} == counted
    assert sum(map(len, hosts)) == it.degrees.world_size
