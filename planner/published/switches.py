"""Precision, tuning and the stack's own settings as a published row words them."""

from __future__ import annotations

import re
from typing import Any

from cost_models.workload import Precision, Tuning
from planner.published.csv_rows import Row, says_off
from planner.published.recipes import Recipe
from planner.published.saved_tensors import in_other_words
from planner.published.sources import Source
from planner.published.wording import Mention, contradicts, mentions, said, without_what_is_off
from topologies.errors import BadInput

PRECISIONS: tuple[tuple[str, Precision], ...] = (
    (r"NVFP4|MXFP4|\bFP4\b", "fp4"),
    (r"FP[ _-]?8|float8|E4M3|E5M2|alternative quantisation", "fp8"),
    (r"bf[ _-]?16|bfloat16", "bf16"),
    (r"fp[ _-]?16|float16|\bhalf\b|16-mixed|16-true", "fp16"),
    (r"fp32|float32|\bsingle\b", "fp32"),
)
"""The first that a row's precision names as in use wins."""
_NAMED = "|".join(pattern for pattern, _ in PRECISIONS)
PRECISION_OF = rf"(?:{_NAMED})(?:[ _-](?:params?|parameters?|weights?|all|gather|attention|linears?|GEMMs?|comm\w*))*"
"""A type and what it is the type of, which may stand before the word that it is off: ``FP8 param gather disabled``."""
EITHER = rf"(?:{_NAMED})\s*(?:/|,?\bor\b)\s*(?:FP[48]|BF[ _-]?16|bfloat16|FP[ _-]?16|float(?:8|16))"
"""Two types of products of which a row used the one or the other."""
NOT_PRICED = r"(?<![A-Za-z])TF32"
"""Products that the models have no kernels of."""

MIXED = re.compile(r"(?:AMP|O[12]|(?:automatic )?mixed(?:[ -]precision)?|16[ -]?bits?)?", re.IGNORECASE)
"""Words that leave open which 16-bit type it is."""

SCALINGS = (
    (r"MXFP8|FP8[ _-]MX", "mx"),
    (r"alternative|block[ -]?(?:wise|scal)|128 ?x ?128|sub-?channel|FP8[ _-]SC", "block"),
    (r"FP8[ _-](?:CS|DS)|(?:current|delayed) scaling|per[ _-]tensor|tensorwise", "tensor"),
    (r"row[ -]?wise|per[ -]row", "row"),
)
"""How fp8 numbers are scaled, where a row says so."""

COMPILED = r"torch[._ -]?compiled?(?![a-z])|(?<![\w.-])(?:--)?compile(?=\s*[=:])"
ENGINE = r"\bTE\b"
ASYNC_TP = r"async(?:hronous)?[ _-]?TP(?![a-z])|tp[_ -]comm(?:unication)?[_ -]overlap"
TOKEN_DROP = r"token[ _-]?drop(?!less)\w*"
DROPLESS = "dropless"
"""What sends tokens that are never dropped: DeepEP since it exists, nothing that the row states before."""
DEEPEP_SINCE = "2025-02"
"""Month of its first commit. Source: github.com/deepseek-ai/DeepEP."""
BALANCED = (
    r"(?:moe[_ -]router[_ -])?forced?[_ -](?:load[_ -])?balanc(?:ed|ing)(?:[_ -]rout(?:ing|er))?|"
    r"balanced[_ -](?:rout(?:ing|er)|experts)"
)
"""Every expert is given as many tokens, whatever the router would do."""
WHOLLY_16_BIT = (
    r"(?:pure|all|wholly|true)[ _-](?:bf|fp)16(?![a-z])|(?:bf16|fp16|16)-true|"
    r"(?:bf16|fp16|16[ -]bit) weights and (?:Adam\w*|optimi[sz]ers?(?: states)?|moments)"
)
"""Weights, gradients and moments in 16 bits and no other copy: Lightning's ``bf16-true``, or weights loaded so."""
ALL_16_BIT = {"gradient_bytes": 2.0, "optimizer_bytes": 4.0, "reduce_bytes": 2.0, "master_weights_sharded": False}
FLAGS: tuple[tuple[str, str, Any, Any], ...] = (
    (COMPILED, "fused_pointwise", True, False),
    (ASYNC_TP, "tp_overlap", True, False),
    (r"vanilla TP", "tp_overlap", False, None),
    (r"overlap[_ -]grad(?:ient)?[_ -]reduce", "dp_overlap", True, False),
    (r"CUDA[ _-]?graphs?(?![a-z])", "cuda_graphs", True, False),
    (r"flash[ _-]?att(?:ention|n)(?:[ _-]?v?[1-4])?(?![a-z])|FA-?[1-4]\b", "fused_attention", True, False),
    (r"flash[ _-]?att(?:ention|n)[ _-]?v?1\b|FA-?1\b", "attention_kernel", "flash1", None),
    (r"flash[ _-]?att(?:ention|n)[ _-]?v?[34]\b|FA-?[34]\b", "attention_kernel", "fused", None),
    (BALANCED, "balanced_routing", True, False),
    *((WHOLLY_16_BIT, field, value, None) for field, value in ALL_16_BIT.items()),
    (r"(?<![a-z])ulysses", "context_exchange", "all_to_all", None),
    (r"CUDA_LAUNCH_BLOCKING", "launch_blocking", True, None),
    (TOKEN_DROP, "token_drop", True, None),
    (r"DeepEP", "dispatcher", "deepep", None),
    (r"dropless", "dispatcher", DROPLESS, None),
    (r"HybridEP", "dispatcher", "hybridep", None),
    (TOKEN_DROP, "dispatcher", "alltoall", None),
    (r"mixed precision=PURE", "mixed_precision", "pure", None),
    (r"mixed precision=DEFAULT", "mixed_precision", "default", None),
    (r"act_cpu_offload|(?:activations?|CPU|optimi[sz]er|NVMe|params?|parameters?|weights?)[ _-]off-?load\w*",
     "offload", True, None),
    (r"fsdp_float8_all_gather", "gather_bytes", 1.0, None),
    (r"8-?bit[ -]Adam\w*|bnb-optimizer|memory-saving optimizer", "optimizer", "adam8bit", None),
    (r"Muon(?![a-z])", "optimizer", "muon", None),
    (r"pack_sample_into_one", "packed", True, False),
    (r"partition_method balances", "balanced_ends", True, None),
    (r"after PCIe/NUMA fix", "numa_fix", True, None),
    (r"bnb\.nf4-dq", "quantised", "nf4-dq", None),
    (r"GPTQ(?![a-z])", "quantised", "gptq", None),
    (r"bnb\.nf4(?!-)|\bQ-?LoRA\b|load_in_4bit|bnb_4bit\w*", "quantised", "nf4", None),
    (r"expandable_segments", "expandable_segments", True, None),
)  # fmt: skip
"""Settings by the words that stand for them in flags, notes or sharding text: field, value where on, where off."""
WHERE_SAID = ("other_flags", "zero_or_fsdp_stage", "precision", "notes")
"""Cells that settings are read from; the first that says anything about one decides."""
LORA = r"\b(?:Q-?|Do|rs)?LoRA\b|_lora\b|\bPEFT\b|\badapters?\b"
RECOMPUTE = (
    r"(?<![A-Za-z])(?<!force_)re-?comput(?!\w*weight)\w*|(?:activation|gradient)[ _-]checkpoint\w*|"
    r"(?<![A-Za-z])S?AC(?![A-Za-z])|(?<![A-Za-z])remat(?:eriali[sz]\w*)?(?![A-Za-z])"
)
MODULES = {
    "core_attn": r"core[_ ]att(?:ention|n)|(?<!\w)attn\w*", "mlp": r"(?<!\w)mlp\w*", "moe_act": r"moe_act|Swi-?GLU",
    "layernorm": r"(?:RMS|layer)[ _-]?norm\w*", "mla_up_proj": r"mla_up_proj|(?:MLA[ _-])?up[ _-]?proj\w*",
}  # fmt: skip
"""Parts of a layer that stacks recompute alone, which makes it selective, as Megatron names and as rows word them."""
BEHIND_QKV = r"save_qkv_proj"
"""MaxText's policy that keeps queries, keys and values."""
SMALL_MODULES = {"moe_act", "layernorm"}
SEQUENCE_PARALLEL = r"sequence[ _-]parallel(?:ism)?|(?<![A-Za-z])SP(?![A-Za-z\d]|\s*=\s*\d)"


def precision(row: Row, recipe: Recipe, source: Source) -> tuple[Precision, tuple[str, ...]]:
    """The type of matrix products, and ``("precision",)`` where a default filled it or one of two was taken.

    Raises ``BadInput`` for others.
    """
    words, _ = without_what_is_off(row.get("precision", ""), PRECISION_OF)
    left_open = bool(MIXED.fullmatch(words.strip(" ;,")))
    text = str(recipe.value("precision", source.precision or "bf16")) if left_open else words
    assumed = ("precision",) if left_open or re.search(EITHER, words, re.IGNORECASE) else ()
    if not said(text, NOT_PRICED):
        for pattern, found in PRECISIONS:
            if re.search(pattern, text, re.IGNORECASE):
                return found, assumed
    raise BadInput(f"precision {text[:40]!r} is none of {', '.join(name for _, name in PRECISIONS)}")


def tuning(text: str) -> Tuning:
    """``lora`` where the row trains adapters."""
    return "lora" if said(text, LORA) else "all"


def switches(row: Row, source: Source, recipe: Recipe, *, recompute: str, schedule: str) -> dict[str, Any]:
    """Settings that the row states, by name; ``recompute`` and ``schedule`` in the words of row or recipe."""
    found = _flags(row)
    found["recompute"] = recompute
    if recompute_modules(recompute):
        found["selective"] = recompute_modules(recompute)
    if source.lists_compile and row.get("other_flags"):
        found.setdefault("fused_pointwise", False)
    if source.lists_engine and not re.search(ENGINE, row.get("precision", "")):
        found.setdefault("fused_attention", False)
    if schedule:
        found["schedule"] = schedule
    scaling = _scaling(row.get("precision", "") or str(recipe.value("precision_fp8", "")))
    if scaling:
        found["fp8_scaling"] = scaling
    sequence = _sequence_parallel(row)
    if sequence is not None:
        found["sequence_parallel"] = sequence
    return found


def _flags(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pattern, name, on, off in FLAGS:
        answer = _answer(row, pattern)
        value = None if answer is None else on if answer else off
        if value is not None:
            found.setdefault(name, value)
    if found.get("dispatcher") == DROPLESS:
        date = re.match(r"20\d\d(?:-\d\d)?|", row.get("date", ""))[0]
        found |= {"dispatcher": None if date < DEEPEP_SINCE[: len(date)] else "deepep"}
    return {name: value for name, value in found.items() if value is not None}


def _answer(row: Row, pattern: str) -> bool | None:
    """Whether the row says that a setting is on, in the first cell that says anything of it."""
    for name in WHERE_SAID:
        if mentions(row.get(name, ""), pattern):
            return said(row[name], pattern)
    return None


def both_ways(row: Row) -> tuple[str, ...]:
    """A sentence for each setting that one cell says is on and is off, and which is therefore as if not stated."""
    cells = [(name, row.get(name, "")) for name in WHERE_SAID]
    names = {field: name for pattern, field, *_ in FLAGS for name, text in cells if contradicts(text, pattern)}
    return tuple(f"{name} says both that {field} is on and that it is off" for field, name in names.items())


def stated_recompute(row: Row) -> str:
    """The row's words for what is recomputed: its cell's, else the part of its flags that is about it."""
    if row.get("recompute"):
        return in_other_words(row["recompute"])
    found = [(clause, one) for clause in row.get("other_flags", "").split(";") for one in mentions(clause, RECOMPUTE)]
    on = next((_piece(clause, one) for clause, one in found if one.on), "")
    return on or ("none" if found else "")


def _piece(clause: str, one: Mention) -> str:
    """The part of a list in which a mention stands; a comma in brackets joins what they name."""
    ends = [match.span() for match in re.finditer(r"[,+](?![^(]*\))", clause)]
    first = max((end for _, end in ends if end <= one.start), default=0)
    return clause[first : min((start for start, _ in ends if start >= one.end), default=len(clause))].strip()


def whole_layers(words: str) -> int:
    """Layers of each stage that are recomputed whole where the words count them, ``"full, block, 21 layers"``; else 0.

    Source: NVIDIA/Megatron-LM megatron/training/arguments.py@core_v0.13.0: block, recompute-num-layers.
    """
    counted = r"\bfull\W+block\W+(?:recompute.)?(?:num.layers\W+)?(\d{1,4})(?: layers)?\W*$"
    found = re.search(counted, words, re.IGNORECASE)
    return int(found[1]) if found else 0


def recompute_modules(words: str) -> str:
    """What Megatron's selective recompute of these modules repeats; "" where it is none of these.

    Beside an up-projection ``mlp`` repeats nothing: models with latent attention have experts, which it leaves alone.
    Source: NVIDIA-NeMo/Megatron-Bridge skills/nemo-mbridge-perf-activation-recompute/SKILL.md@067f987d.
    """
    if re.search(BEHIND_QKV, words, re.IGNORECASE):
        return "behind_qkv"
    inside = re.search(r"selective ?\(([^)]*)\)", words, re.IGNORECASE)
    said_to_be = {name for name, pattern in MODULES.items() if said(words, pattern)}
    names = {_module(name.strip().lower()) for name in inside[1].split(",")} if inside else said_to_be
    if "mla_up_proj" in names:
        names = names - {"mlp"}
    if names == {"core_attn"}:
        return "attention"
    if names and names <= {*SMALL_MODULES, "mla_up_proj"}:
        up_projected, others = "mla_up_proj" in names, names & SMALL_MODULES
        return "small_modules" if up_projected and others else "up_projection" if up_projected else "activation"
    return "network" if "moe" in names or (names and names <= {"mlp", "core_attn"}) else ""


def _module(words: str) -> str:
    """Megatron's name of a part of a layer, else the words themselves."""
    return next((name for name, pattern in MODULES.items() if re.fullmatch(pattern, words, re.IGNORECASE)), words)


def _scaling(words: str) -> str:
    return next((name for pattern, name in SCALINGS if re.search(pattern, words, re.IGNORECASE)), "")


def _sequence_parallel(row: Row) -> bool | None:
    flag = said(row.get("other_flags", ""), SEQUENCE_PARALLEL)
    words = row.get("sequence_parallel", "")
    return flag if flag is not None or not words else not says_off(words)
