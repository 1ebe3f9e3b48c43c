"""``lightning_plan.py``: Lightning's strategy and trainer of a plan, and ``lightning.sh``, which starts a program.

Source of every argument: ``targets/lightning.toml``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.export.facts import checked, flat, target
from planner.export.framework import framework_files
from planner.export.refusals import (
    Refusal,
    check_degrees,
    mixed_recompute,
    no_axis,
    other_work,
    own_bytes,
    refuse,
    split_experts,
    uniform_recompute,
)
from planner.export.render import DOCUMENT, Files, render
from planner.export.renumbering import needed_host_numbers
from planner.ranks import processes_per_host
from planner.result import Plan

PRECISIONS = {"bf16": "bf16-mixed", "fp32": "32-true"}
RECOMPUTE_PINS = ("recompute=full", "recompute=none")


def lightning(plan: Plan) -> Files:
    """``lightning_plan.py``, ``lightning.sh`` and the ``launch.sh`` it calls.

    Raises ``Unsupported`` for what Lightning's strategies have no argument for, ``BadInput`` for a plan that does not
    add up.
    """
    check_degrees(plan)
    refuse("lightning", _cannot(plan))
    hosts = needed_host_numbers(plan, "lightning")
    found = arguments(plan)
    text = render(
        "lightning_plan.py.j2", plan=plan, target=target("lightning"), **found, micro_batch=plan.strategy.micro_batch,
        seq_len=plan.workload.seq_len, recompute=uniform_recompute(plan.strategy) == "full",
    )  # fmt: skip
    script = framework_files(
        plan, "lightning", [], hosts=hosts, beside=True,
        about=("MESHWRIGHT_PROGRAM   your program, which makes its Trainer with lightning_plan.trainer(Block)",),
    )  # fmt: skip
    return script | {"lightning_plan.py": (text, DOCUMENT)}


def arguments(plan: Plan) -> dict[str, dict[str, Any]]:
    """Arguments of Lightning's ``Trainer``, of its ``FSDPStrategy`` and of the types that one works in."""
    found = {"trainer": _trainer(plan), "strategy": _strategy(plan), "types": _types(plan)}
    checked("lightning", flat(found))
    return found


def _trainer(plan: Plan) -> dict[str, Any]:
    return {
        "num_nodes": plan.cluster.hosts_used,
        "devices": processes_per_host(plan.strategy, plan.cluster),
        "accumulate_grad_batches": plan.strategy.micro_batches,
        "precision": PRECISIONS[plan.workload.precision],
    }


def _strategy(plan: Plan) -> dict[str, Any]:
    """Nothing for ZeRO-0, which is DDP."""
    strategy = plan.strategy
    if strategy.zero == 0:
        return {}
    if strategy.dp_replicate > 1:
        return {"sharding_strategy": "HYBRID_SHARD", "device_mesh": [strategy.dp_replicate, strategy.dp_shard]}
    return {"sharding_strategy": "FULL_SHARD" if strategy.zero == 3 else "SHARD_GRAD_OP"}


def _types(plan: Plan) -> dict[str, str]:
    if plan.strategy.zero == 0 or plan.workload.precision != "bf16":
        return {}
    return {"param_dtype": "bfloat16", "reduce_dtype": "float32", "buffer_dtype": "bfloat16"}


def _cannot(plan: Plan) -> Iterator[Refusal]:
    strategy = plan.strategy
    yield from other_work(plan, tuple(PRECISIONS))
    yield from own_bytes(plan)
    yield from no_axis(strategy, {
        "pp": "it has no pipeline",
        "cp": "it has no context parallelism",
        "tp": "ModelParallelStrategy takes sizes, and what is split and sharded by them is your configure_model's",
        "ep": "it has no expert parallelism",
        "etp": "it has no expert parallelism",
    })  # fmt: skip
    if strategy.zero == 1:
        yield Refusal("ZeRO-1", "its FSDP shards gradients (zero 2) or weights too (zero 3)", ("zero=2", "zero=3"))
    if strategy.zero == 2 and strategy.dp_replicate > 1:
        why = "HYBRID_SHARD shards weights too"
        yield Refusal(f"ZeRO-2 with dp_replicate = {strategy.dp_replicate}", why, ("zero=3", "dp_replicate=1"))
    yield from split_experts(plan)
    yield from mixed_recompute(strategy, "recomputes alike in all layers, in full", RECOMPUTE_PINS)
    kind = uniform_recompute(strategy)
    if kind == "selective":
        yield Refusal("selective recompute", "it recomputes layers in full", RECOMPUTE_PINS)
    if kind == "full" and strategy.zero == 0:
        yield Refusal("recompute with DDP", "the switch is FSDPStrategy's", ("recompute=none", "zero=2"))
