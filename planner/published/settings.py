"""The workload of a published job with its stack's settings: what the row states, else its release's recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

from cost_models.stack import Stack
from cost_models.workload import Training
from planner.published.models import latent
from planner.published.recipes import Recipe, recipe
from planner.published.records import Job

DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0}
CELLS = {
    "sequence_parallel": "sequence_parallel",
    "fused_attention": "flash_attention",
    "fused_pointwise": "compiled",
    "fused_loss": "loss_fusion",
    "dropout": "dropout",
    "tp_overlap": "tp_overlap",
    "dp_overlap": "dp_overlap",
    "cuda_graphs": "cuda_graphs",
    "fused_accumulation": "fused_accumulation",
    "chunked_loss": "chunked_loss",
    "padded_vocab": "padded_vocab",
    "reduce_whole": "reduce_whole",
    "dispatcher": "moe_dispatcher",
    "balanced_routing": "balanced_routing",
    "consecutive_experts": "consecutive_experts",
    "fused_experts": "fused_experts",
    "grouped_experts": "moe_grouped_gemm",
    "expert_graphs": "expert_graphs",
    "selective": "selective",
    "attention_kernel": "attention_kernel",
    "gather_once": "gather_once",
    "early_stop": "early_stop",
    "broadcast_weights": "broadcast_weights",
    "gathers_again": "gathers_again",
    "whole_qkv": "whole_qkv",
    "joined_kv": "joined_kv",
    "repeats_kv": "repeats_kv",
    "copies_gathered": "copies_gathered",
    "fused_norms": "fused_norms",
    "plain_adapters": "plain_adapters",
    "adapter_masks": "adapter_masks",
    "weight_bytes": "weight_bytes",
    "gradient_bytes": "gradient_bytes",
    "held_gradient_bytes": "held_gradient_bytes",
    "optimizer_bytes": "optimizer_bytes",
}
"""Fields of :class:`Stack` and the recipe cells that fill them."""

WHERE_STATED = ("fp8_activation", "quantised_inputs", "weights_on_activation")
"""Fields that hold only where a recipe says so, whatever their default."""

MASTER_AND_8_BIT_ADAM = 6.0
"""Bytes a parameter of an fp32 master copy and two moments of a byte; of embeddings moments stay in fp32.

Source: Dettmers et al., arXiv:2110.02861, sections 2 and 2.3; bigscience-workshop/Megatron-DeepSpeed
megatron/mpu/layers.py@8387ae17: optim_bits 32.
"""
QUANTISED_BYTES = {"nf4": 0.5 + 4 / 64, "nf4-dq": 0.5 + 1 / 64 + 4 / (64 * 256), "gptq": 0.5 + 2.5 / 128}
"""Bytes a weight in blocks of 64 with an fp32 scale; or an 8-bit one, itself scaled in blocks of 256; or, of GPTQ, in
groups of 128 with a 16-bit scale and a zero point of 4 bits.

Source: Dettmers et al., arXiv:2305.14314, section 3; AutoGPTQ/AutoGPTQ auto_gptq/quantization/config.py, group_size.
"""
TARGETS = {
    "q": ("qkv",),
    "k": ("qkv",),
    "v": ("qkv",),
    "qkv": ("qkv",),
    "attention_out": ("output",),
    "mlp_up": ("gate_up", "up"),
    "mlp_down": ("down",),
}
"""Operators beside which the recipes' adapters stand."""


def with_settings(job: Job) -> Job:
    """The same job, its workload carrying the stack that ran it.

    Buffers that tensor parallelism fills beside compute are written over NVLink: on PCIe it hides only where the row
    says so. Inferred: LoRA on L40S takes the time of both.
    """
    cells = recipe(job.stack, job.release)
    fields: dict[str, Any] = {field: cells.value(cell) for field, cell in CELLS.items()}
    if job.cluster.host.scale_up_link.startswith("PCIe"):
        fields["tp_overlap"] = False
    learning = job.workload.tuning != "lora"  # frozen weights have no fp32 copy: they are sharded in 16 bits
    fields["master_weights_sharded"] = learning and job.strategy.zero == 3 and cells.value("master_dtype") == "fp32"
    if latent(job.model):
        fields |= {name: cells.value(f"latent_{name}", fields[name]) for name in ("optimizer_bytes", "selective")}
    if job.switches.get("optimizer") == "adam8bit":
        fields["embedding_optimizer_bytes"] = cells.value("optimizer_bytes")
        fields["optimizer_bytes"] = min(cells.value("optimizer_bytes", 12), MASTER_AND_8_BIT_ADAM)
    fields |= {name: cells.value(name) is True for name in WHERE_STATED}
    if _too_wide(job, cells):
        fields["fused_attention"] = False
    if job.model.experts:
        fields |= _routed(job, cells, fields)
    fields["block_scaled"] = job.switches.get("fp8_scaling") in ("mx", "block")
    fields["row_scaled"] = job.switches.get("fp8_scaling") == "row"
    if job.workload.tuning == "lora":
        fields |= _frozen(job, cells)
    fields["reduce_bytes"] = DTYPE_BYTES.get(cells.value("reduce_dtype", ""))
    if job.workload.precision == "fp8" and cells.value("fp8_parameters"):
        fields["gather_bytes"] = DTYPE_BYTES["fp8"]
    fields |= _mixed_precision(job) | {k: v for k, v in job.switches.items() if k in Stack.model_fields}
    if cells.value("compiled_loss") and fields["fused_pointwise"]:
        fields["fused_loss"] = True
    if cells.value("gpt_dropout") and _learned_positions(job):
        fields["dropout"] = True
    if job.switches.get("fused_dispatch"):
        fields["dispatcher"] = "deepep"
    fields["selective"] = fields["selective"] or "attention"
    fields["fused_pointwise"] = fields["fused_pointwise"] if fields["fused_pointwise"] is not None else True
    known = {name: value for name, value in fields.items() if value is not None}
    workload = Training(**{**_own(job.workload, cells), "stack": Stack(name=job.stack, release=job.release, **known)})
    return dataclasses.replace(job, workload=workload)


def _frozen(job: Job, cells: Recipe) -> dict[str, Any]:
    """What recipes change where adapters stand beside frozen weights: bytes, attention, exchange of cp, fusions."""
    low = job.workload.precision in ("fp8", "fp4")
    kept = QUANTISED_BYTES.get(job.switches.get("quantised"), cells.value("frozen_bytes") if low else None)
    names, memory = ("fp8_attention", "context_exchange", "fused_network"), job.cluster.memory_bytes
    own = {name: cells.by_memory(f"lora_{name}", memory) for name in names}
    library = cells.value("bitsandbytes") if job.switches.get("quantised") else None
    graphs = cells.value("lora_cuda_graphs", cells.value("cuda_graphs"))
    return {"frozen_bytes": kept, "bitsandbytes": library, "cuda_graphs": graphs, **own}


def _routed(job: Job, cells: Recipe, fields: dict[str, Any]) -> dict[str, Any]:
    """What recipes change for models with experts: attention's kernel and precision, logits', overlap of tp, graphs."""
    whole = cells.value("moe_graphs_between_hosts", True) or not _separate_hosts(job)
    mx = whole and job.switches.get("fp8_scaling") == "mx"
    pipelined = job.strategy.degrees.pp > 1 and _separate_hosts(job)
    return {
        "attention_kernel": cells.value("moe_attention_kernel", fields.get("attention_kernel")),
        "fp8_attention": mx and cells.value("moe_mx_attention", False),
        "tp_overlap": fields["tp_overlap"] and cells.value("moe_tp_overlap", True),
        "cuda_graphs": fields["cuda_graphs"] and (cells.value("moe_host_graphs", True) or not pipelined),
        "expert_graphs": fields["expert_graphs"] and whole,
        "fused_experts": fields["fused_experts"] and whole and (cells.value("fused_biases", True) or not _biased(job)),
        "quantised_head": mx and cells.value("moe_mx_head", False),
    }


def _biased(job: Job) -> bool:
    """Whether the model's experts have biases or clamps, which grouped products of some stacks pass over apart."""
    return any(op.split == "experts" and op.unfused > 0 for kind in job.model.kinds for op in kind.operators)


def _separate_hosts(job: Job) -> bool:
    """Whether the job runs on several hosts, each a scale-up domain of its own."""
    return job.cluster.domain_devices == job.cluster.host.devices < job.cluster.devices


def _too_wide(job: Job, cells: Recipe) -> bool:
    """Whether Blackwell's fused attention of that release has no kernel for training heads as wide as the model's."""
    widest = cells.value("widest_blackwell_head")
    if not widest or job.cluster.accelerator.family != "blackwell":
        return False
    attentions = (op.attention for kind in job.model.kinds for op in kind.operators if op.attention is not None)
    return any(max(it.qk_dim, it.v_dim) > widest for it in attentions)


def _learned_positions(job: Job) -> bool:
    """Whether the model is of GPT's kind, which recipes train with dropout."""
    return any(operator.name == "positions" for operator in job.model.embedding.operators)


def _own(workload: Training, cells: Recipe) -> dict[str, Any]:
    asked = {name: getattr(workload, name) for name in Training.model_fields if name != "stack"}
    if workload.tuning == "lora":
        asked["lora_rank"] = cells.value("lora_rank", workload.lora_rank)
        targets = (TARGETS[name] for name in cells.value("lora_targets", ("qkv", "attention_out")))
        asked["lora_targets"] = tuple(dict.fromkeys(name for names in targets for name in names))
    return asked


def _mixed_precision(job: Job) -> dict[str, Any]:
    """llm-foundry's names: PURE keeps and reduces everything in 16 bits, DEFAULT reduces gradients in fp32.

    Its tables with DEFAULT are those of October 2023 and later, of PyTorch 2.1, whose recompute stops early
    (mosaicml/llm-foundry@b2a43a147 and setup.py; ``activation_checkpointing_reentrant: false``); PURE's are of 1.13.
    """
    kind = job.switches.get("mixed_precision")
    return {"pure": {"reduce_bytes": 2.0}, "default": {"reduce_bytes": 4.0, "early_stop": True}}.get(kind, {})
