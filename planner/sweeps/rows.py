"""The columns of a sweep that a plan fills: of one kind of device or of several."""

from __future__ import annotations

from typing import Any

from planner.mixed.result import MixedPlan
from planner.result import Plan
from planner.sweeps.table import Row

DEGREES = ("tp", "cp", "pp", "dp_replicate", "dp_shard", "ep", "etp", "zero", "micro_batch", "micro_batches",
           "schedule", "virtual_stages")  # fmt: skip
FIGURES = ("status", "objective_name", "objective", "bound", "gap", "step_s", "tokens_per_s_per_device",
           "model_flop_utilisation", "memory_headroom_fraction", "joules_per_step", "joules_per_token", "usd_per_step",
           "usd_per_billion_tokens", "search_s")  # fmt: skip
WORK = ("seq_len", "global_batch", "precision", "optimizer")


def named_as_asked(plan: Plan | MixedPlan, cluster: str) -> Plan | MixedPlan:
    """The plan with its cluster's name as it was asked for, so that it can be read again from there."""
    if isinstance(plan, MixedPlan):
        return plan.model_copy(update={"cluster_name": cluster})
    return plan.model_copy(update={"cluster": plan.cluster.model_copy(update={"source": cluster})})


def plan_row(plan: Plan | MixedPlan) -> Row:
    """The columns that a plan fills; of a mixed one those that it knows, and degrees that all its stages share."""
    row = _mixed_row(plan) if isinstance(plan, MixedPlan) else _row(plan)
    return row | {name: getattr(plan.workload, name) for name in WORK}


def _row(plan: Plan) -> Row:
    it, fullest = plan.strategy, max(plan.memory, key=lambda stage: stage.need_bytes)
    return {
        **{name: getattr(plan, name) for name in FIGURES},
        **{name: getattr(it, name) for name in DEGREES},
        "layers_per_stage": "+".join(map(str, it.layers_per_stage)),
        "recomputed_layers": sum(count for stage in it.recompute for count, kind in stage if kind != "none"),
        "devices": plan.cluster.devices, "devices_used": plan.cluster.devices_used,
        "memory_bytes": fullest.need_bytes, "memory_limit_bytes": fullest.limit_bytes,
        "watts": plan.watts["facility"],
    }  # fmt: skip


def _mixed_row(plan: MixedPlan) -> Row:
    used, usd = sum(part.devices_used for part in plan.parts), plan.usd_per_step
    return {
        **(_stages_row(plan) if plan.alone is None else _row(plan.alone)),
        **{name: getattr(plan, name) for name in FIGURES if name in type(plan).model_fields},
        "tokens_per_s_per_device": plan.tokens_per_s / used, "watts": plan.watts["facility"],
        "joules_per_token": plan.joules_per_step / plan.workload.tokens,
        "usd_per_billion_tokens": None if usd is None else usd / plan.workload.tokens * 1e9,
        "devices": sum(part.devices for part in plan.parts), "devices_used": used,
    }  # fmt: skip


def _stages_row(plan: MixedPlan) -> Row:
    """Columns of stages over several parts."""
    fullest = max(plan.stages, key=lambda stage: stage.need_bytes / stage.limit_bytes)
    runs = [run for stage in plan.stages for run in stage.recompute]
    return {
        **{name: _shared([getattr(stage, name) for stage in plan.stages]) for name in ("tp", "cp", "ep", "zero")},
        "micro_batch": _shared([stage.micro_batch for stage in plan.stages]), "micro_batches": plan.micro_batches,
        "pp": len(plan.stages), "etp": 1, "schedule": "1f1b", "virtual_stages": 1,
        "layers_per_stage": "+".join(str(stage.layers) for stage in plan.stages),
        "recomputed_layers": sum(count for count, kind in runs if kind != "none"),
        "memory_bytes": fullest.need_bytes, "memory_limit_bytes": fullest.limit_bytes,
    }  # fmt: skip


def _shared(values: list[Any]) -> Any:
    """The one value of all stages; ``None`` where they differ."""
    return values[0] if len(set(values)) == 1 else None
