"""Joules of what memory tiers read and write: by hand, told by tier, and weighed by the searches as by enumeration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from mixed_oracle import MixedInstance
from strategies import examples
from test_mixed_energy import idle_w, least, search_of
from test_mixed_tiers import tiered
from test_tiers import llama_70b, rates, shares, sizes

from cost_models.calibration import calibrate
from cost_models.mixed import evaluate_mixed
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.strategy import Offload
from cost_models.ticks import Ticks
from cost_models.tier_movement import moved_in_tiers
from cost_models.tiers import layer_tiers
from planner import plan
from planner.checks.verify import verify
from planner.defaults import default_workload
from planner.infrastructure.kv_cache import kv_cache
from planner.mixed.check import broken
from planner.named import named_strategy
from planner.read_model import read_model
from planner.search.mixed.pipelines import strategy_of
from planner.search.offloads import offloads_less, ways
from topologies.ready import read_cluster
from topologies.tiers import with_tiers

pytestmark = pytest.mark.usefixtures("steady")

ONE = np.ones(1)
NONE = 0.0 * ONE
PARAMETERS = 70.55e9
LINK, DDR, LPDDR = 167.9e-12, 24.7e-12, 4e-12
"""Joules a bit over PCIe, and of what DDR and LPDDR read and write."""


def cost_of(size, share, rate):
    return layer_tiers(size, share, rate, NONE, NONE, NONE, spread=ONE == 0)


def test_passes_pay_for_memory_and_link():
    """Weights read twice, gradients and activations in and out: 2 (2 + 4 + 6) bytes at 3 J in memory, 5 on the way."""
    cost = cost_of(sizes(), shares(weights=1.0, gradients=1.0, activations=1.0), rates(joules=3.0, link_joules=5.0))

    assert cost.joules_pass == pytest.approx(2 * (2 + 4 + 6) * (3 + 5))


def test_the_device_s_update_sends_all_states_over_its_link():
    cost = cost_of(sizes(), shares(optimizer=1.0), rates(joules=3.0, link_joules=5.0))

    assert cost.joules_step == pytest.approx(2 * 12 * (3 + 5))


def test_a_processor_s_update_sends_gradients_and_weights_over_the_link():
    """It touches 24 bytes of states, 4 of gradients and 2 of weights, 6 of which come and go; a slow one is unused."""
    size, share = sizes(weights_back=2.0), shares(optimizer=1.0)
    near = cost_of(size, share, rates(near=0.001, joules=3.0, link_joules=5.0))
    slow = cost_of(size, share, rates(near=1e3, joules=3.0, link_joules=5.0))

    assert near.joules_step == pytest.approx((24 + 6) * 3 + 6 * (3 + 5))
    assert slow.joules_step == pytest.approx(24 * (3 + 5))


def added_j(tier: str, **nothing: float) -> float:
    """Joules of devices and memory that 70B's Adam states in a tier add to a step on 16 H100 hosts."""
    cluster, offload = with_tiers(read_cluster("dgx-h100:16"), (tier,)), Offload("optimizer", tier.partition(":")[0])
    free = tuple(dataclasses.replace(it, joules_per_byte=0.0, link_joules_per_byte=0.0) for it in cluster.tiers)
    spent, for_nothing = (llama_70b(c, offload) for c in (cluster, dataclasses.replace(cluster, tiers=free)))
    return (spent.joules - for_nothing.joules) / cluster.facility.figures.pue.value


@pytest.mark.parametrize(
    ("tier", "each"),
    [
        ("dram", 24 * 8 * (LINK + DDR)),
        ("nvme", 24 * 8 * (LINK + 206e-12)),
        ("cxl-expander:8", 24 * 8 * (LINK + 30.2e-12)),
        ("cxl-pool", 24 * 8 * (LINK + 35.7e-12)),
        ("cxl-pnm:8", 8 * (30 * LPDDR + 6 * (LINK + LPDDR))),
    ],
)
def test_states_of_70b(tier, each):
    """12 B a parameter in and out once a step; modules that compute get 4 B of gradients and send 2 B of weights."""
    assert added_j(tier) == pytest.approx(PARAMETERS * each, rel=0.01)


def test_over_a_chip_to_chip_link_a_copy_takes_a_fortieth():
    grace, pcie = (with_tiers(read_cluster(name), ("dram",)).tiers[0] for name in ("gb200-nvl72:1", "dgx-b200:1"))

    assert grace.joules_per_byte + grace.link_joules_per_byte == pytest.approx(8 * 5.3e-12)
    assert pcie.joules_per_byte + pcie.link_joules_per_byte == pytest.approx(8 * 192.6e-12)


def test_attention_beside_the_memory_spares_the_link():
    """A cache that is fetched crosses the device's link; where the memory attends, queries and sums alone do."""
    cluster = with_tiers(read_cluster("dgx-h100:1"), ("cxl-pnm:8",))
    pue = cluster.facility.figures.pue.value

    def cached(**changed: float):
        tiers = tuple(dataclasses.replace(tier, **changed) for tier in cluster.tiers)
        machine = dataclasses.replace(cluster, present_tiers=tiers)
        return kv_cache("llama-3.1-70b", machine, tiers="all", context=131072, batch=16, tp=8)

    fetched, attended = cached(attend_bytes_per_s=0.0), cached()
    over_link = fetched.joules - cached(attend_bytes_per_s=0.0, link_joules_per_byte=0.0).joules
    spilled = 8 * sum(place.holds_bytes for place in fetched.places[1:])

    assert over_link == pytest.approx(pue * spilled * 8 * LINK, rel=1e-3)
    assert 0 < attended.joules - cached(link_joules_per_byte=0.0).joules < 0.01 * over_link


def in_dram(*offloads: Offload):
    """What 1B on one host moves in DRAM with these tensors there."""
    model, cluster = read_model("llama-3.2-1b"), with_tiers(read_cluster("dgx-h100:1"), ("dram",))
    workload, _ = default_workload(model, cluster, seq_len=2048, global_batch=16, precision="bf16", optimizer="adam")
    strategy = named_strategy(model, cluster, workload, {"tp": 1, "dp": 8, "zero": 1, "micro_batch": 1})
    strategy = dataclasses.replace(strategy, offloads=offloads)
    return model, moved_in_tiers(model, cluster, workload, strategy, calibrate(cluster, workload.stack))


def test_bytes_of_a_tier_by_hand():
    """1B's Adam states in and out once, 24 B a parameter; nothing where nothing is offloaded."""
    assert in_dram()[1] == ()
    model, (dram,) = in_dram(Offload("optimizer", "dram"))

    assert dram.level == "dram"
    assert dram.size_bytes == pytest.approx(24 * model.parameters, rel=0.01)
    assert dram.joules == pytest.approx(dram.size_bytes * 8 * (LINK + DDR), rel=1e-4)


SCARCE = {
    "seq_len": 4096,
    "global_batch": 64,
    "headroom": 0.8,
    "alternatives": 0,
    "tiers": "dram",
    "pins": {"tp": 1, "cp": 1, "pp": 1, "micro_batch": 1, "zero": 1},
}
"""So little memory that activations leave for DRAM, or a layer recomputes."""


@pytest.fixture(scope="module")
def offloading():
    return plan("llama-3.2-1b", "dgx-h100:1", **SCARCE)


def test_a_plan_says_what_its_tiers_take_and_is_held_to_it(offloading):
    dram = offloading.moved[-1]
    model, cluster = read_model("llama-3.2-1b"), read_cluster("dgx-h100:1")

    assert dram.level == "dram"
    assert "dram " in next(line for line in offloading.summary().splitlines() if line.startswith("moved"))
    for wrong in ([dram.model_copy(update={"joules": 1.0})], []):
        told = offloading.model_copy(update={"moved": [*offloading.moved[:-1], *wrong]})
        report = verify(told, model, cluster, time_limit_s=5)
        assert any("moved is" in reason for reason in report.reasons)


def test_the_least_energy_recomputes_what_the_least_time_copies(offloading):
    """Copies hide behind compute and cost no time; in joules a layer's selective recompute is less."""
    thrifty = plan("llama-3.2-1b", "dgx-h100:1", objective="energy", **SCARCE)

    assert offloading.status == thrifty.status == "optimal"
    assert [it.level for it in offloading.moved][-1] == "dram"
    assert not thrifty.strategy.offloads
    assert thrifty.joules_per_step < 0.97 * offloading.joules_per_step
    report = verify(thrifty, read_model("llama-3.2-1b"), read_cluster("dgx-h100:1"), time_limit_s=60)
    assert report.verdict == "verified"


@pytest.mark.slow
@given(tiered())
@examples(12)
def test_mixed_energy_with_tiers_is_that_of_enumeration(it: MixedInstance):
    """Of hosts that draw no more idle than their devices, so that joules of stages, and of their tiers, weigh much."""
    watts = idle_w(it, (1.0, 1.0))
    found, truth = search_of(it, watts).run(), least(it, watts, "energy")

    assert found.proved
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.bound <= truth * (1 + 1e-11)
    assume(found.best is not None)
    strategy = strategy_of(found.table, found.best)
    assert broken(it.machine, strategy, evaluate_mixed(it.machine, strategy), it.limits) == []


def place_of(share: float) -> int:
    """Which of all ways lets that share of the optimiser states leave and nothing else."""
    every = ways(1)
    return int(np.flatnonzero((every[:, 0, 0] == share) & ~every[:, 1:].any(axis=(1, 2)))[0])


def test_fewer_states_outside_may_take_more_joules():
    """So where joules count no way with other shares of the states stands for one: a processor's joules are others."""
    quarter, half = (place_of(share) for share in (0.25, 0.5))

    assert offloads_less(1, joules=False)[half, quarter]
    assert not offloads_less(1, joules=True)[half, quarter]
    assert offloads_less(1, joules=True)[half, 0]


def test_embedding_and_head_keep_what_backward_needs():
    """Only layers let activations go, as TransformerEngine wraps layers alone."""
    model, cluster = read_model("llama-3.2-1b"), with_tiers(read_cluster("dgx-h100:1"), ("dram",))
    workload, _ = default_workload(model, cluster, seq_len=2048, global_batch=16, precision="bf16", optimizer="adam")
    strategy = named_strategy(model, cluster, workload, {"tp": 1, "dp": 8, "zero": 1, "micro_batch": 1})
    leaves = dataclasses.replace(strategy, offloads=(Offload("activations", "dram"),))
    asked = calibrate(cluster, workload.stack), Ticks.of(model, cluster, workload)
    stays, goes = (price(model, cluster, workload, Rows.of(it), *asked) for it in (strategy, leaves))

    assert (goes.saved["none"][:, -2:] == stays.saved["none"][:, -2:]).all() and stays.saved["none"][:, -1:].all()
    assert not goes.saved["none"][:, :-2].any()
    assert goes.tier_saved["dram"][:, :-2].all() and not goes.tier_saved["dram"][:, -2:].any()
