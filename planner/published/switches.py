"""Precision, tuning and the stack's own settings as a published row words them."""

from __future__ import annotations

import re
from typing import Any

from cost_models.workload import Precision, Tuning
from planner.published.csv_rows import Row, says_off
from planner.published.recipes import Recipe
from planner.published.sources import Source
from topologies.errors import BadInput

PRECISIONS: tuple[tuple[str, Precision], ...] = (
    (r"NVFP4|MXFP4|\bFP4\b", "fp4"),
    (r"FP8|float8|alternative quantisation", "fp8"),
    (r"bf16|bfloat16", "bf16"),
    (r"fp16|float16|\bhalf\b", "fp16"),
    (r"fp32|float32", "fp32"),
)
"""The first whose pattern is found in a row's precision wins."""

MIXED = re.compile(r"(?:AMP|mixed(?:[ -]precision)?)?", re.IGNORECASE)
"""Words that leave open which 16-bit type it is."""

SCALINGS = (
    (r"MXFP8|FP8-MX", "mx"),
    (r"alternative", "block"),
    (r"FP8-CS|current scaling|tensorwise", "tensor"),
    (r"rowwise", "row"),
)
"""How fp8 numbers are scaled, where a row says so."""

FLAGS: tuple[tuple[str, str, Any], ...] = (
    (r"torch\.compile", "fused_pointwise", True),
    (r"async ?TP|tp-comm-overlap", "tp_overlap", True),
    (r"vanilla TP", "tp_overlap", False),
    (r"overlap-grad-reduce", "dp_overlap", True),
    (r"CUDA graphs", "cuda_graphs", True),
    (r"CUDA_LAUNCH_BLOCKING=1", "launch_blocking", True),
    (r"tokendrop", "token_drop", True),
    (r"DeepEP|dropless", "dispatcher", "deepep"),
    (r"HybridEP", "dispatcher", "hybridep"),
    (r"tokendrop", "dispatcher", "alltoall"),
    (r"mixed precision=PURE", "mixed_precision", "pure"),
    (r"mixed precision=DEFAULT", "mixed_precision", "default"),
    (r"act_cpu_offload=True", "activation_offload", True),
    (r"fsdp_float8_all_gather", "gather_bytes", 1.0),
    (r"8-bit Adam|bnb-optimizer|memory-saving optimizer", "optimizer", "adam8bit"),
    (r"Muon optimizer", "optimizer", "muon"),
    (r"pack_sample_into_one=True", "packed", True),
    (r"pack_sample_into_one=False", "packed", False),
    (r"partition_method balances", "balanced_ends", True),
    (r"after PCIe/NUMA fix", "numa_fix", True),
    (r"bnb\.nf4-dq", "quantised", "nf4-dq"),
    (r"bnb\.nf4(?!-)|\bQLoRA\b", "quantised", "nf4"),
    (r"expandable_segments", "expandable_segments", True),
)
"""Settings by the words that stand for them in flags, notes or sharding text."""


def precision(row: Row, recipe: Recipe, source: Source) -> tuple[Precision, tuple[str, ...]]:
    """The type of matrix products, and ``("precision",)`` where a default filled it. Raises ``BadInput`` for others."""
    words = row.get("precision", "")
    assumed = ("precision",) if MIXED.fullmatch(words) else ()
    usual = str(recipe.value("precision", source.precision or "bf16"))
    text = usual if MIXED.fullmatch(words) else words
    for pattern, found in PRECISIONS:
        if re.search(pattern, text, re.IGNORECASE):
            return found, assumed
    raise BadInput(f"precision {text[:40]!r} is none of {', '.join(name for _, name in PRECISIONS)}")


def tuning(text: str) -> Tuning:
    """``lora`` where the row trains adapters."""
    return "lora" if re.search(r"\bQ?LoRA\b|_lora\b", text, re.IGNORECASE) else "all"


def switches(row: Row, source: Source, recipe: Recipe, *, recompute: str, schedule: str) -> dict[str, Any]:
    """Settings that the row states, by name; ``recompute`` and ``schedule`` in the words of row or recipe."""
    text = " | ".join(row.get(name, "") for name in ("other_flags", "notes", "zero_or_fsdp_stage"))
    found: dict[str, Any] = {name: value for pattern, name, value in reversed(FLAGS) if re.search(pattern, text)}
    found["recompute"] = recompute
    if recompute_modules(recompute):
        found["selective"] = recompute_modules(recompute)
    if source.lists_compile and row.get("other_flags"):
        found.setdefault("fused_pointwise", False)
    if schedule:
        found["schedule"] = schedule
    scaling = _scaling(row.get("precision", "") or str(recipe.value("precision_fp8", "")))
    if scaling:
        found["fp8_scaling"] = scaling
    sequence = _sequence_parallel(row)
    if sequence is not None:
        found["sequence_parallel"] = sequence
    return found


def recompute_modules(words: str) -> str:
    """What Megatron's selective recompute of these modules repeats; "" where none is named or only small ones are."""
    inside = re.search(r"selective ?\(([^)]*)\)", words, re.IGNORECASE)
    names = {name.strip() for name in inside[1].split(",")} if inside else set()
    if names == {"core_attn"}:
        return "attention"
    if names and names <= {"moe_act", "layernorm"}:
        return "activation"
    return "network" if "moe" in names or (names and names <= {"mlp", "core_attn"}) else ""


def _scaling(words: str) -> str:
    return next((name for pattern, name in SCALINGS if re.search(pattern, words, re.IGNORECASE)), "")


def _sequence_parallel(row: Row) -> bool | None:
    words = row.get("sequence_parallel", "")
    flag = re.search(r"sequence_parallel=(True|False)", row.get("other_flags", ""), re.IGNORECASE)
    if flag:
        return flag[1].lower() == "true"
    return None if not words else not says_off(words)
