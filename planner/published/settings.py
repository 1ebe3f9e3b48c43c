"""The workload of a published job with its stack's settings: what the row states, else its release's recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

from cost_models.stack import Stack
from cost_models.workload import Training
from planner.published.recipes import Recipe, recipe
from planner.published.records import Job

DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0}
SELECTIVE = {"torchtitan": "alternate"}
"""What selective recompute repeats: every second product in torchtitan, attention's core in Megatron and its kin."""
FUSED_DISPATCH = ("deepep", "hybridep")

CELLS = {
    "sequence_parallel": "sequence_parallel",
    "fused_attention": "flash_attention",
    "fused_pointwise": "compiled",
    "fused_loss": "loss_fusion",
    "dropout": "dropout",
    "tp_overlap": "tp_overlap",
    "dp_overlap": "dp_overlap",
    "cuda_graphs": "cuda_graphs",
    "attention_kernel": "attention_kernel",
    "gather_once": "gather_once",
    "broadcast_weights": "broadcast_weights",
    "weight_bytes": "weight_bytes",
    "gradient_bytes": "gradient_bytes",
    "optimizer_bytes": "optimizer_bytes",
}
"""Fields of :class:`Stack` and the recipe cells that fill them."""


def with_settings(job: Job) -> Job:
    """The same job, its workload carrying the stack that ran it."""
    cells = recipe(job.stack, job.release)
    fields: dict[str, Any] = {field: cells.value(cell) for field, cell in CELLS.items()}
    fields["reduce_bytes"] = DTYPE_BYTES.get(cells.value("reduce_dtype", ""))
    fields |= _mixed_precision(job) | {k: v for k, v in job.switches.items() if k in Stack.model_fields}
    if cells.value("gpt_dropout") and _learned_positions(job):
        fields["dropout"] = True
    fields["fused_dispatch"] = cells.value("moe_dispatcher") in FUSED_DISPATCH or job.switches.get("fused_dispatch", False)
    fields["selective"] = SELECTIVE.get(job.stack, "attention")
    fields["fused_pointwise"] = fields["fused_pointwise"] if fields["fused_pointwise"] is not None else True
    known = {name: value for name, value in fields.items() if value is not None}
    workload = Training(**{**_own(job.workload, cells), "stack": Stack(name=job.stack, release=job.release, **known)})
    return dataclasses.replace(job, workload=workload)


def _learned_positions(job: Job) -> bool:
    """Whether the model is of GPT's kind, which recipes train with dropout."""
    return any(operator.name == "positions" for operator in job.model.embedding.operators)


def _own(workload: Training, cells: Recipe) -> dict[str, Any]:
    asked = {name: getattr(workload, name) for name in Training.model_fields if name != "stack"}
    if workload.tuning == "lora":
        asked["lora_rank"] = cells.value("lora_rank", workload.lora_rank)
    return asked


def _mixed_precision(job: Job) -> dict[str, Any]:
    """llm-foundry's names: PURE keeps and reduces everything in 16 bits, DEFAULT reduces gradients in fp32."""
    kind = job.switches.get("mixed_precision")
    return {"pure": {"reduce_bytes": 2.0}, "default": {"reduce_bytes": 4.0}}.get(kind, {})
