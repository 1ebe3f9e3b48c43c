"""Why not: the best plan with pins against the chosen one, sums that close, or the rule or bytes that rule it out."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import PINS, clusters, examples, models

from planner import plan
from planner.errors import BadInput, InfeasiblePlan
from planner.explanations.why_not import why_not
from planner.result import Plan

WORK = {"seq_len": 1024, "global_batch": 8, "alternatives": 0}


@pytest.fixture(scope="module")
def chosen() -> Plan:
    return plan("llama-3.1-8b", "dgx-h100:2", seq_len=4096, global_batch=64, alternatives=0)


@examples(12)
@given(
    models(most_layers=4), clusters(most_devices=6), st.sampled_from(["time", "energy", "money"]),
    st.lists(st.sampled_from(PINS), min_size=1, max_size=2, unique_by=lambda pin: pin[0]),
)  # fmt: skip
def test_the_answer_is_what_planning_with_the_pins_gives(model, cluster, objective, pins):
    it = plan(model, cluster, objective=objective, **WORK)
    try:
        pinned = plan(model, cluster, objective=objective, pins=dict(pins), **WORK)
    except (BadInput, InfeasiblePlan) as error:
        refused(it, dict(pins), error, model=model, cluster=cluster)
        return
    answer = it.why_not(dict(pins), model=model, cluster=cluster)

    assert answer.other is not None
    assert answer.other.objective == pinned.objective
    assert answer.verdict in ("held", "worse")
    assert answer.loses_fraction == pytest.approx(pinned.objective / it.objective - 1, abs=1e-12)
    assert answer.loses_fraction >= -1e-12
    closes(answer)


def refused(it: Plan, pins: dict, error: Exception, **inputs: object) -> None:
    """What planning refuses is ruled out, or is no question at all."""
    try:
        answer = it.why_not(pins, **inputs)
    except BadInput as other:
        assert str(other) == str(error)
        return
    assert answer.verdict == ("illegal" if isinstance(error, BadInput) else "ruled out")
    assert answer.other is None


def closes(answer) -> None:
    """Terms of time sum to the difference of the steps, classes of memory to the fullest devices'."""
    step = answer.other.step_s - answer.chosen.step_s
    assert math.fsum(pair.difference for pair in answer.time) == pytest.approx(step, abs=1e-9 * answer.chosen.step_s)
    for it, side in ((answer.chosen, "chosen"), (answer.other, "other")):
        fullest = max(stage.need_bytes for stage in it.memory)
        assert math.fsum(getattr(pair, side) for pair in answer.memory) == pytest.approx(fullest)
        consumers = [getattr(pair, side) for pair in answer.power]
        assert math.fsum(consumers[:-1]) == pytest.approx(consumers[-1])


def test_a_term_that_only_one_plan_has_counts(chosen: Plan):
    answer = chosen.why_not("tp=8,pp=2")
    terms = {pair.name: pair for pair in answer.time}

    assert answer.verdict == "worse"
    assert terms["tensor parallel"].chosen == 0.0 < terms["tensor parallel"].other
    assert answer.other.strategy.tp == 8
    assert answer.other.strategy.pp == 2
    assert {pair.name for pair in answer.spent} == {"energy", "money"}
    closes(answer)


def test_what_the_plan_has_needs_no_search(chosen: Plan):
    answer = chosen.why_not({"dp": 16, "tp": 1}, time_limit_s=1e-6)

    assert answer.verdict == "held"
    assert answer.loses_fraction == 0.0
    assert "the plan has it" in answer.summary()


@pytest.mark.parametrize(
    ("pins", "says"),
    [
        ("tp=3", ("tp=3", "32 attention heads", "1, 2, 4, 8")),
        ("pp=33", ("33", "32 layers")),
        ("ep=2", ("no experts",)),
        ("micro_batch=5,tp=8", ("global batch of 64", "1, 2, 4")),
        ("devices=17", ("has 16",)),
        ("tp=8,pp=16", ("tp*pp = 8*16 = 128", "has 16 devices")),
    ],
)
def test_an_illegal_pin_is_answered_with_the_rule(chosen: Plan, pins: str, says: tuple[str, ...]):
    answer = chosen.why_not(pins)

    assert answer.verdict == "illegal"
    assert answer.other is None
    assert all(part in answer.reason for part in says), answer.reason


@pytest.mark.parametrize(
    ("pins", "says"),
    [
        ("zero=0,dp_shard=2", "shards nothing"), ("dp_shard=8,dp=4", "does not divide"),
        ("tp=4,tp=8", "given twice"), ("speed=9", "cannot pin 'speed'"), ("", "at least one pin"),
    ],
)  # fmt: skip
def test_pins_that_contradict_each_other_are_no_question(chosen: Plan, pins: str, says: str):
    with pytest.raises(BadInput) as error:
        chosen.why_not(pins)
    assert says in str(error.value)


def test_what_memory_rules_out_is_told_in_bytes():
    it = plan("llama-3.1-70b", "dgx-h100:4", alternatives=0)
    answer = it.why_not("dp=32,recompute=none")

    assert answer.verdict == "ruled out"
    assert math.fsum(answer.leanest["classes"].values()) == pytest.approx(answer.leanest["need_bytes"])
    assert answer.leanest["need_bytes"] > answer.leanest["limit_bytes"]
    assert answer.repairs
    assert "leaves 80.8 GB" in answer.summary()


def test_pins_of_the_plan_hold_unless_named_anew():
    it = plan("llama-3.1-8b", "dgx-h100:2", seq_len=4096, global_batch=64, pins="tp=2,recompute=full", alternatives=0)
    answer = it.why_not("tp=4")

    assert answer.replaced == {"tp": 2}
    assert answer.other.strategy.tp == 4
    assert {kind for stage in answer.other.strategy.recompute for _, kind in stage} == {"full"}
    assert "in place of the plan's own tp=2" in answer.summary()


def test_a_plan_that_was_not_proved_may_be_beaten(chosen: Plan):
    """A plan of tp 8 that nobody proved: the best with tp 1 is better, and is said to be."""
    worse = chosen.why_not("tp=8").other
    unproved = worse.model_copy(update={"status": "feasible", "bound": chosen.bound, "options": chosen.options})
    answer = why_not(unproved, "tp=1")

    assert answer.verdict == "better"
    assert "it is better" in answer.summary()
    assert answer.other.objective == chosen.objective


def test_of_several_objectives_the_last_is_compared_within_what_the_others_may_take():
    it = plan("tiny-llama", "cpu-local:2", objective="time,energy", slack="10%", alternatives=0)
    answer = it.why_not("tp=2")

    assert answer.other.options["objective"] == "energy"
    assert answer.other.options["limits"] == {"step-time": it.proof.stages[0].at_most}
    assert answer.other.step_s <= it.proof.stages[0].at_most * (1 + 1e-9)
    assert answer.verdict == "worse"
    assert answer.loses_fraction == answer.other.joules_per_step / it.joules_per_step - 1


def test_too_little_time_is_no_answer(chosen: Plan):
    answer = chosen.why_not("tp=2,micro_batch=1", time_limit_s=1e-4)

    assert answer.verdict == "not found"
    assert "raise the time limit" in answer.reason


def test_the_answer_is_told_as_text_and_as_json(chosen: Plan):
    answer = chosen.why_not("tp=8")
    text, record = answer.summary(), json.loads(json.dumps(answer.as_json(), allow_nan=False))

    for part in ("why not tp=8", "seconds a step", "memory of the fullest device", "difference", "energy"):
        assert part in text
    assert [pair["name"] for pair in record["time"]] == [pair.name for pair in answer.time]
    assert Plan.from_json(json.dumps(record["other"])) == answer.other
    assert "why not tp=8" in answer._repr_html_()
