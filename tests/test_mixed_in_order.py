"""Plans on mixed clusters for time and rent in order, verified; and what explains plans for rent and under limits."""

from __future__ import annotations

from functools import lru_cache

import pytest
from mixed_cases import MODEL
from test_mixed_rent import ASKED, priced, tight_and_cheap

from planner import plan
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, SearchGaveUp
from planner.mixed import plan as mixed_plan
from planner.mixed.result import MixedPlan

pytestmark = pytest.mark.usefixtures("steady")

CLUSTER = priced(1.0, 3.0)


@lru_cache(maxsize=4)
def planned(objective: str, **fields) -> MixedPlan:
    return plan(MODEL, CLUSTER, objective=objective, **fields, **ASKED)


ORDERS = [("time", "money", "step-time"), ("money", "time", "step-money")]


@pytest.mark.parametrize(("first", "second", "limit"), ORDERS)
def test_the_second_objective_is_solved_within_the_slack_of_the_first(first, second, limit):
    both, alone = planned(f"{first},{second}", slack="20%"), planned(first)
    most = 1.2 * alone.objective
    by_hand = plan(MODEL, CLUSTER, objective=second, limits={limit: most}, **ASKED)

    assert both.status == by_hand.status == "optimal"
    assert both.objective_name == second
    assert both.objective == pytest.approx(by_hand.objective, rel=1e-9)
    assert [(it.value, it.at_most) for it in both.proof.stages] == [(alone.objective, most), (both.objective, None)]
    assert f"stage 1  {first}: {first} " in both.summary()
    saved = MixedPlan.from_json(both.to_json())
    assert saved == both
    assert verify_mixed(saved, MODEL, CLUSTER).verdict == "verified"


def test_no_slack_leaves_the_best_of_the_first():
    both = planned("time,money")

    assert both.step_s == planned("time").step_s
    assert both.objective <= planned("time").usd_per_step


def with_stage(it: MixedPlan, **changes) -> dict:
    first, last = it.proof.stages
    return {"proof": it.proof.model_copy(update={"stages": [first.model_copy(update=changes), last]})}


def dearer_first(it: MixedPlan) -> dict:
    """All that follows from a first stage that says that no step takes less than 1.1 times what one takes."""
    value = 1.1 * it.proof.stages[0].value
    most = {"step-time": 1.05 * value}
    changed = with_stage(it, value=value, bound=value, at_most=1.05 * value)["proof"]
    return {"proof": changed.model_copy(update={"space": {**it.space, **most}})}


TAMPERED = {
    "a first stage without slack": (lambda it: with_stage(it, at_most=None), "stage 1 allows None"),
    "a first stage of another quantity": (lambda it: with_stage(it, minimises="energy"), "stage 1 minimises energy"),
    "a limit on training without tokens": (
        lambda it: {"options": {**it.options, "limits": {"train-time": 1e9}}},
        "limit train-time is on training",
    ),
    "too much slack": (lambda it: with_stage(it, at_most=9.0), "stage 1 allows 9.0"),
    "no stages": (lambda it: {"proof": it.proof.model_copy(update={"stages": []})}, "but the options ask for"),
    "unproved": (lambda it: with_stage(it, proved=False), "not every stage is proved"),
    "a quicker step than any": (dearer_first, "exists"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_stages_are_refused(name):
    change, says = TAMPERED[name]
    it = planned("time,money", slack="5%")
    report = verify_mixed(it.model_copy(update=change(it)), MODEL, CLUSTER)

    assert report.verdict == "refused"
    assert says in "; ".join(report.reasons)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda it: with_stage(it, at_most=None), "stage 1 of the proof has no at_most"),
        (lambda it: {"options": {**it.options, "speed": 1}}, "options has 'speed', which is no option"),
        (lambda it: {"options": {**it.options, "limits": {"speed": 1.0}}}, "no limit 'speed'"),
    ],
)
def test_tampered_plans_are_not_explained(change, says):
    it = planned("time,money", slack="20%")
    with pytest.raises(BadInput, match=says):
        it.model_copy(update=change(it)).explain(units=(), model=MODEL, cluster=CLUSTER)


@pytest.mark.parametrize("error", [SearchGaveUp("no time left"), KeyboardInterrupt()])
def test_without_time_for_the_second_the_plan_is_the_firsts(error, monkeypatch):
    solved = mixed_plan._solved

    def gives_up(machine, options, *rest):
        if options.objective == "money":
            raise error
        return solved(machine, options, *rest)

    monkeypatch.setattr(mixed_plan, "_solved", gives_up)
    found = plan(MODEL, CLUSTER, objective="time,money", slack=0.2, **ASKED)

    assert (found.objective_name, found.objective) == ("time", planned("time").objective)
    assert "not planned for money (" in found.notes[-1]
    assert verify_mixed(found, MODEL, CLUSTER).verdict == "verified"


def test_an_interrupt_of_the_first_does_not_begin_the_second():
    times = iter([True])

    def once(stage: str, best: float, bound: float) -> None:
        if best < float("inf") and next(times, False):
            raise KeyboardInterrupt

    found = plan(MODEL, CLUSTER, objective="time,money", slack=0.2, progress=once, **ASKED)

    assert (found.objective_name, found.status) == ("time", "feasible")
    assert "not planned for money (interrupt)" in found.notes[-1]


def test_a_second_search_that_is_cut_short_keeps_the_first_ones_plan_where_that_is_better(monkeypatch):
    """One that finds a dearer plan within the slack in its time; its bound is what is known."""
    solved, first = mixed_plan._solved, planned("time")

    def slow(machine, options, *rest):
        if options.objective != "money":
            return solved(machine, options, *rest)
        bound = solved(machine, options, *rest).bound
        found = solved(machine, options.model_copy(update={"pins": {"recompute": "full"}}), *rest)
        parts = [part.model_copy(update={"alone_bound": bound}) for part in found.parts]
        cut = {"status": "feasible", "bound": bound, "gap": 1 - bound / found.objective, "parts": parts}
        return found.model_copy(update=cut)

    monkeypatch.setattr(mixed_plan, "_solved", slow)
    both = plan(MODEL, CLUSTER, objective="time,money", slack=0.2, **ASKED)

    assert first.alone is None
    assert (both.stages, both.objective) == (first.stages, first.usd_per_step)
    assert (both.status, both.bound) == ("feasible", planned("time,money", slack="20%").bound)
    assert both.gap == pytest.approx(1 - both.bound / both.objective)


def test_a_part_without_a_price_is_refused_before_anything_is_searched(monkeypatch):
    monkeypatch.setattr(mixed_plan, "_solved", lambda *_: pytest.fail("searched"))
    with pytest.raises(BadInput, match="has no price above 0"):
        plan(MODEL, priced(1.0, 0.0), objective="time,money", **ASKED)


def test_what_more_buys_of_a_plan_for_rent_is_rent():
    it = tight_and_cheap()
    explained = it.explain(model=MODEL, cluster=CLUSTER, units=("memory",), more=1.0)
    row = {row.name: row for row in explained.bought}["limit step-time"]
    limit = it.options["limits"]["step-time"]
    loose = plan(MODEL, CLUSTER, objective="money", limits={"step-time": 2 * limit}, **ASKED)

    assert row.objective == pytest.approx(loose.objective) and row.gain_fraction > 0
    assert row.gain_fraction == pytest.approx(1 - loose.objective / it.objective)
    held = {one.limit: one.detail for one in explained.binding}["limit step-time"]
    assert f"{1e3 * it.step_s:.4g}"[:4] in held
    assert "USD" in explained.summary()


def test_a_question_about_a_plan_for_rent_is_answered_in_rent():
    it = tight_and_cheap()
    answer = it.why_not("recompute=full", model=MODEL, cluster=CLUSTER)
    quickest = plan(MODEL, CLUSTER, pins="recompute=full", **ASKED)

    assert (answer.verdict, len(answer.repairs)) == ("ruled out", 1)
    assert f"the least step-time of any plan is {1e3 * quickest.step_s:.2f} ms" in answer.reason
    without = it.why_not("unused=part-1", model=MODEL, cluster=CLUSTER)
    assert without.verdict == "ruled out" and "step-time" in without.reason


def test_the_last_question_of_several_is_asked_again():
    it, most = planned("time,money", slack="20%"), 1.2 * planned("time").objective
    answer = it.why_not("recompute=full", model=MODEL, cluster=CLUSTER)
    by_hand = plan(MODEL, CLUSTER, objective="money", limits={"step-time": most}, pins="recompute=full", **ASKED)

    assert (answer.verdict, answer.other.objective) == ("worse", by_hand.objective)
    assert it.why_not("unused=part-1", model=MODEL, cluster=CLUSTER).verdict == "ruled out"
