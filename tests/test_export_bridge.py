"""megatron-bridge.sh: every override known, in Hydra's grammar, and the plan's."""

from __future__ import annotations

import pytest
from golden_plans import NAMES, golden, host_words, hosts_agree, layers_of, rewritten

from cost_models.strategy import DENSE_ORDER
from planner.errors import Unsupported
from planner.export import export
from planner.export.facts import checked
from planner.result import Plan

EXPRESSIBLE = [4, *range(9, 19), *range(21, 25), 26]


def read(words: list[str]) -> dict:
    """Overrides by path, their values read as Hydra reads them."""
    found = {}
    for word in words:
        key, _, text = word.partition("=")
        assert key not in found
        found[key] = value_of(text)
    return checked("megatron-bridge", found)


def value_of(text: str):
    if text.startswith("["):
        return [value_of(part) for part in text[1:-1].split(",")]
    if text.startswith("'"):
        return text[1:-1]
    assert not set(text) & set("|*()\"'{}$, ")
    plain = {"null": None, "true": True, "false": False}
    return plain[text] if text in plain else int(text) if text.isdecimal() else float(text) if "." in text else text


def compare(plan: Plan, found: dict) -> None:
    s, w, left = plan.strategy, plan.workload, dict(found)
    take = left.pop
    axes = {"tensor_model": s.tp, "pipeline_model": s.pp, "context": s.cp, "expert_model": s.ep, "expert_tensor": s.etp}
    assert {axis: take(f"model.{axis}_parallel_size") for axis in axes} == axes
    assert take("model.num_layers") == plan.model.layers
    assert take("model.virtual_pipeline_model_parallel_size") == (s.virtual_stages if s.virtual_stages > 1 else None)
    text = take("model.pipeline_model_parallel_layout")
    sizes = [1 if "*" not in stage else int(stage.strip("EL").partition("*")[2]) for stage in (text or "").split("|")]
    assert (text is None and s.pp == 1) or sizes == s.layers_per_stage
    for name in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"):
        assert take(f"model.{name}") is None
    for name in ("embedding", "loss"):
        assert take(f"model.account_for_{name}_in_pipeline_split") is False
    assert take("model.cp_comm_type") == ("p2p" if s.cp > 1 else None)
    assert take("model.sequence_parallel") is (s.tp > 1)
    assert (take("dataset.seq_length"), take("train.micro_batch_size")) == (w.seq_len, s.micro_batch)
    assert take("train.global_batch_size") == w.global_batch
    full = set(layers_of(plan)) == {"full"}
    kept = [take(f"model.recompute_{name}") for name in ("granularity", "method", "num_layers", "modules")]
    assert kept == (["full", "uniform", 1, None] if full else [None] * 4)
    assert take("optimizer.optimizer") == w.optimizer
    for name in ("ddp", "optimizer"):
        assert take(f"{name}.use_distributed_optimizer") is (s.zero > 0)
    for name in ("ddp", "dist"):
        assert take(f"{name}.use_megatron_fsdp") is (s.zero > 1)
    assert take("ddp.num_distributed_optimizer_instances", 1) == (s.dp_replicate if s.zero else 1)
    shards = take("ddp.data_parallel_sharding_strategy", None)
    assert shards == {2: "optim_grads", 3: "optim_grads_params"}.get(s.zero)
    assert take("ddp.outer_dp_sharding_strategy", None) == ("no_shard" if s.zero > 1 else None)
    assert take("checkpoint.ckpt_format", None) == ("fsdp_dtensor" if s.zero > 1 else None)
    assert take("ddp.overlap_grad_reduce") is True
    assert take("ddp.overlap_param_gather") is (s.zero > 0)
    assert take("dist.use_tp_pp_dp_mapping") is False
    assert take("comm_overlap") is None
    assert take("mixed_precision") == "bf16_mixed"
    experts = "num_local_experts" in plan.model.config
    assert take("model.moe_grouped_gemm", False) is experts
    assert take("model.moe_token_dispatcher_type", None) == ("alltoall" if experts else None)
    assert left == {}


@pytest.mark.parametrize("number", EXPRESSIBLE, ids=lambda n: NAMES[n])
def test_every_value_is_the_plans(number, tmp_path):
    words = host_words(golden(number), "megatron-bridge", tmp_path, "0", "--recipe", "x", MESHWRIGHT_PROGRAM="run.py")

    assert words[-2:] == ["--recipe", "x"]
    compare(golden(number), read(words[words.index("run.py") + 1 : -2]))
    assert hosts_agree(golden(number), (tmp_path / "megatron-bridge.sh").read_text(), DENSE_ORDER)


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (0, {}, r"Megatron-Bridge 0.6.0 cannot .* recompute of part of the layers"),
        (9, {"workload": {"precision": "fp16"}}, "precision: its recipe for fp16 .*; --precision bf16"),
        (9, {"workload": {"precision": "fp8"}}, "precision: its recipe for fp8"),
        (11, {"stack": {"tp_overlap": True}}, "tp_overlap: an override cannot make the object"),
    ],
)
def test_refusals(number, changes, text):
    with pytest.raises(Unsupported, match=text):
        export(rewritten(golden(number), **changes), ("megatron-bridge",))


def test_block_scaled_fp8_where_weights_stay_in_16_bits():
    plan = rewritten(golden(9), workload={"precision": "fp8"}, stack={"block_scaled": True})
    text = export(plan, ("megatron-bridge",))["megatron-bridge.sh"][0]

    assert "mixed_precision=bf16_with_fp8_subchannel_scaling_mixed\n" in text
