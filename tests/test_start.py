"""A plan to start from changes how long the search takes, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance
from searching import options_of, space_of
from strategies import examples
from test_order import found_by, tied_instances

from planner import BadInput, plan
from planner.checks.verify import verify
from planner.explanations.mine import inputs_of
from planner.result import Plan
from planner.search.engine import Search
from planner.start import start_from

CHEAP = {"alternatives": 0}


@pytest.fixture(scope="module")
def cold() -> Plan:
    return plan("llama-3.1-8b", "dgx-h100:2", **CHEAP)


def notes_of(it: Plan) -> str:
    return " ".join(note for note in it.notes if "start" in note)


def test_the_same_question_again_gives_the_same_with_less_work(cold: Plan):
    warm = plan("llama-3.1-8b", "dgx-h100:2", start=cold, **CHEAP)

    assert (warm.strategy, warm.objective, warm.bound, warm.status) == (
        cold.strategy, cold.objective, cold.bound, "optimal",
    )  # fmt: skip
    assert warm.proof.rows["degrees_expanded"] < cold.proof.rows["degrees_expanded"]
    assert f"{cold.objective:.6g}" in notes_of(warm)


@examples(10)
@given(tied_instances(), st.integers(0, 10**6))
def test_any_plan_of_the_space_as_a_start(it: Instance, seed: int):
    """A good one, a bad one, one that ties: value and strategy of a cold search."""
    space, expected = space_of(it), found_by(it)
    if space is None or expected is None:
        return
    first = Search(space, options_of(it), it.fits, it.ticks)
    kept = [one for one in first.run().kept if one.found is not None]
    start = first.strategy(kept[seed % len(kept)])
    again = Search(space, options_of(it), it.fits, it.ticks)
    notes = start_from(again, start)
    result = again.run()

    assert "started from" in notes[0]
    assert result.proved
    assert (again.value, again.strategy(again.best)) == expected


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"cluster": "dgx-h100:1"}, "does not apply"), ({"pins": "tp=8"}, "tp is pinned to 8"),
        ({"global_batch": 3}, "global batch is 3"), ({"headroom": 0.8}, "does not fit the memory"),
        ({"model": "llama-3.2-1b", "cluster": "dgx-h100:2"}, "the model was llama-3.1-8b ("),
    ],
)  # fmt: skip
def test_a_start_that_does_not_apply_says_why(cold: Plan, question: dict, says: str):
    asked = {"model": "llama-3.1-8b", "cluster": "dgx-h100:2", **CHEAP, **question}
    try:
        it = plan(**asked, start=cold)
    except planner_errors() as error:
        assert says == "does not fit the memory", error
        return
    assert says in notes_of(it)
    assert it.objective == plan(**asked).objective


def planner_errors() -> type[Exception]:
    from planner import InfeasiblePlan

    return InfeasiblePlan


def test_another_batch_takes_as_many_micro_batches_as_it_makes(cold: Plan):
    it = plan("llama-3.1-8b", "dgx-h100:2", global_batch=1024, start=cold, **CHEAP)

    assert "started from" in notes_of(it)
    assert it.objective <= 2.001 * cold.objective
    assert np.isclose(it.bound, it.objective)


def test_a_start_is_a_plan(cold: Plan):
    with pytest.raises(BadInput, match="start='yes' is a str"):
        plan("llama-3.1-8b", "dgx-h100:2", start="yes", **CHEAP)
    assert notes_of(plan("llama-3.1-8b", "dgx-h100:2", start=cold.strategy, **CHEAP))


def test_a_start_under_a_schedule_that_is_not_searched_is_left_alone():
    """A zero-bubble plan is quicker than every plan of the usual schedules, and none of them."""
    asked = {"seq_len": 128, "global_batch": 8, "alternatives": 0}
    quicker = plan("tiny-llama", "cpu-local:1", pins="schedule=zbv,pp=2", **asked)
    alone = plan("tiny-llama", "cpu-local:1", pins="pp=2", **asked)

    started = plan("tiny-llama", "cpu-local:1", pins="pp=2", start=quicker, **asked)

    assert quicker.objective < alone.objective
    assert started.strategy == alone.strategy
    assert any("schedule=zbv, which is searched where it is pinned only" in note for note in started.notes)
    wrong = started.model_copy(update={"strategy": quicker.strategy})
    assert "pin schedule=zbv" in "; ".join(verify(wrong, *inputs_of(alone)).reasons)
