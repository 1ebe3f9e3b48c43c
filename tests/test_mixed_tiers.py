"""Pipelines over several kinds of devices whose stages keep tensors in memory tiers: each its own, an even part."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixed_cases import CLUSTER, MODEL
from mixed_oracle import MixedInstance, best_step
from strategies import examples
from test_mixed_search import mixed_instances, search_of
from test_verify_mixed import assert_rederived

from cost_models.mixed import Machine, MixedEvaluation, MixedStage, MixedStrategy, evaluate_mixed
from cost_models.strategy import LayerRun, Offload
from cost_models.workload import Training
from planner import plan
from planner.checks.mixed_prices import priced_again
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, InfeasiblePlan, Unsupported
from planner.explanations.mine import same_inputs_of
from planner.mixed.check import broken
from planner.mixed.result import MixedPlan
from planner.search.deadline import in_time
from planner.search.mixed.pipelines import strategy_of
from planner.search.mixed.space import MixedSpace, useful
from topologies.mixed import MixedCluster
from topologies.ready import read_any_cluster
from topologies.tiers import Tier

pytestmark = pytest.mark.usefixtures("steady")


@st.composite
def tiered(draw: st.DrawFn) -> MixedInstance:
    """A small problem with less memory than its best plan takes, and a memory tier on the one part, or on both: slow or
    quick, ample or scarce, now and then of pools."""
    it = draw(mixed_instances(((1, 1), (2, 1), (1, 2)), ((1, 1), (2, 1)), most_layers=3))
    states = 18 * it.machine.model.parameters
    ample = dataclasses.replace(it, pins=(("tp", 1), ("cp", 1)), limits=(2**50, 2**50))
    best = best_of(ample)
    part = draw(st.sampled_from([0.5, 0.7, 0.9]))
    need = [states, states] if best is None else [evaluate_mixed(it.machine, best).need.max()] * 2
    rate, near = draw(st.sampled_from([1e10, 1e11, 1e12])), draw(st.sampled_from([0.0, 1e11]))
    tier = Tier("dram", "dram", 100.0 * states, rate, rate, rate, 1e-7, update_bytes_per_s=near)
    if draw(st.integers(0, 2)) == 0:
        pools = draw(st.integers(1, 2))
        tier = Tier("pool", "cxl-pool", 100.0 * states, 2 * rate, rate, rate / 2, 1e-7, 0.0, rate, pools, 1e-11)
    spent = {name: draw(st.sampled_from([0.0, 1e-9, 1e-7])) for name in ("joules_per_byte", "link_joules_per_byte")}
    tier = dataclasses.replace(tier, **spent)
    which = draw(st.sampled_from([(0,), (1,), (0, 1), (0, 1)]))
    it = dataclasses.replace(ample, limits=tuple(int(part * size) for size in need))
    it = with_tier(it, tier, which)
    return scarce(it, tier, which, draw(st.sampled_from([0.4, 0.9]))) if draw(st.booleans()) else it


def with_tier(it: MixedInstance, tier: Tier, which: tuple[int, ...]) -> MixedInstance:
    """The problem with a tier on some parts."""
    cluster = it.machine.cluster
    parts = tuple(dataclasses.replace(p, tiers=(tier,) * (k in which)) for k, p in enumerate(cluster.parts))
    machine = dataclasses.replace(it.machine, cluster=dataclasses.replace(cluster, parts=parts))
    return dataclasses.replace(it, machine=machine)


def scarce(it: MixedInstance, tier: Tier, which: tuple[int, ...], part: float) -> MixedInstance:
    """The problem with that part of the room that its best plan takes of a tier, on the device that takes most."""
    best = best_of(it)
    if best is None:
        return it
    used = [held / room for stage in evaluate_mixed(it.machine, best).tiers for held, room in stage.values()]
    capacity_bytes = tier.capacity_bytes * part * max([*used, 1e-9])
    return with_tier(it, dataclasses.replace(tier, capacity_bytes=capacity_bytes), which)


def best_of(it: MixedInstance) -> MixedStrategy | None:
    """The best pipeline of a problem."""
    found = search_of(it).run()
    return None if found.best is None else strategy_of(found.table, found.best)


@given(tiered())
@examples(24)
def test_search_equals_enumeration(it):
    """Proved, the least of all pipelines under every way to offload, legal; priced alike layer by layer."""
    truth, _ = best_step(it)
    found = search_of(it).run()

    assert found.proved
    assert (found.best is None) == math.isinf(truth)
    if found.best is not None:
        assert abs(found.value - truth) <= 1e-8 * truth
        strategy = strategy_of(found.table, found.best)
        priced, again = evaluate_mixed(it.machine, strategy), priced_again(it.machine, strategy)
        assert priced.step == found.value == again.step
        assert (priced.tiers, priced.classes) == (again.tiers, again.classes)
        assert broken(it.machine, strategy, priced, it.limits) == []


@pytest.mark.slow
@given(tiered())
@examples(24)
def test_rederiving_equals_enumeration(it):
    assert_rederived(it)


TIGHTER = {"seq_len": 4096, "global_batch": 32, "precision": "bf16", "headroom": 0.98}
"""So little memory that six layers fit two A100s and one H100 only with tiers."""


@pytest.fixture(scope="module")
def offloading() -> MixedPlan:
    return plan(MODEL, CLUSTER, tiers="dram", **TIGHTER)


def test_stages_differ_in_what_they_offload(offloading):
    """Without tiers nothing fits; with them every stage lets go what it must, and says so."""
    with pytest.raises(InfeasiblePlan, match="memory tiers"):
        plan(MODEL, CLUSTER, **TIGHTER)

    assert offloading.status == "optimal"
    assert len({tuple(it.text() for it in stage.offloads) for stage in offloading.stages}) > 1
    first = offloading.stages[0]
    rooms = [stage.tier_room_bytes for stage in offloading.stages]
    assert rooms == [{"dram": 1e12}, {"dram": 1e12}, {"dram": 2e12}], "two A100s share 2 TB, one H100 has as much alone"
    assert f"stage 0: {first.offloads[0].text()}" in offloading.summary()
    assert "not within one" in " ".join(offloading.space["restrictions"])
    assert set(offloading.space["axes"]["offload"]) == {part.name for part in CLUSTER.parts}
    with pytest.raises(Unsupported, match="the runtime offloads nothing, and the plan moves"):
        offloading.write("unused")
    assert MixedPlan.from_json(offloading.to_json()) == offloading


def test_a_saved_plan_with_tiers_is_verified(offloading):
    report = verify_mixed(offloading, MODEL, CLUSTER)

    assert report.verdict == "verified", report.reasons
    assert report.bound == offloading.bound


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"offloads": [{"tensors": "optimizer", "tier": "dram", "share": 0.6}]}, "none of the ways of the space"),
        ({"offloads": [{"tensors": "gradients", "tier": "dram", "share": 1.0}]}, "none of the ways of the space"),
        ({"offloads": [{"tensors": "optimizer", "tier": "nvme", "share": 1.0}]}, "none of the memory tiers"),
        ({"offloads": []}, "its devices leave"),
        ({"tier_bytes": {"dram": 1.0}}, "tier_bytes are"),
        ({"tier_bytes": {}}, "tier_bytes are"),
        ({"tier_room_bytes": {"dram": 1e13}}, "tier_room_bytes are"),
    ],
)
def test_what_a_stage_says_of_tiers_is_checked(offloading, changed, said):
    data = offloading.model_dump(mode="json")
    data["stages"][0] |= changed
    report = verify_mixed(MixedPlan.model_validate(data), MODEL, CLUSTER)

    assert report.verdict == "refused"
    assert any(said in reason for reason in report.reasons), report.reasons


def test_tiers_that_the_options_do_not_name_are_refused(offloading):
    data = offloading.model_dump(mode="json")
    data["options"]["tiers"] = []

    assert verify_mixed(MixedPlan.model_validate(data), MODEL, CLUSTER).verdict == "refused"


def test_devices_of_a_host_share_its_tiers_whoever_uses_them():
    """By hand: one of eight devices of a host has an eighth of its DRAM and of its bandwidth, also where no other stage
    is on that host; hosts of a part share its pools."""
    cluster = read_any_cluster("dgx-h100:4+dgx-a100:2").with_tiers(("dram", "cxl-pool:2"))
    machine = Machine.of(MODEL, cluster, Training(seq_len=2048, global_batch=16))

    def of(*offloads: Offload) -> MixedEvaluation:
        stage = MixedStage(0, 1, 1, 1, 1, 0, 16, (LayerRun(6),), offloads)
        return evaluate_mixed(machine, MixedStrategy((stage, MixedStage(1, 1, 1, 1, 1, 0, 16, ())), 1))

    def held(tier: str) -> tuple[int, int]:
        return of(Offload("optimizer", tier)).tiers[0][tier]

    pool = next(tier for tier in cluster.parts[0].tiers if tier.pools)
    dram = next(tier for tier in cluster.parts[0].tiers if tier.name == "dram")
    assert held("dram")[1] == dram.capacity_bytes / 8
    assert held("cxl-pool")[1] == pool.capacity_bytes / (2 * 8), "two hosts of eight devices a pool"
    assert held("dram")[0] == held("cxl-pool")[0] > 0
    waits_s = (of(Offload("optimizer", "dram")).tail[0] - of().tail[0]) * machine.ticks.second
    assert waits_s == pytest.approx(8 * 2 * held("dram")[0] / dram.read_bytes_per_s, rel=0.1)


def test_parts_have_the_tiers_that_their_hosts_have():
    """Hosts whose tiers differ are parts: a name that some part has is theirs, others are added to every part."""
    nothing = dataclasses.replace(CLUSTER.parts[0], present_tiers=(), name="bare")
    some = MixedCluster("two", (nothing, CLUSTER.parts[1]), CLUSTER.join)

    def named(words: str) -> list[list[str]]:
        return [[tier.name for tier in part.tiers] for part in some.with_tiers(tuple(words.split(","))).parts]

    assert named("dram") == [[], ["dram"]]
    assert named("all") == [[], ["dram", "nvme"]]
    assert named("dram,cxl-pool:2") == [["cxl-pool"], ["dram", "cxl-pool"]]
    with pytest.raises(BadInput, match="dram"):
        MixedCluster("bare", (nothing, dataclasses.replace(nothing, name="too")), CLUSTER.join).with_tiers(("dram",))
    with pytest.raises(BadInput, match="tiers=all"):
        MixedCluster("bare", (nothing, dataclasses.replace(nothing, name="too")), CLUSTER.join).with_tiers(("all",))


def test_like_hosts_of_which_some_have_fewer_modules_are_parts(tmp_path):
    """What exceptions of one cluster cannot say: beside one module a device has a quarter of the room beside four."""
    for name, units in (("these", 1), ("rest", 4)):
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\nhost = "dgx-a100-40gb"\nfabric = "ndr-infiniband"\nfacility = "air"\n'
            f'tiers = ["cxl-expander:{units}"]\n'
        )
    parts = [f"{tmp_path}/{name}.toml" for name in ("these", "rest")]
    (tmp_path / "both.toml").write_text(f'name = "both"\nparts = {parts}\n')
    cluster = read_any_cluster(tmp_path / "both.toml").with_tiers(("cxl-expander",))
    machine = Machine.of(MODEL, cluster, Training(seq_len=2048, global_batch=16))
    leaves = Offload("optimizer", "cxl-expander")
    stages = (MixedStage(part, 1, 1, 1, 1, 0, 16, (LayerRun(3),), (leaves,)) for part in (0, 1))
    held = evaluate_mixed(machine, MixedStrategy(tuple(stages), 1)).tiers

    assert [it["cxl-expander"][1] for it in held] == [256e9 / 8, 4 * 256e9 / 8]


def test_a_plan_on_one_part_names_no_other_part_s_tiers(tmp_path):
    """It is read again from its own file, with the tiers that it was planned with: none of the other part's."""
    text = 'name = "{0}"\nhost = "{0}"\nfabric = "ndr-infiniband"\nfacility = "air"\n{1}'
    for name, tiers in (("dgx-h100", ""), ("dgx-a100", 'tiers = ["cxl-expander:1"]')):
        (tmp_path / f"{name}.toml").write_text(text.format(name, tiers))
    parts = [f"{tmp_path}/dgx-h100.toml", f"{tmp_path}/dgx-a100.toml"]
    (tmp_path / "far.toml").write_text(f'name = "far apart"\nparts = {parts}\nlink_latency = "1 s"\n')
    alone = plan("llama-3.2-1b", tmp_path / "far.toml", seq_len=2048, global_batch=64, tiers="cxl-expander").alone

    assert (alone.cluster.source, alone.options["tiers"]) == (parts[0], [])
    assert same_inputs_of(alone)[1].tiers == ()


def test_a_way_that_fills_a_tier_replaces_none_that_fills_it_less():
    """Where traffic is free, ways that keep more in a tier are as quick and take less of the device: room tells."""
    tier = Tier("free", "dram", 1e12, 1e18, 1e18, 1e18, 0.0)
    parts = tuple(dataclasses.replace(part, tiers=(tier,)) for part in CLUSTER.parts)
    machine = Machine.of(MODEL, MixedCluster("two", parts, CLUSTER.join), Training(seq_len=2048, global_batch=16))
    space = MixedSpace(machine, {"tp": 1, "cp": 1}, (2**40, 2**40))
    setups, prices = space.priced(space.setups(1, 16))
    kept = useful(prices, setups, None)

    assert len(kept) > 1
    tables = [*prices.tier_states.values(), *prices.tier_saved.values(), prices.state_bytes, *prices.saved.values()]
    held = np.concatenate([*tables, prices.fixed_bytes[:, None]], axis=1)
    assert all((held[kept] <= one).all(axis=1).any() for one in held)


def test_telling_ways_apart_ends_with_the_time():
    """Of 405B with tiers it takes many seconds, a part and a global micro-batch after the other."""
    machine = Machine.of(MODEL, CLUSTER, Training(seq_len=2048, global_batch=16))
    space = MixedSpace(machine, {}, (2**40, 2**40))
    setups, prices = space.priced(space.setups(1, 16))

    assert not in_time(time.monotonic() - 1.0, lambda: useful(prices, setups, None))
    assert in_time(time.monotonic() + 60.0, lambda: useful(prices, setups, None))
