"""``accelerate.yaml``, ``accelerate_plan.py`` with what the YAML has no key for, and ``accelerate.sh``, which launches.

A config sets FSDP2 and its mesh; how micro-batches are summed and in how many bits gradients are reduced are arguments
of ``Accelerator``. Source of every key: ``targets/accelerate.toml``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.export.documents import as_yaml
from planner.export.facts import checked, flat, target
from planner.export.refusals import (
    Refusal,
    check_degrees,
    dp,
    mixed_recompute,
    no_axis,
    other_work,
    own_bytes,
    refuse,
    shared_heads,
    split_experts,
    uniform_recompute,
)
from planner.export.render import DOCUMENT, SCRIPT, Files, comment, render
from planner.export.renumbering import needed_host_numbers
from planner.ranks import world_size
from planner.result import Plan, StrategyRecord
from planner.runtime.limits import runs_on_cpu

PRECISIONS = ("bf16", "fp32")
RECOMPUTE_PINS = ("recompute=full", "recompute=none")


def accelerate(plan: Plan) -> Files:
    """The three files.

    Raises ``Unsupported`` for what they cannot say, ``BadInput`` for a plan that does not add up.
    """
    check_degrees(plan)
    refuse("accelerate", _cannot(plan))
    hosts = needed_host_numbers(plan, "accelerate")
    facts, known = target("accelerate"), {"accumulation": accumulation(plan), "types": types(plan)}
    checked("accelerate", flat(config(plan)) | flat(known))
    head = f"# {comment(plan.model.name)} on {comment(plan.cluster.name)}, for {facts.name}.\n"
    arguments = render(
        "accelerate_plan.py.j2", plan=plan, target=facts, **known, micro_batch=plan.strategy.micro_batch,
        seq_len=plan.workload.seq_len,
    )  # fmt: skip
    script = render(
        "accelerate.sh.j2", plan=plan, target=facts, name="accelerate", hosts=len(hosts),
        numbers=[] if hosts == sorted(hosts) else hosts,
    )  # fmt: skip
    text = head + as_yaml(config(plan))
    return {
        "accelerate.yaml": (text, DOCUMENT),
        "accelerate_plan.py": (arguments, DOCUMENT),
        "accelerate.sh": (script, SCRIPT),
    }


def config(plan: Plan) -> dict[str, Any]:
    """Accelerate's config of a plan."""
    strategy, cpu = plan.strategy, runs_on_cpu(plan.cluster)
    replicated = ("MULTI_CPU" if cpu else "MULTI_GPU") if world_size(strategy) > 1 else "NO"
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if strategy.zero else replicated,
        "mixed_precision": "bf16" if plan.workload.precision == "bf16" else "no",
        "num_machines": plan.cluster.hosts_used,
        "num_processes": world_size(strategy),
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": cpu,
        "main_training_function": "main",
    }
    return found | (_sharded(strategy) if strategy.zero else {})


def _sharded(strategy: StrategyRecord) -> dict[str, Any]:
    """FSDP2 and the mesh it works on."""
    mesh = {"dp_replicate": strategy.dp_replicate, "dp_shard": strategy.dp_shard, "tp": strategy.tp, "cp": strategy.cp}
    sizes: dict[str, Any] = {f"parallelism_config_{axis}_size": degree for axis, degree in mesh.items()}
    sizes |= {"parallelism_config_sp_size": 1, "parallelism_config_sp_backend": "deepspeed"}
    sizes |= {"parallelism_config_cp_backend": "torch", "parallelism_config_cp_comm_strategy": "alltoall"}
    return {
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": strategy.zero == 3,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_activation_checkpointing": uniform_recompute(strategy) == "full",
            "fsdp_offload_params": False,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        },
        "parallelism_config": sizes,
    }


def accumulation(plan: Plan) -> dict[str, Any]:
    """Arguments of ``GradientAccumulationPlugin``."""
    return {"num_steps": plan.strategy.micro_batches, "sync_each_batch": plan.strategy.zero >= 2}


def types(plan: Plan) -> dict[str, str]:
    """Types of FSDP2's mixed precision by name; nothing without FSDP or without mixing."""
    mixed = plan.strategy.zero and plan.workload.precision == "bf16"
    return {"param_dtype": "bfloat16", "reduce_dtype": "float32"} if mixed else {}


def _cannot(plan: Plan) -> Iterator[Refusal]:
    strategy, stack = plan.strategy, plan.workload.stack
    yield from other_work(plan, PRECISIONS)
    yield from own_bytes(plan)
    yield from no_axis(strategy, {
        "pp": "it has no pipeline",
        "ep": "its mesh has no axis of experts",
        "etp": "its mesh has no axis of experts",
    })  # fmt: skip
    yield from _mesh(plan)
    if strategy.zero == 1:
        why = "its FSDP2 shards gradients as well (zero 2) and weights (zero 3)"
        yield Refusal("ZeRO-1", why, ("zero=2", "zero=3"))
    if strategy.zero == 0 and strategy.tp * strategy.cp > 1:
        yield Refusal("ZeRO-0 with tp or cp", "its mesh needs FSDP2", ("zero=2", "zero=3"))
    yield from mixed_recompute(strategy, "recomputes alike in all layers, in full", RECOMPUTE_PINS)
    kind = uniform_recompute(strategy)
    if kind == "selective":
        yield Refusal("selective recompute", "it recomputes layers in full", RECOMPUTE_PINS)
    if kind == "full" and strategy.zero == 0:
        yield Refusal("recompute without FSDP2", "the switch is FSDP2's", ("recompute=none", "zero=2"))
    if strategy.cp > 1 and stack.context_exchange != "ring":
        yield Refusal(f"cp = {strategy.cp} by exchanging heads", "its cp passes keys from rank to rank", ("cp=1",))


def _mesh(plan: Plan) -> Iterator[Refusal]:
    strategy = plan.strategy
    if strategy.tp > 1 and plan.workload.stack.sequence_parallel:
        why = "Transformers' plans keep the whole sequence between layers on every rank, and the plan splits it"
        yield Refusal(f"tp = {strategy.tp}", why, ("tp=1",))
    yield from shared_heads(plan, "Transformers' plans split, and do not repeat, the model's")
    if strategy.tp * strategy.cp > 1 and strategy.dp_replicate > 1 and strategy.dp_shard == 1:
        why = "beside tp or cp it takes dp_replicate only with dp_shard above 1"
        pins = (f"dp_shard={dp(strategy)}", "dp_replicate=1")
        yield Refusal(f"dp_replicate = {strategy.dp_replicate} alone", why, pins)
    yield from split_experts(plan)
