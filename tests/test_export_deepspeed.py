"""deepspeed.json and deepspeed.sh: every key known, every value the plan's, code of the user's refused by name."""

from __future__ import annotations

import json

import pytest
from golden_plans import NAMES, golden, host_words, layers_of, rewritten
from plans import make_plan

from planner.errors import PlannerBug, Unsupported
from planner.export import export
from planner.export.facts import checked, flat
from planner.result import Plan

EXPRESSIBLE = [21, 22, 25]


def written(plan: Plan) -> dict:
    return json.loads(export(plan, ("deepspeed",))["deepspeed.json"][0])


def compare(plan: Plan, found: dict) -> None:
    s, w, left = plan.strategy, plan.workload, dict(found)
    assert left.pop("train_batch_size") == w.global_batch
    assert left.pop("train_micro_batch_size_per_gpu") == s.micro_batch
    assert left.pop("gradient_accumulation_steps") == s.micro_batches
    assert s.micro_batch * s.micro_batches * plan.cluster.devices_used // (s.tp * s.cp * s.pp) == w.global_batch
    assert left.pop("zero_optimization") == {"stage": s.zero, "overlap_comm": w.stack.dp_overlap}
    assert left.pop("bf16", None) == ({"enabled": True} if w.precision == "bf16" else None)
    assert left.pop("data_types", None) == ({"grad_accum_dtype": "fp32"} if w.precision == "bf16" else None)
    assert left.pop("communication_data_type") == "fp32"
    experts = {"enabled": True, "autoep_size": s.ep, "expert_tensor_parallel_size": s.etp}
    assert left.pop("expert_parallel", None) == (experts if s.ep > 1 else None)
    assert left.pop("tensor_parallel", None) == ({"autotp_size": s.tp} if s.tp > 1 else None)
    assert set(layers_of(plan)) == {"none"}
    assert (s.pp, s.cp) == (1, 1)
    assert left == {}


@pytest.mark.parametrize("number", EXPRESSIBLE, ids=lambda n: NAMES[n])
def test_every_value_is_the_plans(number):
    found = written(golden(number))

    compare(golden(number), found)
    checked("deepspeed", flat(found))


@pytest.mark.parametrize(
    "changes",
    [
        {"dp_shard": 4, "zero": 1},
        {"dp_shard": 4, "zero": 2, "precision": "bf16"},
        {"tp": 2, "dp_shard": 2, "zero": 1},
    ],
)
def test_other_plans(changes):
    plan = rewritten(make_plan(**changes), stack={"sequence_parallel": False, "dp_overlap": False})

    compare(plan, written(plan))


def test_experts():
    """Mixtral's layers on eight groups of eight; without recompute, which only its program could ask for."""
    one = [[(count, "none")] for count in golden(26).strategy.layers_per_stage]
    placement = golden(26).strategy.placement | {"cp": [1, 1], "dp_shard": [8, 8], "etp": [1, 1], "ep": [8, 1]}
    plan = rewritten(golden(26), cp=1, dp_shard=64, ep=8, etp=1, edp=8, micro_batches=2, recompute=one,
                     placement=placement)  # fmt: skip
    assert plan.strategy.micro_batch == 4

    compare(plan, written(plan))


def test_what_a_host_runs(tmp_path):
    folder = tmp_path / "a folder's $(name)"
    words = host_words(golden(21), "deepspeed", folder, "1", "--lr", "1", MESHWRIGHT_PROGRAM="train.py")

    tail = ["train.py", "--deepspeed", "--deepspeed_config", str(folder / "deepspeed.json"), "--lr", "1"]
    assert words[-6:] == tail


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (0, {}, r"pp = 2: stages are arguments of PipelineModule.*All of it: --pin pp=1 --pin recompute=none"),
        (1, {}, r"cp = 2: .* tp = 2: AutoTP keeps the whole sequence"),
        (10, {}, "dp_replicate = 2: ZeRO-3 shards over all data-parallel ranks; --pin dp_replicate=1$"),
        (15, {}, "recompute: 126 layers full, .*; --pin recompute=none$"),
        (25, {"workload": {"precision": "bf16"}}, "ZeRO-0: without ZeRO it keeps gradients in the 16 bits"),
        (26, {}, "etp = 2: AutoEP folds etp"),
    ],
)
def test_refusals(number, changes, text):
    with pytest.raises(Unsupported, match=text):
        export(rewritten(golden(number), **changes), ("deepspeed",))


def test_a_key_that_it_would_ignore_is_never_written():
    """DeepSpeed passes over ``zero_optimisation`` without a word, and trains without ZeRO."""
    with pytest.raises(PlannerBug, match="has no setting 'zero_optimisation"):
        checked("deepspeed", flat({"zero_optimisation": {"stage": 3}}))
