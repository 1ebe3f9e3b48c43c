"""Explanations: what more buys is what planning on the changed cluster gives, and more of anything never hurts."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import clusters, examples, models, with_memory

from planner import plan
from planner.errors import BadInput, InfeasiblePlan
from planner.explanations.again import question_of
from planner.explanations.differences import decided_otherwise
from planner.explanations.explain import UNITS, Bought, Explanation, explain
from planner.result import Plan
from planner.strategy_record import OffloadRecord
from topologies.enlarged import with_more_memory, with_more_scale_out_bandwidth, with_more_scale_up_bandwidth
from topologies.ready import read_cluster
from topologies.resized import resized

WORK = {"seq_len": 1024, "global_batch": 8, "alternatives": 0}
LARGER = {
    "memory": with_more_memory, "scale-up bandwidth": with_more_scale_up_bandwidth,
    "scale-out bandwidth": with_more_scale_out_bandwidth,
}  # fmt: skip


def row(it: Explanation, name: str) -> Bought:
    return next(row for row in it.bought if row.name == name)


@pytest.fixture(scope="module")
def tight() -> Plan:
    """A plan that recomputes for want of memory, on two levels."""
    return plan("llama-3.1-8b", "dgx-a100:2", seq_len=8192, global_batch=64, headroom=0.6, alternatives=0)


@pytest.fixture(scope="module")
def explained(tight: Plan) -> Explanation:
    return tight.explain()


@examples(3)
@given(
    models(most_layers=4), clusters(most_devices=8), st.sampled_from(["time", "energy", "money"]), st.floats(0.02, 3)
)
def test_a_row_is_what_planning_from_scratch_on_the_changed_cluster_gives(model, cluster, objective, more):
    it = plan(model, cluster, objective=objective, **WORK)
    explanation = it.explain(model=model, cluster=cluster, more=more)

    for bought in explanation.bought:
        if bought.name == "devices":
            hosts = int(bought.change.split(" -> ")[1].split()[0])
            changed = resized(cluster, hosts)
        else:
            changed = LARGER[bought.name](cluster, 1 + more)
        cold = plan(model, changed, objective=objective, **WORK)
        assert bought.status == "kept" or bought.objective == cold.objective
        assert bought.status != "kept" or cold.objective > it.objective
        assert bought.gain_fraction == pytest.approx(max(0.0, 1 - cold.objective / it.objective), abs=1e-12)
        assert bought.gain_at_least - 1e-12 <= bought.gain_fraction <= bought.gain_at_most + 1e-12


@pytest.mark.slow
@examples(9)
@given(models(most_layers=4), clusters(most_devices=4), st.sampled_from(sorted(LARGER)), st.floats(0.5, 1.0))
def test_more_of_anything_never_hurts(model, cluster, name, memory):
    """Memory and bandwidths for every objective, where memory is tight; the larger, the better or the same."""
    name = name if len(cluster.levels) > 1 else "memory"
    need = max(stage.need_bytes for stage in plan(model, cluster, **WORK).memory)
    cluster = with_memory(cluster, need * memory / 0.95)
    for objective in ("time", "energy", "money"):
        found = []
        for factor in (1.0, 1.3, 4.0):
            try:
                found.append(plan(model, LARGER[name](cluster, factor), objective=objective, **WORK).objective)
            except InfeasiblePlan:
                found.append(math.inf)
        assert found == sorted(found, reverse=True)


def test_where_memory_binds_more_of_it_pays(tight: Plan, explained: Explanation):
    assert any(limit.limit == "memory" for limit in tight.binding)
    memory = row(explained, "memory")
    assert memory.status == "optimal"
    assert memory.gain_at_least > 0
    assert memory.decided_otherwise
    cold = plan("llama-3.1-8b", with_more_memory(read_cluster("dgx-a100:2"), 1.1), seq_len=8192, global_batch=64,
                headroom=0.6, alternatives=0)  # fmt: skip
    assert memory.objective == cold.objective
    assert memory.gain_fraction == pytest.approx(1 - cold.objective / tight.objective)
    assert memory.strategy == cold.strategy


def test_another_layout_for_little_is_doubtful_and_the_same_layout_is_not():
    """A tenth more memory makes it ZeRO-3 with larger micro-batches, for less than the models can tell apart."""
    it = plan("llama-3.1-8b", "dgx-h100:2", seq_len=4096, global_batch=64, alternatives=0)
    explanation = it.explain()
    memory, scale_up = row(explanation, "memory"), row(explanation, "scale-up bandwidth")

    assert 0 < memory.gain_fraction < 0.01
    assert not memory.told_apart
    assert "another layout" in explanation.summary()
    assert scale_up.decided_otherwise == ()
    assert scale_up.told_apart


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offloads": [OffloadRecord(tensors="optimizer", tier="dram", share=1.0)]},
         "offload nothing -> all of optimizer to dram"),
        ({"clocks": [0.9]}, "clocks full -> 0.9 of the full clock"),
    ],
)  # fmt: skip
def test_offloads_and_clocks_are_decisions(tight: Plan, change: dict, words: str):
    assert decided_otherwise(tight.strategy, tight.strategy.model_copy(update=change)) == (words,)


def test_layers_that_offload_are_a_decision(tight: Plan):
    sizes = tight.strategy.layers_per_stage
    offloads = [OffloadRecord(tensors="optimizer", tier="dram", share=1.0)]
    every = tight.strategy.model_copy(update={"offloads": offloads})
    some = every.model_copy(update={"offloaded": [size - 1 for size in sizes]})

    (words,) = decided_otherwise(every, some)
    assert words.startswith("offload all of optimizer to dram -> optimizer of ")


def test_gains_are_not_extrapolated(tight: Plan, explained: Explanation):
    """A tenth more bandwidth is worth less than a tenth of the step, and not a tenth of its terms' share either."""
    shares = {term.name: term.seconds / tight.step_s for term in tight.time}
    for name in ("scale-up bandwidth", "scale-out bandwidth"):
        assert row(explained, name).gain_fraction < 0.1 * (1 - shares["compute"])


def test_a_power_cap_is_a_unit_where_one_is_given():
    it = plan("tiny-llama", "cpu-local:2", power_cap="250 W", alternatives=0)
    looser = it.explain(more=0.2)
    cold = plan("tiny-llama", "cpu-local:2", power_cap=300.0, global_batch=it.workload.global_batch, alternatives=0)

    assert row(looser, "power cap").objective == cold.objective
    assert row(looser, "power cap").gain_fraction > 0
    assert not any("power cap" in why for why in looser.left_out)


@pytest.mark.slow
def test_every_limit_is_a_unit_and_so_is_what_earlier_objectives_may_take():
    asked = {"objective": "time,energy", "limits": "device-power=25 W", "alternatives": 0, "clocks": True}
    it = plan("tiny-llama", "cpu-local:2", **asked)
    first, last = it.proof.stages
    found = it.explain(more=0.5)
    looser = {"step-time": 1.5 * first.at_most, "device-power": 25.0}
    cold = plan("tiny-llama", "cpu-local:2", objective="energy", limits=looser, alternatives=0, clocks=True)

    assert row(found, "limit step-time").objective == pytest.approx(cold.objective, rel=1e-9)
    assert row(found, "limit step-time").gain_fraction > 0
    assert row(found, "limit device-power").objective <= last.value


def test_what_cannot_be_had_is_said():
    it = plan("tiny-llama", "cpu-local", pins={"devices": 4}, alternatives=0)
    left_out = it.explain().left_out

    assert {why.split(":")[0] for why in left_out} == {"scale-out bandwidth", "devices", "power cap"}
    assert any("devices=4 is pinned" in why for why in left_out)


def test_where_one_more_host_stays_idle_twice_the_hosts_are_asked():
    """A batch of 16 does not go over 3 hosts of 4 devices any better than over 2."""
    it = plan("tiny-llama", "cpu-local:2", global_batch=16, alternatives=0)
    rows = [row for row in it.explain().bought if row.name == "devices"]

    assert [row.gain_fraction > 0 for row in rows] == [False, True]
    assert "2 -> 4 hosts" in rows[1].change


def test_little_time_says_so_and_stays_true(tight: Plan):
    for bought in tight.explain(time_limit_s=0.03).bought:
        assert bought.status == "optimal" or bought.gain_at_most >= bought.gain_at_least
        assert bought.objective <= tight.objective
        assert bought.bound <= bought.objective


def test_the_answer_is_told_as_text_and_as_json(tight: Plan, explained: Explanation):
    text, record = explained.summary(), json.loads(json.dumps(explained.as_json(), allow_nan=False))

    for name in ("where the time goes", "which limits bind", "each planned again", *(b.name for b in explained.bought)):
        assert name in text
    assert math.fsum(term["seconds"] for term in record["time"]) == pytest.approx(tight.step_s)
    assert [row["name"] for row in record["bought"]] == [row.name for row in explained.bought]
    assert "buys most" in explained._repr_html_()


def test_every_unit_is_a_row_or_left_out(explained: Explanation):
    named = {row.name for row in explained.bought} | {why.split(":")[0] for why in explained.left_out}
    assert named == set(UNITS)


@pytest.mark.parametrize("more", [0.0, -0.1, 1e9, math.nan])
def test_a_step_out_of_range_is_refused(tight: Plan, more: float):
    with pytest.raises(BadInput, match="more="):
        explain(tight, more=more)


def test_another_plan_s_inputs_are_refused(tight: Plan):
    with pytest.raises(BadInput, match="the cluster 'dgx-a100:2' has digest"):
        question_of(tight, cluster="dgx-a100:3")
    with pytest.raises(BadInput, match="only estimated"):
        question_of(tight.model_copy(update={"status": "estimate"}))
    with pytest.raises(BadInput, match="the calibration has digest"):
        question_of(tight.model_copy(update={"proof": tight.proof.model_copy(update={"cost_model_digest": "0" * 16})}))
