"""Objectives in order against enumeration, what the proof says of each, and what verify refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import options_of, space_of
from strategies import examples, instances
from test_limits import met_by

from planner import plan
from planner.checks.verify import verify
from planner.errors import BadInput
from planner.explanations.mine import inputs_of
from planner.objectives import minimised, slack_of
from planner.result import Plan
from planner.search.budget import Budget
from planner.stages import solved_in_stages

COLUMN = {"time": 0, "money": 1, "energy": 2}


def lexicographic(met: np.ndarray, names: tuple[str, ...], slack: float) -> list[float]:
    """The best of each objective in turn among what the ones before it left."""
    best = []
    for name in names:
        column = met[:, COLUMN[minimised(name)]]
        best.append(float(column.min()))
        met = met[column <= (1 + slack) * best[-1] * (1 + 1e-12)]
    return best


@examples(8)
@given(
    instances(most_layers=4, most_devices=4),
    st.permutations(["time", "tokens-per-joule", "money"]).map(lambda names: tuple(names[:2])),
    st.sampled_from([0.0, 0.001, 0.02, 0.3, 2.0]),
)
def test_stages_equal_enumeration(it, names, slack):
    """Each stage's best is that of all plans within the stages before it, and the last plan keeps every limit."""
    space = space_of(it)
    met = met_by(dataclasses.replace(it, objective="time"))
    if space is None:
        return
    options = options_of(it).model_copy(update={"objective": ",".join(names), "slack": slack})
    stages, _ = solved_in_stages(space, options, it.fits, it.ticks, lambda *_: None, Budget())
    if not len(met):
        assert stages[-1].found.best is None
        return
    best = lexicographic(met, names, slack)
    assert [stage.search.value for stage in stages] == [pytest.approx(value, rel=1e-9) for value in best]
    assert all(stage.proved for stage in stages)


@pytest.fixture(scope="module")
def staged() -> Plan:
    return plan("tiny-llama", "cpu-local:2", objective="time,energy", slack="30%", tokens="1M", alternatives=0)


def test_the_plan_says_what_each_stage_proved(staged):
    """Stage 1 is the plan for time alone; the energy within 30 % is below it and no lower than energy alone."""
    fields = {"tokens": "1M", "alternatives": 0}
    quickest = plan("tiny-llama", "cpu-local:2", **fields)
    leanest = plan("tiny-llama", "cpu-local:2", objective="energy", **fields)
    first, second = staged.proof.stages

    assert (first.value, first.proved, second.proved, staged.status) == (quickest.step_s, True, True, "optimal")
    assert first.at_most == pytest.approx(1.3 * quickest.step_s)
    assert staged.step_s <= first.at_most * (1 + 1e-9)
    assert leanest.joules_per_step * (1 - 1e-9) <= staged.joules_per_step <= quickest.joules_per_step
    assert staged.objective == staged.joules_per_step == second.value
    assert Plan.from_json(staged.to_json()) == staged
    text = staged.summary()
    assert "stage 1" in text and "stage 2" in text and "proved over the whole space" in text


def test_training_is_the_steps_times_one(staged):
    run, work = staged.training_run, staged.workload
    assert run.steps == -(-1_000_000 // work.tokens)
    assert (run.seconds, run.joules) == (run.steps * staged.step_s, run.steps * staged.joules_per_step)


def test_tokens_per_joule_is_energy_by_its_users_name():
    one = plan("tiny-llama", "cpu-local:2", objective="tokens-per-joule", alternatives=0)
    other = plan("tiny-llama", "cpu-local:2", objective="energy", alternatives=0)
    assert one.strategy == other.strategy
    assert one.tokens_per_joule == pytest.approx(one.workload.tokens / one.joules_per_step)
    assert "tokens per joule" in one.summary()


def test_staged_plans_verify(staged):
    report = verify(staged, *inputs_of(staged), time_limit_s=60.0)
    assert (report.verdict, report.reasons) == ("verified", [])


def with_stage(it: Plan, k: int, **fields: object) -> Plan:
    stages = [stage.model_copy(update=fields) if n == k else stage for n, stage in enumerate(it.proof.stages)]
    return it.model_copy(update={"proof": it.proof.model_copy(update={"stages": stages})})


FORGED = {
    "no stages": (lambda p: p.model_copy(update={"proof": p.proof.model_copy(update={"stages": []})}), "stages"),
    "slack": (lambda p: with_stage(p, 0, at_most=2 * p.proof.stages[0].at_most), "slack"),
    "first bound": (
        lambda p: with_stage(p, 0, value=2 * p.proof.stages[0].value, bound=2 * p.proof.stages[0].value,
                             at_most=2 * p.proof.stages[0].at_most), "a plan of",
    ),
    "last bound": (lambda p: with_stage(p, 1, bound=0.5 * p.bound), "last stage"),
    "training": (
        lambda p: p.model_copy(update={"training_run": p.training_run.model_copy(update={"steps": 3})}), "training_run",
    ),
    "limit": (
        lambda p: p.model_copy(update={"options": p.options | {"limits": {"step-time": 0.5 * p.step_s}}}), "step-time",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_stages_are_refused(staged, name):
    forge, word = FORGED[name]
    report = verify(forge(staged), *inputs_of(staged), time_limit_s=60.0)
    assert report.verdict == "refused"
    assert word in "; ".join(report.reasons)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective": "speed"}, ("'speed'", "there are", "'energy'")),
        ({"objective": "time,tim"}, ("'tim'", "nearest: 'time'")),
        ({"objective": "energy,tokens-per-joule"}, ("twice",)),
        ({"objective": "time", "slack": 0.02}, ("slack=0.02", "only 'time'", "time,energy")),
        ({"objective": "time,energy", "slack": "some"}, ("slack='some'", "2%")),
        ({"objective": "time,energy", "slack": -0.1}, ("slack=-0.1",)),
        ({"objective": ""}, ("objective=''",)),
    ],
)
def test_bad_objectives_are_refused(fields, words):
    with pytest.raises(BadInput) as error:
        plan("tiny-llama", "cpu-local", **fields)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_slack_is_read_as_people_write_it():
    assert [slack_of(text) for text in ("2%", "0.02", 0.02, None)] == [0.02, 0.02, 0.02, None]
