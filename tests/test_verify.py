"""The verifier: it passes what was planned, refuses every tampered number, and derives bounds by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import small_model
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from searching import options_of, rederiving_agrees, space_of
from strategies import coarse_ticks, examples, instances, small_cluster, tiny_config

from cost_models.calibration import calibrate
from cost_models.pipeline import step_ticks
from cost_models.workload import Training
from planner.api import plan
from planner.checks import branching
from planner.checks.rederive import Problem, TooManySplits, all_rows, legal_axes, rederive
from planner.checks.verify import _problem, verify
from planner.checks.verify_schedule import run_order, work_order
from planner.read_model import read_config
from planner.result import Plan, Term

MODEL = read_config(tiny_config(hidden_size=1024, num_attention_heads=8, num_hidden_layers=6, vocab_size=8192), "small")
CLUSTER = small_cluster(4, 2)
ASKED = {"seq_len": 4096, "global_batch": 16, "precision": "bf16", "alternatives": 0}
"""No plan beside the best: a verdict never looks at one, and plans with some are verified too."""


@pytest.fixture(scope="module", params=["time", "energy", "money"])
def planned(request) -> Plan:
    return plan(MODEL, CLUSTER, seq_len=4096, global_batch=16, precision="bf16", objective=request.param)


@pytest.fixture(scope="module")
def timed() -> Plan:
    return plan(MODEL, CLUSTER, **ASKED)


def test_a_plan_is_verified(planned):
    report = verify(Plan.from_json(planned.to_json()), MODEL, CLUSTER)

    assert report.verdict == "verified", report.summary()
    assert report.bound == planned.bound
    assert report.counts["rows"] > 1000
    assert "verified in" in report.summary()


@pytest.mark.parametrize(
    ("pins", "options"),
    [
        ({"virtual_stages": 2}, {}),
        ({"pp": 2, "recompute": "full"}, {}),
        ({}, {"power_cap": 9000.0}),
        ({}, {"headroom": 0.9}),
    ],
)
def test_pinned_and_limited_plans_are_verified(pins, options):
    made = plan(MODEL, CLUSTER, pins=pins, **ASKED, **options)

    assert verify(made, MODEL, CLUSTER).verdict == "verified"


def shifted(terms: list[Term]) -> list[Term]:
    """Terms of the same sum, of which the second has a microsecond of the first."""
    first, second, *others = terms
    return [
        first.model_copy(update={"seconds": first.seconds - 1e-6}),
        second.model_copy(update={"seconds": second.seconds + 1e-6}),
        *others,
    ]


TAMPERED = {
    "step_s": lambda p: {"step_s": p.step_s * 0.99},
    "objective": lambda p: {"objective": p.objective * 0.99, "bound": p.bound * 0.99},
    "bound": lambda p: {"bound": p.bound * 1.01},
    "gap": lambda p: {"gap": 0.1},
    "joules": lambda p: {"joules_per_step": p.joules_per_step * 1.1},
    "watts": lambda p: {"watts": {**p.watts, "hosts": 0.0}},
    "time": lambda p: {"time": p.time[1:]},
    "terms": lambda p: {"time": shifted(p.time)},
    "mfu": lambda p: {"model_flop_utilisation": 0.99},
    "memory": lambda p: {"memory": [p.memory[0].model_copy(update={"need_bytes": 1.0}), *p.memory[1:]]},
    "classes": lambda p: {"memory": [p.memory[0].model_copy(update={"classes": {}}), *p.memory[1:]]},
    "stages": lambda p: {"memory": [*p.memory, p.memory[0]]},
    "tp": lambda p: {"strategy": p.strategy.model_copy(update={"tp": p.strategy.tp * 2})},
    "zero": lambda p: {"strategy": p.strategy.model_copy(update={"zero": (p.strategy.zero + 1) % 4})},
    "layers": lambda p: {"strategy": p.strategy.model_copy(update={"layers_per_stage": [5, 1]})},
    "recompute": lambda p: {"strategy": p.strategy.model_copy(update={"recompute": [[(6, "full")]]})},
    "micro_batch": lambda p: {"strategy": p.strategy.model_copy(update={"micro_batch": 16})},
    "layers of the model": lambda p: {"model": p.model.model_copy(update={"layers": 7})},
    "a decoder": lambda p: {"model": p.model.model_copy(update={"is_decoder": False})},
    "an option": lambda p: {"options": {**p.options, "speed": 1}},
    "model": lambda p: {"model": p.model.model_copy(update={"digest": "0" * 16})},
    "cluster": lambda p: {"cluster": p.cluster.model_copy(update={"digest": "0" * 16})},
    "hosts": lambda p: {"cluster": p.cluster.model_copy(update={"hosts_used": 7})},
    "cost model": lambda p: {"proof": p.proof.model_copy(update={"cost_model_digest": "0" * 16})},
    "tick": lambda p: {"proof": p.proof.model_copy(update={"tick_s": 0.0})},
    "space": lambda p: {"proof": p.proof.model_copy(update={"space": {**p.proof.space, "restrictions": []}})},
    "pins": lambda p: {"options": {**p.options, "pins": {"tp": 1, "cp": 2}}},
    "options": lambda p: {"options": {**p.options, "headroom": 2.0}},
    "objective_name": lambda p: {"objective_name": "energy"},
    "workload": lambda p: {"workload": p.workload.model_copy(update={"global_batch": 32})},
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_plans_are_refused(timed, name):
    changed = timed.model_copy(update=TAMPERED[name](timed))
    report = verify(changed, MODEL, CLUSTER)

    assert report.verdict == "refused"
    assert report.reasons
    assert not report.ok


def test_a_worse_plan_that_claims_to_be_the_best_is_refused(timed):
    """Right in every number but the claim: another plan, estimated rightly, with its own value as bound."""
    other = plan(MODEL, CLUSTER, pins={"devices": 4}, **ASKED)
    claimed = other.model_copy(update={"options": timed.options, "proof": timed.proof})
    report = verify(claimed, MODEL, CLUSTER)

    assert report.verdict == "refused"
    assert "exists: tp=" in report.reasons[0]


def test_a_counter_example_has_its_own_value_where_rows_stay_open(timed, monkeypatch):
    """The row that holds the best plan is looked at; the others are too many."""
    real, looked_at = branching.least_value, []

    def only_the_first(*asked):
        looked_at.append(asked)
        if len(looked_at) > 1:
            raise TooManySplits
        return real(*asked)

    problem = _problem(timed, MODEL, CLUSTER)
    monkeypatch.setattr(branching, "least_value", only_the_first)
    found = rederive(problem, 1.5 * timed.objective)

    assert len(looked_at) > 1
    assert found.bound < timed.objective * (1 - 1e-9) < found.counter_example_value


def test_feasible_plans_may_keep_a_gap(timed):
    bound = timed.bound * 0.9
    open_plan = timed.model_copy(update={"status": "feasible", "bound": bound, "gap": 1 - bound / timed.objective})

    assert verify(open_plan, MODEL, CLUSTER).verdict == "verified"
    assert verify(open_plan.model_copy(update={"status": "optimal"}), MODEL, CLUSTER).verdict == "refused"


def test_out_of_time_says_so(timed):
    report = verify(timed, MODEL, CLUSTER, time_limit_s=1e-9)

    assert report.verdict == "not fully re-derived"
    assert report.bound < timed.bound
    assert report.ok


@examples(18)
@given(instances(), st.sampled_from([1 - 1e-9, 1.0001, 1.05]))
def test_rederiving_equals_enumeration(it, factor):
    """Below the optimum everything is excluded; above it the optimum itself is found."""
    rederiving_agrees(it, factor)


@examples(16)
@given(instances())
def test_rows_and_axes_agree_with_the_oracle(it):
    space, answer = space_of(it), best_of_all(it)
    if space is None:
        return
    problem = Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)
    count = 0 if answer.rows is None else len(answer.rows)

    assert sum(len(rows) for rows in all_rows(problem)) == count
    assert {axis: tuple(values) for axis, values in legal_axes(problem).items()} == {
        axis: getattr(space, axis) for axis in legal_axes(problem)
    }


def test_stages_too_small_for_the_experts_that_are_asked_for_have_no_rows():
    """Experts over two devices: the stages of one device among the pipelines of two have none."""
    model, cluster, work = small_model((1,) * 4), small_cluster(2), Training(seq_len=64, global_batch=2)
    ticks, fits = coarse_ticks(model, cluster, work), calibrate(cluster)
    it = Instance(model, cluster, work, fits, ticks, pins=(("ep", 2),))
    found = list(all_rows(Problem(model, cluster, work, options_of(it), fits, ticks)))

    assert sum(map(len, found)) == len(best_of_all(it).rows) > 0
    assert all((rows.ep == 2).all() for rows in found)


@examples(150)
@given(st.data())
def test_events_and_recurrence_agree(data):
    """The schedule run by events takes as many ticks as the recurrence in waves, both kinds, long and short."""
    pp, virtual = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    virtual = virtual if pp > 1 else 1
    m = data.draw(st.integers(1, 12)) * pp if virtual > 1 else data.draw(st.integers(1, 60))
    ticks = st.integers(1, 1000)
    forward, backward = (data.draw(st.lists(ticks, min_size=pp * virtual, max_size=pp * virtual)) for _ in range(2))
    tail, hop = data.draw(st.lists(ticks, min_size=pp, max_size=pp)), data.draw(st.integers(0, 500))
    arrays = (np.array([x]) for x in (forward, backward))

    expected = int(step_ticks(pp, virtual, m, *arrays, np.array([hop]), np.array([tail]))[0])
    order = work_order("1f1b" if virtual == 1 else "interleaved", pp, virtual, m)
    assert run_order(order, forward, backward, None, hop, tail) == expected


def test_another_cluster_is_refused(timed):
    report = verify(timed, MODEL, dataclasses.replace(CLUSTER, hosts=1, levels=CLUSTER.levels[:1]))

    assert any("the cluster has digest" in reason for reason in report.reasons)
