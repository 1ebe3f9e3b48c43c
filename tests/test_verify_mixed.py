"""Plans of mixed clusters verified: what was planned passes, every tampered number and better pipeline is found."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from mixed_cases import ALONE, CLUSTER, MODEL, SHAPE, TIGHT, planned, problem_of
from mixed_oracle import best_step
from strategies import examples, small_cluster, tiny_config
from test_mixed_search import mixed_instances, mixed_of

from cost_models.mixed import Machine
from cost_models.workload import Training
from planner.api import plan as search
from planner.checks.mixed_ways import MixedProblem, legal_ways, place, reserved
from planner.checks.rederive_mixed import rederive_pipelines
from planner.checks.verify_mixed import MixedReport, verify_mixed
from planner.mixed.result import MixedPlan, StageRecord
from planner.options import read_options
from planner.read_model import read_config, read_model
from planner.search.mixed.space import MixedSpace
from topologies.ready import read_any_cluster

pytestmark = pytest.mark.usefixtures("steady")


def verified(it: MixedPlan, **options) -> MixedReport:
    return verify_mixed(it, MODEL, CLUSTER, **options)


def test_a_plan_is_verified():
    plan = planned()
    report = verified(MixedPlan.from_json(plan.to_json()))

    assert [stage.part for stage in plan.stages] == [0, 0, 1]
    assert report.verdict == "verified", report.summary()
    assert report.bound == plan.bound
    assert report.counts["partial_pipelines"] > 0
    assert "verified in" in report.summary()


@pytest.mark.parametrize("fields", [{"pins": "recompute=full"}, ALONE])
def test_pinned_plans_and_plans_on_one_part_are_verified(fields):
    plan = planned(**fields)

    assert (plan.alone is None) == ("pins" in fields)
    assert verified(plan).verdict == "verified"


def with_stage(p: MixedPlan, at: int, **fields) -> dict:
    stages = list(p.stages)
    stages[at] = stages[at].model_copy(update=fields)
    return {"stages": stages}


def with_part(p: MixedPlan, at: int, **fields) -> dict:
    parts = list(p.parts)
    parts[at] = parts[at].model_copy(update=fields)
    return {"parts": parts}


def moved(p: MixedPlan, one: int, other: int) -> dict:
    """A layer of stage ``one`` given to ``other``."""
    stages = [*p.stages]
    for at, more in ((one, -1), (other, 1)):
        stages[at] = fewer(stages[at], more)
    return {"stages": stages}


def fewer(stage: StageRecord, more: int) -> StageRecord:
    (count, kind), *rest = stage.recompute
    return stage.model_copy(update={"layers": stage.layers + more, "recompute": [(count + more, kind), *rest]})


def proof(p: MixedPlan, **fields) -> dict:
    return {"proof": p.proof.model_copy(update=fields)}


TAMPERED = {
    "step_s": lambda p: ({"step_s": p.step_s * 0.99}, "the time of the step is"),
    "all steps": lambda p: ({name: 0.99 * getattr(p, name) for name in ("step_s", "objective", "bound")}, "step_s is"),
    "forward": lambda p: (with_stage(p, 0, forward_s=p.stages[0].forward_s * 1.01), "stage 0: forward_s"),
    "tail": lambda p: (with_stage(p, 1, tail_s=0.0), "stage 1: tail_s"),
    "hop": lambda p: (with_stage(p, 1, hop_s=p.stages[0].hop_s), "stage 1: hop_s"),
    "a layer moved": lambda p: (moved(p, 2, 1), "comes to"),
    "a layer lost": lambda p: ({"stages": [*p.stages[:2], fewer(p.stages[2], -1)]}, "hold 5 layers"),
    "stages exchanged": lambda p: ({"stages": [p.stages[2], *p.stages[:2]]}, "its devices leave"),
    "one device too many": lambda p: (
        with_stage(p, 2, dp=2, devices=2, micro_batch=p.stages[2].micro_batch // 2) | with_part(p, 1, devices_used=2),
        "2 devices are used of 1",
    ),
    "a part that grew": lambda p: (with_part(p, 1, devices=2, hosts=2), "parts are said to be"),
    "devices used": lambda p: (with_part(p, 0, devices_used=1), "its stages use 2 devices"),
    "memory": lambda p: (with_stage(p, 0, need_bytes=1.0), "stage 0: need_bytes"),
    "classes": lambda p: (with_stage(p, 0, classes={}), "stage 0: bytes of"),
    "limit": lambda p: (with_stage(p, 0, limit_bytes=1e12), "stage 0: limit_bytes"),
    "no recompute": lambda p: (with_stage(p, 0, recompute=[(p.stages[0].layers, "none")]), "its devices leave"),
    "zero": lambda p: (with_stage(p, 0, zero=1), "nothing to shard over"),
    "accelerator": lambda p: (with_stage(p, 0, accelerator="h100-sxm"), "not the accelerator"),
    "bound lowered": lambda p: ({"bound": 0.9 * p.bound, "gap": 0.1}, "status is 'optimal'"),
    "bound raised": lambda p: ({"bound": 1.01 * p.bound}, "is above the objective"),
    "gap": lambda p: ({"gap": 0.1}, "gap is"),
    "a part's bound lowered": lambda p: (with_part(p, 0, alone_bound=0.5 * p.bound), "the least that a part alone"),
    "interval": lambda p: ({"step_interval_s": (0.0, p.step_interval_s[1])}, "step_interval_s is"),
    "rate": lambda p: ({"tokens_per_s": 2 * p.tokens_per_s}, "tokens_per_s is"),
    "advisory": lambda p: ({"advisory": not p.advisory}, "advisory is"),
    "model": lambda p: ({"model": p.model.model_copy(update={"digest": "0" * 16})}, "model 'small' has digest"),
    "cluster": lambda p: ({"cluster_digest": "0" * 16}, "cluster 'small-mixed' has digest"),
    "cost model": lambda p: (proof(p, cost_model_digest="0" * 16), "calibration has digest"),
    "tick": lambda p: (proof(p, tick_s=1e-3), "tick_s is"),
    "no tick": lambda p: (proof(p, tick_s=0.0), "tick_s is"),
    "root": lambda p: (proof(p, bound_root=1.01 * p.objective), "bound_root"),
    "parameters": lambda p: ({"model": p.model.model_copy(update={"parameters": 1})}, "model.parameters is 1"),
    "a decoder": lambda p: ({"model": p.model.model_copy(update={"is_decoder": False})}, "model.is_decoder is False"),
    "watts alone": lambda p: ({"joules_per_step": None}, "are there together or not at all"),
    "joules alone": lambda p: ({"watts": {}}, "are there together or not at all"),
    "calibration": lambda p: ({"options": {**p.options, "calibration": "fits.toml"}}, "calibration: not for mixed"),
    "an option": lambda p: ({"options": {**p.options, "speed": 1}}, "options has 'speed', which is no option"),
    "space": lambda p: (proof(p, space={**p.proof.space, "restrictions": []}), "proof.space is not"),
    "pins": lambda p: ({"options": {**p.options, "pins": {"zero": 1}}}, "proof.space is not"),
    "options": lambda p: ({"options": {**p.options, "objective": "goodput"}}, "objective goodput"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_plans_are_refused(name):
    changes, says = TAMPERED[name](planned())
    report = verified(planned().model_copy(update=changes))

    assert report.verdict == "refused"
    assert says in "; ".join(report.reasons)


def worse_that_claims_to_be_best() -> MixedPlan:
    """Right in every number but the claim: the best plan with a pin, under the options of the plan without."""
    plan, other = planned(), planned(pins="recompute=full")
    bounds = [max(part.alone_bound, other.bound) for part in plan.parts]
    claimed = other.model_copy(update={"options": plan.options, "proof": plan.proof})
    parts = [part.model_copy(update={"alone_bound": b}) for part, b in zip(claimed.parts, bounds, strict=True)]
    return claimed.model_copy(update={"parts": parts})


def test_a_worse_pipeline_that_claims_to_be_the_best_is_refused():
    plan, report = planned(), verified(worse_that_claims_to_be_best())

    assert report.verdict == "refused"
    assert f"but a pipeline of {plan.objective:.12g} exists: " in report.reasons[0]
    assert "layers on part-0: tp=1" in report.reasons[0]


def test_what_a_part_alone_takes_is_derived_too():
    """A plan on the H100 alone whose A100s are said to take longer than they do."""
    plan = planned(**ALONE)
    least = verified(plan.model_copy(update=with_part(plan, 0, alone_bound=10 * plan.step_s)))

    assert plan.alone is not None
    assert "no plan on part-0 alone is said to take less than" in least.reasons[0]
    alone = plan.alone.model_copy(update={"step_s": 0.9 * plan.step_s})
    assert "part-1 alone: step_s is" in verified(plan.model_copy(update={"alone": alone})).reasons[0]


def test_a_plan_on_one_part_claims_no_more_than_the_part_does():
    """A worse plan of the H100 says that it is the best there; all that is derived again is what the mixed one says."""
    plan, other = planned(**ALONE), planned(**ALONE, pins="recompute=full")
    alone = other.alone.model_copy(update={"options": plan.alone.options, "proof": plan.alone.proof})
    parts = [part.model_copy(update={"alone_bound": plan.bound}) for part in other.parts]
    claim = {"bound": plan.bound, "status": "feasible", "gap": 1 - plan.bound / other.objective, "parts": parts}
    said = other.model_copy(update={**claim, "options": plan.options, "proof": plan.proof, "alone": alone})
    open_ones = [entry.model_copy(update={"reason": "open"}) for entry in plan.alone.proof.excluded]
    left = plan.alone.model_copy(update={"proof": plan.alone.proof.model_copy(update={"excluded": open_ones})})

    assert "alone has bound" in "; ".join(verified(said).reasons)
    assert "were left open" in "; ".join(verified(plan.model_copy(update={"alone": left})).reasons)


def test_what_was_not_rederived_is_said():
    plan = planned()
    report = verified(plan, time_limit_s=1e-9)

    assert report.verdict == "not fully re-derived"
    assert report.bound < plan.bound
    assert report.ok
    for what in ("pipelines over several parts; none takes less than", "part-0 alone", "part-1 alone"):
        assert f"not re-derived: {what}" in report.summary()


def test_a_model_of_one_layer_is_planned_where_a_part_cannot_hold_it():
    """No pipeline, and nothing fits the A100 that is asked first: a plan all the same, which is saved and verified."""
    model = read_config(tiny_config(**{**SHAPE, "hidden_size": 8192, "num_hidden_layers": 1}), "one")
    cluster = mixed_of(small_cluster(1, base="dgx-a100"), small_cluster(4, base="dgx-h100"))
    found = search(model, cluster, seq_len=1024, global_batch=2, precision="bf16", headroom=0.9)

    assert [part.devices_used for part in found.parts] == [0, 4]
    assert verify_mixed(MixedPlan.from_json(found.to_json()), model, cluster).verdict == "verified"


def test_devices_that_a_stage_reserves():
    """On hosts of 8: 1, 2, 4, 8 and whole hosts; in a domain of 72 on hosts of 4: 1, 2, 4, 12, 36, 72."""
    eight, rack = small_cluster(8, 4), small_cluster(72, 2, hosts_inside=18)

    assert [reserved(eight, near, 1) for near in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
    assert [reserved(rack, near, 1) for near in (1, 3, 5, 12, 13, 40)] == [1, 4, 12, 12, 36, 72]
    assert (reserved(eight, 6, 3), reserved(rack, 8, 2)) == (24, 144)
    assert place(eight, 2, 1, 12, 1) == (8, 3)
    assert place(eight, 3, 3, 1, 1) is None
    assert place(eight, 1, 1, 40, 1) is None


@pytest.mark.parametrize(
    ("model", "cluster"), [("mixtral-8x22b", "gb200-nvl72:1+dgx-h100:3"), ("llama-3.1-8b", "cpu-local:3+dgx-a100:2")]
)
def test_ways_to_run_a_stage_are_those_of_the_space(model, cluster):
    """Written down twice, by the search and here: the same degrees, the same devices reserved."""
    work = Training(seq_len=4096, global_batch=48)
    problem = MixedProblem(Machine.of(read_model(model), read_any_cluster(cluster), work), read_options())
    space = MixedSpace(problem.machine, {}, problem.limits)
    for k, batch in itertools.product(range(2), space.batches()):
        setups = space.setups(k, batch)
        theirs = {(*way, size) for way, size in zip(map(tuple, setups.table.tolist()), setups.size, strict=True)}
        assert set(legal_ways(problem, k, batch)) == theirs


def assert_rederived(it):
    """A tick above the optimum the optimum itself is found and nothing below it; nothing where nothing fits."""
    truth, _ = best_step(it)
    target = min(truth + 1, 2.0**55)
    found = rederive_pipelines(problem_of(it), target)

    assert found.complete
    assert found.bound == min(truth, target)
    assert bool(found.counter_example) == math.isfinite(truth)


@given(mixed_instances())
@examples(5)
def test_rederiving_equals_enumeration(it):
    assert_rederived(it)


def test_a_bound_that_is_cut_short_is_below_the_truth(monkeypatch):
    """Too many partial pipelines: the bound is the least of what was left open, and says that it is not all."""
    from planner.checks import rederive_mixed

    plan, tick = planned(), planned().proof.tick_s
    monkeypatch.setattr(rederive_mixed, "MOST_PARTIAL", 0)
    report = verified(plan)

    assert report.verdict == "not fully re-derived"
    assert plan.proof.bound_root * 0.5 < report.bound <= plan.bound + tick


def test_a_counter_example_has_its_own_step_where_the_bound_was_cut_short(monkeypatch):
    """What is left open lowers the bound, but not the step of the pipeline that was met."""
    from planner.checks import rederive_mixed

    plan = planned()
    for most in range(1, 30):
        monkeypatch.setattr(rederive_mixed, "MOST_PARTIAL", most)
        report = verified(worse_that_claims_to_be_best())
        if report.verdict == "refused":
            break
    stated = float(report.reasons[0].partition("a pipeline of ")[2].split()[0])

    assert report.bound < plan.objective * (1 - 1e-9) < stated


def test_joules_of_what_has_to_be_recomputed_are_waited_for_in_the_bound_too():
    """Layers that do not fit as they are spend more than the least of any way: a step's wait shows them."""
    asked = {"seq_len": 2048, "global_batch": 16, "precision": "bf16", "headroom": TIGHT}
    made = search(MODEL, CLUSTER, **asked, limits={"site-power": 0.985 * planned().level_watts["site"]})
    report = verify_mixed(made, MODEL, CLUSTER)

    assert any(kind != "none" for stage in made.stages for _, kind in stage.recompute)
    assert report.verdict == "verified", report.summary()
