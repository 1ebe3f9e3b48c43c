"""``deepspeed.json``, and ``deepspeed.sh``, which starts a program with it.

DeepSpeed's JSON holds ZeRO, batch and number types. Pipelines, sequence parallelism and recompute are in the user's own
code there, so a plan that needs them is refused. Source of every key: ``targets/deepspeed.toml``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from planner.export.facts import checked, flat
from planner.export.framework import framework_files
from planner.export.refusals import (
    Refusal,
    check_degrees,
    has_experts,
    no_axis,
    other_work,
    own_bytes,
    recompute_text,
    refuse,
    shared_heads,
    uniform_recompute,
)
from planner.export.render import DOCUMENT, Files
from planner.export.renumbering import needed_host_numbers
from planner.result import Plan

PRECISIONS = ("bf16", "fp16", "fp32")


def deepspeed(plan: Plan) -> Files:
    """``deepspeed.json``, ``deepspeed.sh`` and the ``launch.sh`` it calls.

    Raises ``Unsupported`` for what the JSON cannot say, ``BadInput`` for a plan that does not add up.
    """
    check_degrees(plan)
    refuse("deepspeed", _cannot(plan))
    hosts = needed_host_numbers(plan, "deepspeed")
    script = framework_files(
        plan, "deepspeed", ["--deepspeed"], hosts=hosts, files={"--deepspeed_config": "deepspeed.json"},
        about=("MESHWRIGHT_PROGRAM   your program, which takes --deepspeed and --deepspeed_config",),
    )  # fmt: skip
    return script | {"deepspeed.json": (json.dumps(config(plan), indent=2) + "\n", DOCUMENT)}


def config(plan: Plan) -> dict[str, Any]:
    """DeepSpeed's configuration of a plan."""
    strategy, work = plan.strategy, plan.workload
    found: dict[str, Any] = {
        "train_batch_size": work.global_batch,
        "train_micro_batch_size_per_gpu": strategy.micro_batch,
        "gradient_accumulation_steps": strategy.micro_batches,
        **_types(work.precision),
        "zero_optimization": {"stage": strategy.zero, "overlap_comm": work.stack.dp_overlap},
    }
    if strategy.tp > 1:
        found["tensor_parallel"] = {"autotp_size": strategy.tp}
    if strategy.ep > 1:
        found["expert_parallel"] = {"enabled": True, "autoep_size": strategy.ep, "expert_tensor_parallel_size": 1}
    checked("deepspeed", flat(found))
    return found


def _types(precision: str) -> dict[str, Any]:
    """Sixteen-bit weights with gradients summed and sent in 32 bits, as plans count them; or 32 bits throughout."""
    fp32 = {"communication_data_type": "fp32"}
    if precision == "fp32":
        return fp32
    return {precision: {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}} | fp32


def _cannot(plan: Plan) -> Iterator[Refusal]:
    strategy, stack = plan.strategy, plan.workload.stack
    yield from other_work(plan, PRECISIONS)
    yield from own_bytes(plan)
    yield from no_axis(strategy, {
        "pp": "stages are arguments of PipelineModule in your program; the JSON's pipeline.stages is not read",
        "cp": "its sequence parallelism is set up in your program, not by the JSON",
        "etp": "AutoEP folds etp into AutoTP, which is without sequence parallelism",
    })  # fmt: skip
    if strategy.tp > 1 and stack.sequence_parallel:
        why = "AutoTP keeps the whole sequence between layers on every rank, and the plan splits it"
        yield Refusal(f"tp = {strategy.tp}", why, ("tp=1",))
    # Source: deepspeed/module_inject/tp_shard.py@0.19.8, get_shard_size.
    yield from shared_heads(plan, "AutoTP deals queries out by the heads they share, and not equally by the model's")
    if strategy.tp > 1 and has_experts(plan):
        yield Refusal(f"tp = {strategy.tp} with experts", "AutoEP folds experts into AutoTP", ("tp=1",))
    if strategy.zero and strategy.dp_replicate > 1:
        why = f"ZeRO-{strategy.zero} shards over all data-parallel ranks"
        yield Refusal(f"dp_replicate = {strategy.dp_replicate}", why, ("dp_replicate=1",))
    if strategy.zero == 0 and plan.workload.precision != "fp32":
        why = "without ZeRO it keeps gradients in the 16 bits of the weights, and the plan counts 32"
        yield Refusal("ZeRO-0", why, ("zero=1",))
    if uniform_recompute(strategy) != "none":
        why = f"{recompute_text(strategy)}, and your program decides that, not the JSON"
        yield Refusal("recompute", why, ("recompute=none",))
