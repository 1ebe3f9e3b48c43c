"""Clocks of stages of mixed pipelines: the search and what is derived again, against enumeration."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_cases import CLUSTER, MODEL, TIGHT, planned, problem_of
from mixed_oracle import MixedInstance
from plans import make_mixed_plan, make_part, make_stage
from strategies import examples
from test_mixed_search import mixed_instances, search_of
from test_mixed_tiers import with_tier
from test_mixed_watts import (
    FIXED,
    between,
    fixed,
    in_racks,
    least,
    limits_of,
    quickest_agrees,
    rederiving_agrees,
    searched,
    shares,
    so_far,
    thriftiest_agrees,
)

from cost_models.clocks import STEPS
from cost_models.mixed import Machine, evaluate_mixed
from planner import plan
from planner.checks.mixed_ways import Ways
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, Unsupported
from planner.explanations.mixed_again import mixed_decided_otherwise
from planner.mixed.check import broken
from planner.mixed.launch import refusals
from planner.mixed.result import MixedPlan
from topologies.tiers import Tier

pytestmark = pytest.mark.usefixtures("steady")

CLOCKS = ((1.0, 0.8), (1.0, 0.9, 0.8))


@st.composite
def clocked_instances(draw) -> MixedInstance:
    """Instances of two layers whose stages may have two or three clocks."""
    it = in_racks(draw(mixed_instances(most_layers=2)), draw(st.sampled_from([1, 2])))
    return dataclasses.replace(it, clocks=draw(st.sampled_from(CLOCKS)))


@given(clocked_instances(), shares, st.booleans())
@examples(15)
def test_the_quickest_pipeline_within_watts_is_that_of_enumeration(it, share, narrow):
    power = limits_of(it, share)
    assume(power)
    quickest_agrees(it, power, narrow)


@given(clocked_instances(), shares)
@examples(15)
def test_the_thriftiest_pipeline_is_that_of_enumeration(it, share):
    thriftiest_agrees(it, limits_of(it, share))


@given(clocked_instances(), shares, st.sampled_from(["time", "energy"]))
@examples(15)
def test_the_bound_is_derived_again_by_other_means(it, share, minimised):
    power = limits_of(it, share)
    assume(power or minimised == "energy")
    rederiving_agrees(it, power, minimised)


@pytest.mark.parametrize(("level", "share", "fields"), FIXED[:2])
def test_a_lower_clock_waits_less(level, share, fields):
    """Fixed instances whose steps wait: within the same watts clocks make them shorter, to the tick that is the least.

    A step that lasts within an energy limit, and the energy within a time limit, are those of enumeration too.
    """
    full = fixed(*fields)
    it = dataclasses.replace(full, clocks=(1.0, 0.8))
    power = so_far(it, search_of(it).run(), {level: share})
    waiting, truth, found = least(full, power), least(it, power), searched(it, power)

    assert truth < 0.99 * waiting
    assert (found.value, found.proved) == (truth, True)
    assert found.bound <= truth

    tick = it.machine.ticks.second
    most_s = (truth + 0.5 * (waiting - truth)) * tick
    thrifty, spent = searched(it, power, "energy", most_s=most_s), least(it, power, "energy", most_s=most_s)
    assert thrifty.value == pytest.approx(spent, rel=1e-9)
    assert thrifty.bound <= spent * (1 + 1e-11) and thrifty.proved
    most_j = 1.02 * spent * tick
    assert searched(it, power, most_j=most_j).value == least(it, power, most_j=most_j)


ASKED = {"seq_len": 2048, "global_batch": 16, "precision": "bf16", "headroom": TIGHT, "alternatives": 0}


def capped(**fields) -> MixedPlan:
    """The quickest plan where devices draw less than in the quickest of all, which wait or run slower."""
    limits = {"device-power": between("device", 0.6)}
    return plan(MODEL, CLUSTER, **{"limits": limits, "clocks": True, **ASKED, **fields})


def test_a_plan_has_the_clock_of_every_stage_and_is_verified():
    found, waiting = capped(), capped(clocks=False)
    clocks = [stage.clock for stage in found.stages]

    assert found.status == "optimal" and found.step_s < 0.999 * waiting.step_s
    assert min(clocks) < 1 and set(clocks) <= set(STEPS)
    assert MixedPlan.from_json(found.to_json()) == found
    assert found.proof.space["axes"]["clock"] == {"of every stage": list(STEPS)}
    assert "clock" not in waiting.proof.space["axes"] and {stage.clock for stage in waiting.stages} == {1.0}
    assert "clock" in found.summary() and "clock" not in waiting.summary().partition("proof")[0]
    assert verify_mixed(found, MODEL, CLUSTER).verdict == "verified"
    assert any(text.startswith("clocks full -> ") for text in mixed_decided_otherwise(waiting, found)) or len(
        waiting.stages
    ) != len(found.stages)


def with_clocks(found: MixedPlan, *clocks: float) -> MixedPlan:
    stages = [it.model_copy(update={"clock": clock}) for it, clock in zip(found.stages, clocks, strict=True)]
    return found.model_copy(update={"stages": stages})


def test_other_clocks_than_the_plans_are_refused():
    found = capped()
    count = len(found.stages)
    said = "; ".join(verify_mixed(with_clocks(found, *[1.0] * count), MODEL, CLUSTER).reasons)
    assert "but comes to" in said
    said = "; ".join(verify_mixed(with_clocks(found, *[0.7] * count), MODEL, CLUSTER).reasons)
    assert "stage 0 runs at 0.7 of the full clock, but the options allow 1.0, 0.95, 0.9, 0.85, 0.8" in said

    full = planned(alternatives=0)
    slower = with_clocks(full, *[0.9] * len(full.stages))
    assert "the options allow 1.0" in "; ".join(verify_mixed(slower, MODEL, CLUSTER).reasons)
    machine = Machine.of(MODEL, CLUSTER, full.workload)
    never = with_clocks(full, *[1.0] * (len(full.stages) - 1), 0.5).strategy()
    never = dataclasses.replace(never, stages=tuple(dataclasses.replace(it, clock=1.5) for it in never.stages))
    said = "; ".join(broken(machine, never, evaluate_mixed(machine, never), (2**40, 2**40)))
    assert "stage 0: its devices run at 1.5 of the full clock" in said


def test_clocks_that_nothing_weighs_are_refused():
    with pytest.raises(BadInput, match="without a power cap weighs no joules"):
        capped(limits=None)


@pytest.mark.slow
def test_of_objectives_in_order_every_one_chooses_clocks_where_joules_count():
    """Under a limit on watts both do; without one the first takes full clocks."""
    found, full = (capped(clocks=clocks, objective="time,energy", slack="5%") for clocks in (True, False))
    assert found.status == "optimal" and min(it.clock for it in found.stages) < 1
    assert found.proof.stages[0].value < 0.999 * full.proof.stages[0].value
    assert verify_mixed(found, MODEL, CLUSTER).verdict != "refused"

    found, full = (capped(clocks=clocks, limits=None, objective="time,energy", slack="5%") for clocks in (True, False))
    assert found.status == "optimal" and found.joules_per_step <= full.joules_per_step
    assert found.proof.stages[0].value == full.proof.stages[0].value


NVIDIA = [make_part("a", devices=2, accelerator="h100-sxm"), make_part("b", devices=2, accelerator="a100-80-sxm")]


def clocks_sh(folder, stages, parts) -> list[str]:
    """The percents that ``clocks.sh`` holds, by host."""
    make_mixed_plan(stages, parts).write(folder)
    assert "clocks.sh sets" in (folder / "launch.sh").read_text()
    inside = (folder / "clocks.sh").read_text().partition("percents=(")[2].partition(")")[0]
    return [line.strip(' "') for line in inside.strip().splitlines()]


def test_clocks_are_set_on_the_hosts_of_their_stages(tmp_path):
    """As one mesh, and with a mesh a stage: two stages on one host, a stage on two hosts of unequal processes."""
    alike = [make_stage(0, 2, dp=2, clock=0.9), make_stage(1, 2, dp=2)]
    assert clocks_sh(tmp_path / "one", alike, NVIDIA) == ["90 90", "100 100"]

    five = [make_part("a", hosts=2, devices=5, accelerator="h100-sxm"), NVIDIA[1]]
    uneven = [make_stage(0, 1, tp=2, dp=2, zero=1, clock=0.85), make_stage(0, 1, tp=2, micro_batch=2, clock=0.95)]
    uneven += [make_stage(1, 2, micro_batch=2)]
    assert clocks_sh(tmp_path / "uneven", uneven, five) == ["85 85 85 85", "95 95", "100"]

    make_mixed_plan([make_stage(0, 2), make_stage(1, 2)], NVIDIA).write(tmp_path / "full")
    assert not (tmp_path / "full" / "clocks.sh").exists()
    assert "clocks.sh" not in (tmp_path / "full" / "launch.sh").read_text()


def test_clocks_that_launch_files_cannot_set_are_refused_by_name(tmp_path):
    parts = [make_part("a", accelerator="mi300x"), make_part("b", accelerator="mi250x")]
    found = make_mixed_plan([make_stage(0, 2, clock=0.9), make_stage(1, 2)], parts)

    assert "stage 0 runs mi300x at 0.9" in " ".join(refusals(found.stages, parts, found.model, found.workload))
    with pytest.raises(Unsupported, match=r"mi300x at 0[.]9 of the full clock"):
        found.write(tmp_path)


def test_full_clocks_that_claim_to_be_the_best_of_all_are_refused():
    """The plan that only waits, said to be the answer where clocks were asked for: a quicker pipeline is named."""
    found, waiting = capped(), capped(clocks=False)
    claim = waiting.model_copy(update={"options": found.options, "proof": found.proof})
    report = verify_mixed(claim, MODEL, CLUSTER)

    assert report.verdict == "refused"
    assert "exists" in report.reasons[0] and "of the full clock" in report.reasons[0]


def test_a_way_of_a_full_clock_stands_for_none_of_a_lower_one_that_offloads_as_much():
    """Derived again, where nothing has to be recomputed: each clock has stages of its own that offload nothing."""
    full = fixed(*FIXED[0][2])
    tier = Tier("dram", "dram", 1e15, 1e11, 1e11, 1e11, 1e-7)
    it = dataclasses.replace(with_tier(full, tier, (0, 1)), limits=(2**50, 2**50), clocks=(1.0, 0.8))
    ways = Ways(problem_of(it, {"device": 500.0}), 1)
    ways.price(math.inf, 2, math.inf)
    stands = ways.stands.any(axis=(1, 2))
    nothing = np.array([not share.any() for share in ways.shares])
    clocks = np.array(ways.clocks)

    assert (stands & nothing & (clocks == 1.0)).sum() == (stands & nothing & (clocks == 0.8)).sum() > 0
