"""The front of time and rent on a mixed cluster: its ends, what it covers, what it says when time is short."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from command import meshwright
from mixed_cases import MODEL
from test_mixed_rent import ASKED, priced

from planner import pareto, plan
from planner.checks.verify_mixed import verify_mixed
from planner.errors import BadInput, InfeasiblePlan, SearchGaveUp
from planner.fronts import mixed
from planner.fronts.mixed import MixedFront

pytestmark = pytest.mark.usefixtures("steady")

CLUSTER = priced(1.0, 4.0)
"""Two A100s are slower than an H100, and cheaper by far."""
WORK = {name: value for name, value in ASKED.items() if name != "alternatives"}


@pytest.fixture(scope="module")
def front() -> MixedFront:
    return pareto(MODEL, CLUSTER, **WORK)


def test_the_ends_are_the_quickest_and_the_cheapest(front):
    quick, cheap = (plan(MODEL, CLUSTER, objective=name, **ASKED) for name in ("time", "money"))

    assert front.points[0].step_s == pytest.approx(quick.step_s)
    assert front.points[-1].usd_per_step == pytest.approx(cheap.usd_per_step)
    assert len(front.points) > 2
    for one, other in itertools.pairwise(front.points):
        assert one.step_s < other.step_s and one.usd_per_step > other.usd_per_step
    assert all(verify_mixed(it, MODEL, CLUSTER).verdict == "verified" for it in front.points)


def uncovered(front: MixedFront, tolerance: float) -> list[float]:
    """Limits on a step whose cheapest plan no point stands for."""
    ends = front.points[0].step_s, front.points[-1].step_s
    found = []
    for most_s in np.linspace(*ends, 12).tolist():
        other = plan(MODEL, CLUSTER, objective="money", limits={"step-time": most_s}, **ASKED)
        stands = [
            it.step_s <= other.step_s * (1 + tolerance) + 1e-12 and it.objective <= other.objective * (1 + 1e-9)
            for it in front.points
        ]
        found += [] if any(stands) else [most_s]
    return found


def test_every_plan_has_a_point_that_stands_for_it(front):
    assert (front.proved, front.tolerance) == (True, 0.01)
    assert not uncovered(front, 0.01)


@pytest.mark.slow
def test_a_point_that_is_missing_is_missed(front):
    fewer = front.model_copy(update={"points": [front.points[0], front.points[-1]]})
    assert uncovered(fewer, 0.01)


@pytest.mark.slow
def test_a_wider_tolerance_takes_fewer_points(front):
    wide = pareto(MODEL, CLUSTER, tolerance=1.0, **WORK)

    assert len(wide.points) < len(front.points)
    assert not uncovered(wide, 1.0)


def test_limits_cut_the_front(front):
    middle = front.points[1]
    cut = pareto(MODEL, CLUSTER, limits={"step-time": middle.step_s}, **WORK)
    assert [it.objective for it in cut.points] == pytest.approx([it.objective for it in front.points[:2]])
    with pytest.raises(InfeasiblePlan, match="the least step-time"):
        pareto(MODEL, CLUSTER, limits={"step-time": 0.9 * front.points[0].step_s}, **WORK)


def test_where_time_ran_out_is_said(front, monkeypatch):
    asked = []

    def few(*given, objective, **options):
        asked.append(objective)
        if len(asked) > 3:
            raise SearchGaveUp("no time left")
        return plan(*given, objective=objective, **options)

    monkeypatch.setattr(mixed, "plan", few)
    found = pareto(MODEL, CLUSTER, **WORK)

    assert asked == ["money", "time", "money", "money"]
    assert not found.proved
    assert found.open_below_s == pytest.approx(found.points[1].step_s / 1.01)
    known = [front.points[0], *front.points[1 - len(found.points) :]]
    assert [it.step_s for it in found.points] == [it.step_s for it in known]
    assert f"every plan of {found.open_below_s:.6g} s and more" in found.summary()


def test_an_interrupt_of_the_first_plan_begins_no_other(monkeypatch):
    """Of pipelines, and of parts that were not looked at, no bound is known then."""
    asked = []

    def ended(*given, objective, **options):
        asked.append(objective)
        found = plan(*given, objective=objective, **options)
        notes = ["ended by the interrupt after 0.10 s, the plan is the best so far"]
        return found.model_copy(update={"status": "feasible", "bound": 0.0, "gap": 1.0, "notes": notes})

    monkeypatch.setattr(mixed, "plan", ended)
    found = MixedFront.from_json(pareto(MODEL, CLUSTER, **WORK).to_json())

    assert asked == ["money"]
    assert (len(found.points), found.proved, found.tolerance) == (1, False, None)
    assert "nothing is proved about plans that were not looked at" in found.statement
    assert "Ctrl-C came first" in found.summary()


@pytest.mark.parametrize("error", [SearchGaveUp("no time left"), KeyboardInterrupt()])
def test_without_the_quickest_there_is_the_cheapest(front, error, monkeypatch):
    def only_money(*given, objective, **options):
        if objective == "time":
            raise error
        return plan(*given, objective=objective, **options)

    monkeypatch.setattr(mixed, "plan", only_money)
    found = pareto(MODEL, CLUSTER, **WORK)

    assert [it.step_s for it in found.points] == [front.points[-1].step_s]
    assert (found.proved, found.open_below_s) == (False, front.points[-1].step_s)


def without_rent(point: dict) -> dict:
    return {**point, "usd_per_step": None, "objective": point["step_s"], "objective_name": "time"}


@pytest.mark.parametrize(
    ("points", "says"),
    [(lambda them: [], "points"), (lambda them: [*map(without_rent, them)], "no usd_per_step")],
)
def test_fronts_that_cannot_be_shown_are_not_read(front, points, says):
    saved = json.loads(front.to_json())
    with pytest.raises(BadInput, match=says):
        MixedFront.from_json(json.dumps({**saved, "points": points(saved["points"])}))


def test_json_table_and_picture(front):
    assert MixedFront.from_json(front.to_json()) == front
    assert "hosts in use by part" in front.summary() and "1 of 1" in front.summary()
    axes = front.plot()
    assert len(axes.lines[0].get_xdata()) == len(front.points)
    with pytest.raises(BadInput, match="not a front"):
        MixedFront.from_json(json.dumps({**json.loads(front.to_json()), "points": [{}]}))


def test_the_command_plans_a_front_of_parts():
    words = ["-c", "dgx-h100:1+dgx-a100:1", "--global-batch", "16", "--tokens", "1B", "--pin", "zero=1"]
    found = MixedFront.from_json(meshwright("pareto", "llama-3.2-1b", *words, "--json").out)

    assert found.points and found.kind == "mixed"
    assert "training" in found.summary()

    drawn = max(it.level_watts["site"] for it in found.points)
    capped = MixedFront.from_json(meshwright("pareto", "llama-3.2-1b", *words, "--power-cap", "16 kW", "--json").out)
    assert all(it.level_watts["site"] <= 16e3 * (1 + 1e-9) < drawn for it in capped.points)
    assert capped.points[0].step_s > found.points[0].step_s
