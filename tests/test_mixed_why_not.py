"""Why not that one, of mixed plans: the best plan with pins or parts, term by term, or what rules it out."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from mixed_cases import ALONE, CLUSTER, MODEL, TIGHT, planned
from strategies import small_cluster
from test_mixed_search import mixed_of

from planner import plan
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, SearchGaveUp
from planner.explanations.mixed_again import MixedQuestion
from planner.explanations.mixed_why_not import MixedWhyNot
from planner.mixed.most_layers import StageHolds, _filled, _most_by_devices
from planner.mixed.result import MixedPlan

pytestmark = pytest.mark.usefixtures("steady")


def asked(it: MixedPlan, pins: str, **options) -> MixedWhyNot:
    return it.why_not(pins, model=MODEL, cluster=CLUSTER, **options)


def said(answer: MixedWhyNot) -> str:
    """The answer's text without line breaks."""
    return " ".join(answer.summary().split())


def test_pins_give_the_plan_that_planning_with_them_gives():
    answer, cold = asked(planned(), "recompute=full"), planned(pins="recompute=full")

    assert answer.verdict == "worse"
    assert answer.other.objective == cold.objective
    assert answer.loses_fraction == pytest.approx(cold.objective / planned().objective - 1)
    assert answer.loses_at_least == pytest.approx(answer.loses_fraction)
    assert "the best plan with it takes" in answer.summary()
    assert json.loads(json.dumps(answer.as_json()))["verdict"] == "worse"


def test_terms_sum_to_both_steps_and_bytes_to_the_fullest_stage():
    answer = asked(planned(), "recompute=full")
    for side, it in (("chosen", answer.chosen), ("other", answer.other)):
        assert math.fsum(getattr(pair, side) for pair in answer.time) == pytest.approx(it.step_s)
        fullest = max(it.stages, key=lambda stage: stage.need_bytes / stage.limit_bytes)
        assert math.fsum(getattr(pair, side) for pair in answer.memory) == pytest.approx(fullest.need_bytes)
    recompute = next(pair for pair in answer.time if pair.name == "recompute")
    assert recompute.other > recompute.chosen


def test_what_the_plan_has_is_held():
    assert asked(planned(), "tp=1,cp=1").verdict == "held"
    assert asked(planned(), "used=a100-80-sxm+part-1").verdict == "held"
    assert asked(planned(**ALONE), "unused=part-0,zero=0").verdict == "held"
    assert "the plan has it (2 + 1 + 3 layers on 1 x a100" in asked(planned(), "tp=1").summary()


def test_without_a_part_the_rest_is_planned_by_itself():
    answer = asked(planned(), "unused=part-0")
    cold = plan(
        MODEL, CLUSTER.parts[1], seq_len=2048, global_batch=16, precision="bf16", headroom=TIGHT, alternatives=0
    )

    assert answer.verdict == "worse"
    assert answer.other.objective == cold.objective
    assert "runs on    part-1 alone" in answer.summary()


def test_a_part_that_is_left_unused_costs_more_in_use():
    """One sequence: nothing to divide. The plan that uses the A100s is a legal pipeline, or theirs alone."""
    chosen = planned(**ALONE)
    answer = asked(chosen, "used=part-0")

    assert chosen.alone is not None
    assert answer.verdict == "worse"
    assert any(stage.part == 0 for stage in answer.other.stages)
    assert verify_mixed(answer.other, MODEL, CLUSTER).ok
    assert answer.other.objective <= asked(chosen, "unused=part-1").other.objective


def test_what_is_the_best_of_one_search_is_not_said_to_be_the_best_there_is():
    """The best plan on the A100 alone is proved; pipelines that use it beside the H100s are quicker."""
    cluster = mixed_of(small_cluster(1, base="dgx-a100"), small_cluster(4, base="dgx-h100"))
    chosen = plan(MODEL, cluster, seq_len=2048, global_batch=4, precision="bf16")
    answer = chosen.why_not("used=part-0", model=MODEL, cluster=cluster)

    assert (answer.other.status, answer.loses_at_least < answer.loses_fraction) == ("optimal", True)
    assert f"the best plan found with it takes {1e3 * answer.other.objective:.3f} ms" in said(answer)
    assert f"more (at least {answer.loses_at_least:.2%}, proved)" in said(answer)


def test_what_is_better_than_a_pinned_plan_was_excluded_by_its_pin():
    answer = asked(planned(pins="recompute=full"), "recompute=selective")

    assert answer.verdict == "better"
    assert "the plan's own recompute=full excluded it" in said(answer)
    unpinned = said(dataclasses.replace(answer, replaced={}))
    assert "its search had not come that far" in unpinned
    assert "start the next one" not in unpinned


def test_what_rules_pins_out_is_written_out():
    illegal = asked(planned(), "tp=3")
    assert (illegal.verdict, illegal.other) == ("illegal", None)
    assert "tp=3 is not legal in any stage; legal: 1, 2" in illegal.reason

    wide = asked(planned(), "tp=2,zero=1")
    assert wide.verdict == "ruled out"
    assert "a stage with tp=2, zero=1 takes 4 devices or more" in wide.reason
    assert "part-0 has 2 in domains of 2, part-1 has 1 in domains of 1" in wide.reason

    used = asked(planned(), "tp=2,zero=1,used=part-0")
    assert used.reason == wide.reason
    assert wide.reason.startswith("no stage has a place: ")
    assert "its dp divides the global batch of 1;" in asked(planned(**ALONE), "tp=1,zero=1,cp=1").reason

    full = asked(planned(headroom=0.9785), "recompute=none,tp=1,zero=0")
    held = full.leanest["stages"]
    assert full.verdict == "ruled out"
    total = sum(one["layers_per_stage"] * one["stages"] for one in held)
    assert f"at most {total} of 6 layers have room. first on " in full.reason
    for one in held:
        room = one["limit_bytes"] - one["fixed_bytes"]
        assert one["layers_per_stage"] * one["layer_bytes"] <= room < (one["layers_per_stage"] + 1) * one["layer_bytes"]


@pytest.mark.parametrize(
    ("pins", "says"),
    [
        ("", "at least one pin"),
        ("pp=2", "pp=2 cannot be pinned on a mixed cluster"),
        ("speed=1", "cannot pin 'speed'"),
        ("unused=v100", "'v100' names no part of the plan; there are part-0, part-1"),
        ("used=part-0,unused=part-0", "part-0 cannot be used and unused"),
        ("used=part-0,unused=part-1", "one at a time"),
        ("unused=part-0+part-1", "leaves nothing to plan on"),
        ("used=+", "used='+' names no part; there are part-0, part-1"),
        ({"unused": ""}, "unused='' names no part"),
    ],
)
def test_bad_questions_are_refused(pins, says):
    with pytest.raises(BadInput, match=says.replace("+", r"\+")):
        asked(planned(**ALONE), pins)


def test_what_is_known_of_parts_does_not_hold_where_a_pin_gave_way(monkeypatch):
    """A pinned plan's bound of a part alone says nothing about plans without the pin."""

    def gives_up(*_, **__):
        raise SearchGaveUp("no time")

    monkeypatch.setattr(MixedQuestion, "again", gives_up)
    replaced = asked(planned(pins="recompute=full"), "recompute=none,used=part-1")
    kept = asked(planned(pins="recompute=full"), "tp=1,used=part-1")

    assert replaced.loses_at_least == -1.0
    assert kept.loses_at_least > -1.0


def test_another_cluster_is_not_the_plans():
    with pytest.raises(BadInput, match="has digest"):
        planned().why_not("tp=2", model=MODEL, cluster=CLUSTER.with_wider_join(2.0))


def test_stages_of_several_sizes_fill_a_part_together():
    """Three devices: stages alike hold 10 or 9 layers, one of each size 13."""
    sizes = [StageHolds("inner", "a", "w", devices, 1, 0, 1, layers, layers) for devices, layers in ((2, 10), (1, 3))]
    most = _most_by_devices(sizes, 3)

    assert [layers for layers, _ in most] == [0, 3, 10, 13]
    assert [(one.devices, one.stages) for one in _filled(most, 3)] == [(2, 1), (1, 1)]
    assert [(one.devices, one.stages) for one in _filled(_most_by_devices(sizes[1:], 3), 3)] == [(1, 3)]
