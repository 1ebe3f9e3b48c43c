"""Mixed plans explained: times sum to the step, limits are the plan's, and what more buys is planned again."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
from command import meshwright, refused
from mixed_cases import ALONE, CLUSTER, MODEL, TIGHT, planned

from planner import plan
from planner.errors import BadInput
from planner.explanations.mixed_explain import UNITS, MixedExplanation
from planner.mixed.result import MixedPlan
from topologies.enlarged import with_more_memory, with_more_scale_out_bandwidth, with_one_more_host
from topologies.ready import read_any_cluster

pytestmark = pytest.mark.usefixtures("steady")


@pytest.fixture(scope="module")
def explained() -> MixedExplanation:
    return planned().explain(model=MODEL, cluster=CLUSTER, units=("hosts", "memory"))


def test_the_times_of_every_stage_and_part_sum_to_the_step(explained):
    step = planned().step_s

    assert [(it.part, it.devices) for it in explained.times] == [(0, 1), (0, 1), (1, 1)]
    for it in explained.times:
        assert math.fsum(it.seconds.values()) == pytest.approx(step)
    for shares in explained.by_part().values():
        assert math.fsum(shares.values()) == pytest.approx(step)
    works = [planned().micro_batches * (it.forward_s + it.backward_s) + it.tail_s for it in planned().stages]
    assert [it.busy_s for it in explained.times] == pytest.approx(works)


@pytest.mark.parametrize("name", ["hosts of part-1", "memory of part-0"])
def test_a_row_is_what_planning_on_the_changed_cluster_gives(explained, name):
    row = next(row for row in explained.bought if row.name == name)
    k = int(name[-1])
    larger = with_one_more_host(CLUSTER.parts[k]) if "hosts" in name else with_more_memory(CLUSTER.parts[k], 1.1)
    cold = plan(MODEL, CLUSTER.with_part(k, larger), seq_len=2048, global_batch=16, precision="bf16", headroom=TIGHT)

    assert row.objective == cold.objective < planned().objective
    assert row.gain_fraction == pytest.approx(1 - cold.objective / planned().objective)
    assert row.gain_at_least - 1e-12 <= row.gain_fraction <= row.gain_at_most + 1e-12
    assert row.decided_otherwise
    assert row.plan.alone == cold.alone
    assert row.plan.stages == cold.stages


def test_limits_are_named_with_what_more_of_them_buys(explained):
    text, limits = explained.summary(), {(it.limit, it.part): it.detail for it in explained.binding}

    assert "2 layers recompute" in limits["memory", "part-0"]
    assert limits["slowest stage", "part-0"].startswith("stage 0 works")
    assert explained.best_buy.name == "hosts of part-1"
    for says in ("where the time goes", "memory of part-0", "a device buys", "buys most", "proved in"):
        assert says in text
    assert json.loads(json.dumps(explained.as_json()))["bought"][0]["name"] == "hosts of part-0"


def test_a_unit_that_there_is_none_of_is_left_out():
    """One device has no wires inside, one host none between hosts; what is not faster is left as it is."""
    it = planned(**ALONE).explain(model=MODEL, cluster=CLUSTER, units=UNITS[2:])

    assert [row.name for row in it.bought] == ["scale-up bandwidth of part-0", "between parts"]
    assert [row.gain_fraction for row in it.bought] == [0.0, 0.0]
    assert it.best_buy is None
    assert len(it.left_out) == 3
    assert it.by_part()["part-0"] == {"unused": pytest.approx(it.plan.step_s)}
    assert "nothing: no single one" in it.summary()


def test_more_of_a_part_is_not_more_between_parts():
    cluster = read_any_cluster("dgx-h100:2+dgx-a100:2")
    larger = with_more_scale_out_bandwidth(cluster.parts[1], 1.1)

    assert cluster.with_part(1, larger).join == cluster.join
    assert cluster.with_part(1, larger).parts == (cluster.parts[0], larger)


@pytest.mark.parametrize(("fields", "says"), [({"more": 0}, "more=0"), ({"units": ("disks",)}, "no unit 'disks'")])
def test_bad_questions_are_refused(fields, says):
    with pytest.raises(BadInput, match=says):
        planned().explain(model=MODEL, cluster=CLUSTER, **fields)


def swapped(it: MixedPlan) -> dict:
    """Stages that say that they are on another part than they are on."""
    return {"stages": [stage.model_copy(update={"part": 1 - stage.part}) for stage in it.stages]}


def renamed(it: MixedPlan) -> dict:
    return {"parts": [it.parts[0].model_copy(update={"name": "x"}), it.parts[1]]}


def too_wide(it: MixedPlan) -> dict:
    """The last stage with three devices of a part of one."""
    wide = it.stages[-1].model_copy(update={"tp": 3, "devices": 3})
    return {"stages": [*it.stages[:-1], wide]}


def unused(it: MixedPlan) -> dict:
    return {"parts": [part.model_copy(update={"devices_used": 0}) for part in it.parts]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda it: {"step_s": 0.0, "objective": 0.0, "tokens_per_s": 0.0}, "objective: Input should be greater"),
        (lambda it: {"stages": [it.stages[0].model_copy(update={"limit_bytes": 0})]}, "limit_bytes: Input should"),
        (swapped, "stage 0: a100-80-sxm is not the accelerator of part 1"),
    ],
)
def test_records_that_contradict_themselves_are_not_read(change, says):
    it = planned()
    with pytest.raises(BadInput, match=says):
        MixedPlan.from_json(it.model_copy(update=change(it)).to_json())


@pytest.mark.parametrize(
    ("fields", "change", "says"),
    [
        ({}, renamed, "parts are said to be"),
        ({}, too_wide, "stage 2: tp 3 x cp 1 x dp 1, ep 1 has no place on 'part-1'"),
        (ALONE, unused, r"parts are said to use \[0, 0\] devices, but use \[0, 1\]"),
    ],
)
def test_plans_that_are_not_the_clusters_are_not_explained(fields, change, says):
    it = planned(**fields)
    for ask in (lambda it: it.explain, lambda it: partial(it.why_not, "tp=2")):
        with pytest.raises(BadInput, match=says):
            ask(it.model_copy(update=change(it)))(model=MODEL, cluster=CLUSTER)


MIXED = ("tiny-llama", "--cluster", "cpu-local:1+dgx-h100:1", "--global-batch", "2", "--seq-len", "128")


def test_the_commands_take_a_saved_mixed_plan(tmp_path: Path):
    answer = meshwright("plan", *MIXED, "--pin", "tp=1", "--json")
    file = tmp_path / "plan.json"
    file.write_text(answer.out)
    why, verified = meshwright("why-not", str(file), "used=cpu-local"), meshwright("verify", str(file))

    assert verified.code == 0, verified.err
    assert verified.out.startswith("verified: time")
    assert why.code == 0, why.err
    assert "why not used=cpu-local" in why.out
    assert "leave out --pin" in refused("explain", str(file), "--pin", "tp=2")
    file.write_text(answer.out.replace('"step_s": ', '"step_s": 1', 1))
    wrong = meshwright("verify", str(file))
    assert (wrong.code, wrong.out[:8]) == (2, "refused:")
    assert "does not verify: objective is" in wrong.err
    assert "is a cluster of one kind of host" in refused("why-not", str(file), "tp=2", "--cluster", "dgx-h100:1")
