"""Limits on mean watts of mixed pipelines: the search and what is derived again, against enumeration."""

import dataclasses
import math
import time
from functools import lru_cache
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_cases import CLUSTER, MODEL, TIGHT, planned, problem_of
from mixed_oracle import MixedInstance, best_step
from mixed_power_oracle import idle
from strategies import coarse_ticks, examples, small_cluster, tiny_config
from test_mixed_search import BASES, mixed_instances, mixed_of, search_of

from cost_models.mixed import Machine, evaluate_mixed
from cost_models.mixed_power import idle_host_w
from cost_models.mixed_power_levels import Held, groups, mixed_level_watts
from cost_models.power_levels import PowerLimits, idle_w
from cost_models.workload import Training
from planner import plan
from planner.checks.mixed_watts import Standing, groups_again
from planner.checks.rederive_energy import rederive_energy
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, InfeasiblePlan
from planner.explanations.mixed_terms import stage_times
from planner.mixed.asked import Asked
from planner.mixed.check import broken
from planner.mixed.plan import held_of, pipelines_below
from planner.mixed.result import MixedPlan
from planner.read_model import read_config
from planner.search.budget import Budget
from planner.search.mixed import engine, packed
from planner.search.mixed.answer import MixedResult
from planner.search.mixed.certificate import Columns, _undominated
from planner.search.mixed.pipelines import strategy_of
from planner.search.mixed.space import MixedSpace
from topologies.mixed import MixedCluster

pytestmark = pytest.mark.usefixtures("steady")

LEVELS = ("device", "host", "rack", "site")
LAST_PLACE = 1e-15
"""Waits are quotients of floats, in ticks so fine that there may be 2**51 of them: one more or less is rounding."""
shares = st.fixed_dictionaries({level: st.sampled_from([None, None, 0.1, 0.4, 0.8]) for level in LEVELS})


def in_racks(it: MixedInstance, hosts: int) -> MixedInstance:
    """The instance with so many hosts in each rack."""
    parts = tuple(dataclasses.replace(part, hosts_per_rack=hosts) for part in it.machine.cluster.parts)
    cluster = dataclasses.replace(it.machine.cluster, parts=parts)
    return dataclasses.replace(it, machine=dataclasses.replace(it.machine, cluster=cluster))


def limits_of(it: MixedInstance, share: dict[str, float | None]) -> dict[str, float]:
    """Most watts by level: of what the quickest pipeline draws above the least that idling takes, so much."""
    found = search_of(it).run()
    assume(found.best is not None)
    return so_far(it, found, share)


def so_far(it: MixedInstance, found: MixedResult, share: dict[str, float | None]) -> dict[str, float]:
    """Watts by level so far from the least that idling takes to what a pipeline draws."""
    strategy = strategy_of(found.table, found.best)
    step_s, hosts = found.value * it.machine.ticks.second, tuple(part.hosts for part in it.machine.cluster.parts)
    drawn = mixed_level_watts(it.machine, strategy, held_of(it.machine, strategy), hosts, step_s)
    least = {level: min(idle(part)[level] for part in it.machine.cluster.parts) for level in LEVELS}
    return {n: least[n] + part * (drawn[n] - least[n]) for n, part in share.items() if part is not None}


def asked_for(it: MixedInstance, power: dict[str, float], minimised: str, **most) -> Asked:
    watts = tuple(idle_host_w(part) for part in it.machine.cluster.parts)
    limits = PowerLimits(**{f"{level}_w": most_w for level, most_w in power.items()})
    return Asked(minimised, None, **most, idle_w=watts, power=limits)


def searched(it: MixedInstance, power: dict[str, float], minimised: str = "time", **most):
    space = MixedSpace(it.machine, dict(it.pins), it.limits, asked_for(it, power, minimised, **most), it.clocks)
    return pipelines_below(space, Budget(time.monotonic() + 60), math.inf, lambda *_: None)


def least(it: MixedInstance, power: dict[str, float], minimised: str = "time", most_s=math.inf, most_j=math.inf):
    """By enumeration: ticks of steps that wait, or these times watts with joules of stages."""
    tick, watts = it.machine.ticks.second, np.array([idle_host_w(part) for part in it.machine.cluster.parts])

    def value(step, hosts, joules):
        with np.errstate(invalid="ignore"):
            spent = step * (watts @ hosts) + joules / tick
        fits = (step * tick < most_s) & (spent * tick < most_j) & np.isfinite(step)
        return np.where(fits, step if minimised == "time" else spent, math.inf)

    return best_step(it, value, joules=True, power=power)[0]


def quickest_agrees(it: MixedInstance, power: dict[str, float], narrow: bool) -> None:
    """Fails unless the quickest pipeline is that of enumeration, proved, within all limits and at given clocks."""
    truth = least(it, power)
    widths = {"FIRST_WIDTH": 1, "WIDER": 3} if narrow else {"WIDER": engine.WIDER}
    with patch.multiple(engine, **widths), patch.object(packed, "MOST_UNITS", 6):
        found = searched(it, power)

    assert found.bound <= truth * (1 + LAST_PLACE)
    assert found.value == pytest.approx(truth, rel=LAST_PLACE)
    assert found.proved
    if found.best is not None:
        strategy = strategy_of(found.table, found.best)
        assert {stage.clock for stage in strategy.stages} <= set(it.clocks)
        assert broken(it.machine, strategy, evaluate_mixed(it.machine, strategy), it.limits) == []


def thriftiest_agrees(it: MixedInstance, power: dict[str, float]) -> None:
    """Fails unless the pipeline of least energy is that of enumeration, proved."""
    found, truth = searched(it, power, "energy"), least(it, power, "energy")

    assert found.bound <= truth * (1 + 1e-11)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.proved


def rederiving_agrees(it: MixedInstance, power: dict[str, float], minimised: str) -> None:
    """Fails where a bound is above enumeration's least, or a claim above that neither contradicted nor left open."""
    truth = least(it, power, minimised) * it.machine.ticks.second
    assume(math.isfinite(truth))
    asked = asked_for(it, power, minimised)

    right = rederive_energy(problem_of(it, power), asked, truth * (1 - 1e-9))
    assert right.bound <= truth
    assert not right.counter_example
    wrong = rederive_energy(problem_of(it, power), asked, truth * 1.01)
    assert wrong.bound <= truth * (1 + 1e-9)
    assert not wrong.complete or wrong.counter_example
    assert wrong.counter_example_value >= truth * (1 - 1e-9)


@given(mixed_instances(), st.sampled_from([1, 2]), shares, st.booleans())
@examples(15)
def test_the_quickest_pipeline_within_watts_is_that_of_enumeration(it, hosts, share, narrow):
    it = in_racks(it, hosts)
    power = limits_of(it, share)
    assume(power)
    quickest_agrees(it, power, narrow)


@given(mixed_instances(), st.sampled_from([1, 2]), shares)
@examples(10)
def test_the_thriftiest_pipeline_within_watts_is_that_of_enumeration(it, hosts, share):
    it = in_racks(it, hosts)
    power = limits_of(it, share)
    assume(power)
    thriftiest_agrees(it, power)


@given(mixed_instances(), st.sampled_from([1, 2]), shares, st.sampled_from(["time", "energy"]))
@examples(10)
def test_the_bound_within_watts_is_derived_again_by_other_means(it, hosts, share, minimised):
    it = in_racks(it, hosts)
    power = limits_of(it, share)
    assume(power)
    rederiving_agrees(it, power, minimised)


def fixed(
    width: int, inner: int, shapes: tuple[tuple[int, int], ...], global_batch: int, seq_len: int
) -> MixedInstance:  # fmt: skip
    """Three layers with ample memory, a host a rack."""
    heads = {"hidden_size": 4 * width, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = tiny_config(**heads, num_hidden_layers=3, intermediate_size=inner, vocab_size=128)
    model = read_config(config, "three layers")
    parts = [small_cluster(*shape, base=base) for shape, base in zip(shapes, BASES, strict=False)]
    workload = Training(seq_len=seq_len, global_batch=global_batch, precision="bf16")
    machine = Machine.of(model, mixed_of(*parts), workload)
    ticks = max((coarse_ticks(model, part, workload) for part in parts), key=lambda it: it.second)
    return in_racks(MixedInstance(dataclasses.replace(machine, ticks=ticks), (10**12, 10**12)), 1)


FIXED = (
    ("device", 0.4, (64, 1536, ((2, 1), (1, 1)), 2, 64)),
    ("host", 0.1, (16, 192, ((2, 1), (1, 1)), 2, 1024)),
    ("host", 0.001, (16, 192, ((2, 1), (1, 1)), 2, 1024)),
    ("site", 0.4, (16, 1536, ((2, 2), (1, 2)), 1, 1024)),
)
"""A level, the share that is left of what the quickest pipeline of an instance draws there above idling, and this.

In the second and third stages share a host, and in the third waits are longer than CP-SAT's integers may be; in the
last there are more hosts than may be in use, and the first pipeline that is found is not the quickest.
"""


@pytest.mark.parametrize(("level", "share", "fields"), FIXED)
def test_a_limit_decides_a_fixed_instance(level, share, fields):
    it = fixed(*fields)
    quickest = search_of(it).run()
    power = so_far(it, quickest, {level: share})
    truth, found = least(it, power), searched(it, power)

    assert truth > 1.1 * quickest.value
    assert found.value == truth
    assert found.bound <= truth
    assert found.proved


@pytest.mark.parametrize(("wait", "stay"), [((5, 4), 2), ((4, 5), 1), ((4, 4), 1)])
def test_of_stages_for_cp_sat_none_stands_for_one_that_waits_less(wait, stay):
    """Two ways to hold the same layers, the first quicker."""
    none = np.zeros(2, dtype=np.int64)
    table = SimpleNamespace(part=none, size=none, told_apart=none, same=none, across=none)
    rest = dict.fromkeys(("depth", "i", "j", "recompute", "tail", "spent", "drawn"), none)
    columns = Columns(**rest, way=np.arange(2), forward=np.array([1, 2]), backward=none, wait=np.array(wait))

    assert len(_undominated(table, columns)) == stay


ASKED = {"seq_len": 2048, "global_batch": 16, "precision": "bf16", "headroom": TIGHT, "alternatives": 0}


@lru_cache(maxsize=1)
def quick() -> MixedPlan:
    """The quickest plan where nothing is limited: both parts in use."""
    found = planned(alternatives=0)
    assert len({stage.part for stage in found.stages}) == 2
    return found


def between(level: str, part: float) -> float:
    """Watts so far from what idling takes at least to what the quickest plan draws."""
    least = max(idle(it)[level] for it in CLUSTER.parts) if level != "site" else 0.0
    return least + part * (quick().level_watts[level] - least)


@pytest.mark.parametrize("level", ["device", "host", "site"])
def test_a_plan_waits_for_its_watts_and_is_verified(level):
    watts = between(level, 0.8)
    found = plan(MODEL, CLUSTER, limits={f"{level}-power": watts}, **ASKED)

    assert found.status == "optimal"
    assert quick().step_s < found.step_s
    assert found.level_watts[level] <= watts * (1 + 1e-9)
    assert found.level_watts["site"] == pytest.approx(found.watts["facility"])
    assert found.joules_per_step == pytest.approx(found.watts["facility"] * found.step_s)
    assert MixedPlan.from_json(found.to_json()) == found
    assert f"{level if level != 'site' else 'all sites'} " in found.summary()
    report = verify_mixed(found, MODEL, CLUSTER)
    assert report.verdict != "refused", report.reasons
    wrong = verify_mixed(found.model_copy(update={"step_s": 0.99 * found.step_s}), MODEL, CLUSTER)
    assert wrong.verdict == "refused"
    levels = found.model_copy(update={"level_watts": {**found.level_watts, level: 0.9 * watts}})
    assert "level_watts are" in "; ".join(verify_mixed(levels, MODEL, CLUSTER).reasons)


def test_a_part_is_left_unused_to_stay_under_the_cap():
    """Below what hosts of both parts draw idle: then one part has the whole model, and is said to draw what it does."""
    hosts = [part.hosts for part in CLUSTER.parts]
    both = sum(idle(part)["site"] for part in CLUSTER.parts)
    found = plan(MODEL, CLUSTER, power_cap=0.95 * both, **ASKED)

    assert hosts and sum(part.hosts_used > 0 for part in found.parts) == 1
    assert found.level_watts["site"] == pytest.approx(found.watts["facility"])
    assert found.level_watts["site"] <= 0.95 * both * (1 + 1e-9)
    assert verify_mixed(found, MODEL, CLUSTER).verdict != "refused"


def test_limits_on_watts_that_no_plan_keeps_are_refused_with_what_would_do():
    least = min(idle_w("site", part) for part in CLUSTER.parts)
    with pytest.raises(BadInput, match=r"limit site-power is .* idling; raise it above the least of these"):
        plan(MODEL, CLUSTER, power_cap=0.99 * least, **ASKED)
    with pytest.raises(BadInput, match="limit rack-power needs the hosts of a rack"):
        plan(MODEL, CLUSTER, limits={"rack-power": 1e6}, **ASKED)

    cap, most_s = between("site", 0.9), 1.001 * quick().step_s
    with pytest.raises(InfeasiblePlan, match=r"without site-power the quickest plan .* above the limit of") as refused:
        plan(MODEL, CLUSTER, limits={"step-time": most_s, "site-power": cap}, **ASKED)
    for repair in refused.value.repairs:
        limits = {"step-time": most_s, "site-power": cap} | {it["knob"]: it["to"] for it in repair["changes"]}
        assert plan(MODEL, CLUSTER, limits=limits, **ASKED).step_s == pytest.approx(repair["step_s"], rel=1e-6)
    assert {it["changes"][0]["knob"] for it in refused.value.repairs} == {"step-time", "site-power"}


def test_the_wait_is_told_apart_from_the_schedule():
    found = plan(MODEL, CLUSTER, limits={"host-power": between("host", 0.7)}, **ASKED)
    machine = Machine.of(MODEL, CLUSTER, found.workload)
    schedule_s = evaluate_mixed(machine, found.strategy()).step * machine.ticks.second

    assert found.waits_s == pytest.approx(found.step_s - schedule_s)
    assert found.waits_s > 0.01 * found.step_s
    for stage in stage_times(found, machine):
        assert stage.seconds["power cap"] == pytest.approx(found.waits_s)
        assert sum(stage.seconds.values()) == pytest.approx(found.step_s)


@given(st.lists(st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 1, 2), (4, 1, 4), (3, 1, 4), (4, 2, 8), (8, 2, 16)])),
       st.integers(1, 5))  # fmt: skip
@examples(40)
def test_stages_stand_on_hosts_alike_by_either_code(held, per_rack):
    """Domains of two hosts of two or four devices, or hosts that are domains; racks of any number of hosts."""
    for inside, hosts_inside in ((8, 2), (4, 2), (4, 1)):
        part = dataclasses.replace(small_cluster(inside, 9, hosts_inside=hosts_inside), hosts_per_rack=per_rack)
        some = [it for it in held if (it[1] == 1 and it[2] <= inside) or (it[1] > 1 and it[2] == it[1] * inside)]
        stages = [Standing(0, *it) for it in some]
        again = list(groups_again(MixedCluster("one", (part,), part.levels[0]), stages))
        for level in LEVELS[:3] if some else ():
            devices, watts = groups(level, part, [Held(*it) for it in some])
            other = [(*map(float, d), round(w, 6)) for name, d, w in again if name == level]
            mine = [(*row, round(w, 6)) for row, w in zip(devices.tolist(), watts.tolist(), strict=True)]
            assert sorted(mine) == sorted(other)
