"""What a reader sees: nothing left out, nothing twice, at any width."""

from __future__ import annotations

import re

import pytest
from plans import make_strategy

from planner.api import plan
from planner.explanations.mine import mine_and_plan
from planner.report import as_text, degrees_text, plan_view, recompute_text

PLAN = plan("tiny-llama", "cpu-local")
WORK = {"seq_len": None, "global_batch": None, "precision": None, "optimizer": "adam"}


def test_the_summary_holds_every_number_of_the_plan():
    text = PLAN.summary()

    assert PLAN.model.name in text
    assert degrees_text(PLAN.strategy) in text
    assert f"MFU {PLAN.model_flop_utilisation:.1%}" in text
    for term in PLAN.time:
        assert re.search(rf"{term.name} +{term.seconds:.3f}", text)
    for name in PLAN.memory[0].classes:
        assert re.search(rf"^ +{name} +[0-9.]+", text, re.MULTILINE)
    for note in PLAN.notes:
        assert note.split()[0] in text


def test_the_terms_of_time_add_up():
    assert sum(term.seconds for term in PLAN.time) == pytest.approx(PLAN.step_s, rel=1e-9)


@pytest.mark.parametrize("width", [40, 80, 110, 200])
def test_no_line_is_wider_than_the_terminal(width: int):
    lines = as_text(plan_view(PLAN), width).splitlines()

    assert all(len(line) <= width and line == line.rstrip() for line in lines)


def test_degrees_of_one_are_left_out():
    assert degrees_text(make_strategy()) == "one device"
    assert degrees_text(make_strategy(tp=2, pp=2, dp_shard=3, zero=1)) == "tp 2 x pp 2 x dp 3"
    assert degrees_text(make_strategy(dp_shard=4, ep=2, zero=1)) == "dp 4; experts ep 2 x edp 2"


def test_recompute_is_counted_by_kind_and_stage():
    runs = [[(2, "full"), (1, "none")], [(1, "none")]]

    assert recompute_text(make_strategy(pp=2, layers_per_stage=[3, 1], recompute=runs)) == "2 layers full (stage 0)"
    assert recompute_text(make_strategy()) == "none"
    assert recompute_text(make_strategy(recompute="selective")) == "4 layers selective"


def test_mine_and_the_plan_have_the_same_lines():
    found = mine_and_plan("tiny-llama", "cpu-local", "pp=4", **WORK)
    lines = as_text(found.view(), 120).splitlines()

    assert any(re.match(r" +step, s +[0-9.]+ +[0-9.]+ +[0-9.]+$", line) for line in lines)
    assert any(re.match(r" +pipeline bubble +[0-9.]+ +0.000$", line) for line in lines)
    assert any(re.match(r" +fits +yes +yes$", line) for line in lines)
    assert found.mine.step_s >= found.plan.step_s


def test_the_plan_against_itself_is_1_in_every_line():
    found = mine_and_plan("tiny-llama", "cpu-local", "dp=4", **WORK)
    words = "dp=4,zero={zero},micro_batch={micro_batch}".format(**found.plan.strategy.model_dump())
    again = mine_and_plan("tiny-llama", "cpu-local", words, **WORK)

    ratios = re.findall(r"[0-9.]+ +[0-9.]+ +([0-9.]+)$", as_text(again.view(), 120), re.MULTILINE)
    assert len(ratios) > 5
    assert set(ratios) == {"1.00"}
