"""maxtext.yml, read back: the mesh inside and across domains, batch and recompute against the plan."""

from __future__ import annotations

import math

import pytest
import yaml
from golden_plans import NAMES, alike, golden, layers_of, rewritten
from plans import TINY_LLAMA, make_plan

from planner.errors import Unsupported
from planner.export import export
from planner.export.facts import checked
from planner.result import Plan

EXPRESSIBLE = [9, 13, 15, 18, 23]
AXES = ("data", "fsdp", "context", "tensor", "tensor_sequence", "expert", "pipeline")


def read(plan: Plan) -> dict:
    return yaml.safe_load(export(plan, ("maxtext",))["maxtext.yml"][0])


def product(factors: list[int]) -> int:
    return math.prod(factors)


def compare(plan: Plan, found: dict) -> None:
    s, w, left = plan.strategy, plan.workload, dict(found)
    take = left.pop
    ici, dcn = ({axis: take(f"{level}_{axis}_parallelism") for axis in AXES} for level in ("ici", "dcn"))
    every = {axis: ici[axis] * dcn[axis] for axis in AXES}
    assert product(every.values()) == plan.cluster.devices_used
    assert product(ici.values()) == product(s.placement[axis][0] for axis in ("tp", "cp", "dp_shard", "dp_replicate"))
    shard = s.dp_shard if s.zero == 3 else 1
    assert every["data"] * every["fsdp"] * every["expert"] == s.dp_replicate * s.dp_shard
    assert every["fsdp"] * every["expert"] == shard
    assert (every["expert"], every["context"], every["pipeline"]) == (s.ep, s.cp, s.pp)
    split = w.stack.sequence_parallel
    assert (every["tensor"], every["tensor_sequence"]) == ((1, s.tp) if split else (s.tp, 1))
    assert ici["context"] == s.placement["cp"][0]
    assert ici["tensor"] * ici["tensor_sequence"] == s.placement["tp"][0]
    batch = take("per_device_batch_size") * plan.cluster.devices_used * take("gradient_accumulation_steps")
    assert batch == w.global_batch
    assert found["gradient_accumulation_steps"] == s.micro_batches
    assert take("max_target_length") == w.seq_len
    assert take("dtype") == {"bf16": "bfloat16", "fp32": "float32"}[w.precision]
    assert (take("weight_dtype"), take("grad_dtype")) == ("float32", "float32")
    assert take("opt_type") == {"adam": "adamw", "sgd": "sgd"}[w.optimizer]
    assert take("shard_optimizer_over_data") is (s.zero == 1)
    assert take("base_config") == "base.yml"
    take("hardware")
    kept = {"query_proj", "key_proj", "value_proj", "qkv_proj", "context", "out_proj", "mlpwi", "mlpwi_0", "mlpwi_1"}
    if take("remat_policy") == "full":
        assert set(layers_of(plan)) == {"full"}
    else:
        assert set(layers_of(plan)) == {"selective"}
        assert {name: take(name) for name in kept} == dict.fromkeys(kept, "device")
        assert (take("decoder_layer_input"), take("mlpwo")) == ("device", "remat")
    if s.cp > 1:
        assert take("context_parallel_strategy") == {"ring": "ring", "all_to_all": "ulysses"}[w.stack.context_exchange]
        assert take("context_parallel_load_balance") is True
        left.pop("attention", None), left.pop("use_tokamax_splash", None)
    assert left == {}


@pytest.mark.parametrize("number", EXPRESSIBLE, ids=lambda n: NAMES[n])
def test_every_value_is_the_plans(number):
    found = read(golden(number))

    compare(golden(number), found)
    assert checked("maxtext", found) == found


def test_axes_that_lie_inside_and_across():
    """32 x 2 devices: tp 2 x fsdp 4 in a host of eight, fsdp 8 across."""
    found = read(golden(13))

    assert (found["ici_fsdp_parallelism"], found["dcn_fsdp_parallelism"]) == (4, 8)
    assert (found["ici_tensor_sequence_parallelism"], found["dcn_tensor_sequence_parallelism"]) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "stack"),
    [
        ({"dp_replicate": 4, "precision": "bf16"}, {}),
        ({"dp_shard": 4, "zero": 1}, {}),
        ({"dp_shard": 2, "tp": 2, "cp": 2, "zero": 3}, {"sequence_parallel": False}),
        ({"cp": 2, "zero": 3}, {"context_exchange": "all_to_all"}),
    ],
)
def test_other_meshes(changes, stack):
    plan = rewritten(make_plan(recompute="selective", **changes), stack=stack)

    compare(plan, read(plan))


def test_experts_take_their_part_of_dp_shard():
    placement = golden(26).strategy.placement | {"cp": [1, 1], "dp_shard": [8, 8], "etp": [1, 1], "ep": [4, 2]}
    plan = rewritten(golden(26), cp=1, dp_shard=64, ep=8, etp=1, edp=8, micro_batches=2, placement=placement)
    found = read(plan)

    compare(plan, found)
    assert (found["ici_expert_parallelism"], found["dcn_expert_parallelism"]) == (4, 2)
    assert (found["ici_fsdp_parallelism"], found["dcn_fsdp_parallelism"]) == (2, 4)


@pytest.mark.parametrize(
    ("accelerator", "hosts", "word"),
    [("tpu-v5p", 2, "tpu"), ("h100-sxm", 2, "gpu_multiprocess"), ("h100-sxm", 1, "gpu"), ("cpu", 1, "cpu")],
)
def test_hardware(accelerator, hosts, word):
    placement = {"dp_shard": [4 // hosts, hosts]} | {axis: [1, 1] for axis in ("tp", "cp", "dp_replicate", "pp")}
    plan = make_plan(dp_shard=4, zero=3, recompute="full", accelerator=accelerator, placement=placement)

    assert read(plan)["hardware"] == word


def test_a_ring_on_tpus_needs_its_kernel():
    found = read(make_plan(cp=2, zero=3, recompute="full", accelerator="tpu-v5p"))

    assert (found["attention"], found["use_tokamax_splash"]) == ("flash", True)
    with pytest.raises(Unsupported, match="cp = 8: its ring takes an even cp whose square divides the sequence of 16"):
        read(make_plan(cp=8, zero=3, recompute="full", accelerator="tpu-v5p"))


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (0, {}, r"pp = 2: its pipeline passes .*ZeRO-1: every rank holds its weights in 32 bits.*recompute of part"),
        (21, {}, r"ZeRO-2: .*--pin zero=3.* no recompute: it always recomputes what is cheap; --pin rec"),
        (26, {}, "etp = 2: its tensor axis divides experts as well, so etp is tp = 1; --pin etp=1"),
        (23, {"zero": 0}, "ZeRO-0 with cp = 2: it shards weights over cp"),
        (19, {}, "dp_replicate = 16 with experts"),
        (9, {"clocks": [0.9]}, "per-stage clocks: JAX chooses"),
        (9, {"workload": {"precision": "fp8"}}, "precision: the plan is for fp8"),
    ],
)
def test_refusals(number, changes, text):
    with pytest.raises(Unsupported, match=text):
        export(rewritten(golden(number), **changes), ("maxtext",))


def test_selective_recompute_of_what_has_no_names():
    with pytest.raises(Unsupported, match=r"selective recompute: .* for experts; --pin recompute=full"):
        read(alike(golden(17), "selective"))
    with pytest.raises(Unsupported, match=r"selective recompute: .* for alternate"):
        read(rewritten(make_plan(recompute="selective"), stack={"selective": "alternate"}))


def test_a_fraction_of_a_sequence_that_would_be_rounded_down():
    """MaxText takes int(49 * (1 / 49)) = 0 sequences a step."""
    config = TINY_LLAMA | {"num_attention_heads": 49, "num_key_value_heads": 49, "hidden_size": 49 * 4,
                           "intermediate_size": 98, "vocab_size": 98}  # fmt: skip
    with pytest.raises(Unsupported, match="micro-batch: 1 "):
        read(make_plan(tp=49, recompute="full", config=config))
