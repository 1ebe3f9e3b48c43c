"""``megatron-bridge.sh``: a recipe of Megatron-Bridge with a plan's settings as overrides.

What Megatron-LM takes as flags (:mod:`planner.export.megatron`) are fields of a config here; a recipe has its own
value for each, so every field is said, also where Megatron's default would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.export.facts import checked
from planner.export.framework import framework_files
from planner.export.megatron import Arguments, is_blackwell, planned_arguments
from planner.export.refusals import Refusal, offloaded, refuse
from planner.export.render import Files
from planner.result import Plan

Overrides = dict[str, Any]
ALWAYS = {
    "num-layers": "model.num_layers",
    "tensor-model-parallel-size": "model.tensor_model_parallel_size",
    "pipeline-model-parallel-size": "model.pipeline_model_parallel_size",
    "context-parallel-size": "model.context_parallel_size",
    "expert-model-parallel-size": "model.expert_model_parallel_size",
    "expert-tensor-parallel-size": "model.expert_tensor_parallel_size",
    "seq-length": "dataset.seq_length",
    "micro-batch-size": "train.micro_batch_size",
    "global-batch-size": "train.global_batch_size",
    "optimizer": "optimizer.optimizer",
}
OR_NULL = {
    "pipeline-model-parallel-layout": "model.pipeline_model_parallel_layout",
    "recompute-granularity": "model.recompute_granularity",
    "recompute-method": "model.recompute_method",
    "recompute-num-layers": "model.recompute_num_layers",
    "recompute-modules": "model.recompute_modules",
}
OR_FALSE = {
    "sequence-parallel": ("model.sequence_parallel",),
    "use-distributed-optimizer": ("ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer"),
    "overlap-grad-reduce": ("ddp.overlap_grad_reduce",),
    "overlap-param-gather": ("ddp.overlap_param_gather",),
    "use-megatron-fsdp": ("ddp.use_megatron_fsdp", "dist.use_megatron_fsdp"),
    "use-tp-pp-dp-mapping": ("dist.use_tp_pp_dp_mapping",),
}
WHERE_SAID = {
    "num-distributed-optimizer-instances": "ddp.num_distributed_optimizer_instances",
    "data-parallel-sharding-strategy": "ddp.data_parallel_sharding_strategy",
    "outer-dp-sharding-strategy": "ddp.outer_dp_sharding_strategy",
    "sgd-momentum": "optimizer.sgd_momentum",
    "ckpt-format": "checkpoint.ckpt_format",
    "moe-grouped-gemm": "model.moe_grouped_gemm",
    "moe-token-dispatcher-type": "model.moe_token_dispatcher_type",
    "moe-flex-dispatcher-backend": "model.moe_flex_dispatcher_backend",
}
NO_OTHER_SPLIT = {
    "model.num_layers_in_first_pipeline_stage": None,
    "model.num_layers_in_last_pipeline_stage": None,
    "model.account_for_embedding_in_pipeline_split": False,
    "model.account_for_loss_in_pipeline_split": False,
    "comm_overlap": None,
}
"""What a recipe may set and a layout or a plan contradicts."""


def bridge(plan: Plan) -> Files:
    """``megatron-bridge.sh`` and the ``launch.sh`` it calls. Raises as :func:`planner.export.megatron.megatron`."""
    refuse("megatron-bridge", _cannot(plan))
    found, hosts = overrides(plan)
    one_connection = plan.strategy.tp * plan.strategy.cp > 1 and plan.strategy.zero < 2
    return framework_files(
        plan, "megatron-bridge", [f"{key}={_hydra(value)}" for key, value in found.items()], hosts=hosts,
        about=("MESHWRIGHT_PROGRAM   Megatron-Bridge's scripts/training/run_recipe.py",
               "Recipe and data are yours to add: bash megatron-bridge.sh 0 --recipe NAME --dataset mock"),
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if one_connection else {},
    )  # fmt: skip


def overrides(plan: Plan) -> tuple[Overrides, list[int]]:
    """Fields of Megatron-Bridge's config by path, and the number of every host of the plan."""
    arguments, hosts = planned_arguments(plan, "megatron-bridge")
    virtual = plan.strategy.virtual_stages
    found: Overrides = {path: arguments[flag] for flag, path in ALWAYS.items()}
    found |= {path: arguments.get(flag) for flag, path in OR_NULL.items()}
    found |= {path: arguments.get(flag, False) for flag, paths in OR_FALSE.items() for path in paths}
    found |= {path: arguments[flag] for flag, path in WHERE_SAID.items() if flag in arguments}
    found |= {"model.virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None}
    found |= {"model.cp_comm_type": _only(arguments.get("cp-comm-type"))}
    found |= NO_OTHER_SPLIT | {"mixed_precision": _precision(arguments)}
    return checked("megatron-bridge", found), hosts


def _precision(arguments: Arguments) -> str:
    return "bf16_with_fp8_subchannel_scaling_mixed" if "fp8-format" in arguments else "bf16_mixed"


def _only(words: list[str] | None) -> str | None:
    return None if words is None else words[0]


def _hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides; text with signs in it is quoted for Hydra, apart from the shell."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return f"'{value}'" if isinstance(value, str) and not value.replace("_", "").isalnum() else str(value)


def _cannot(plan: Plan) -> Iterator[Refusal]:
    work, strategy = plan.workload, plan.strategy
    yield from offloaded(plan)
    blocks = work.precision == "fp8" and work.stack.block_scaled and not is_blackwell(plan)
    if work.precision != "bf16" and not blocks:
        why = f"its recipe for {work.precision} holds, reduces or gathers in other bytes than the plan counts"
        yield Refusal("precision", why, otherwise="--precision bf16")
    if strategy.tp > 1 and work.stack.tp_overlap:
        yield Refusal("tp_overlap", "an override cannot make the object that says how", ("tp=1",))
