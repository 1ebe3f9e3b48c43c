"""The plans that ``module_worker.py`` applies to modules of many families, without torch: tests are collected here."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModuleCase:
    """A plan applied to a small module of ``family``, which runs by its own ``forward``.

    ``mutation`` names what is taken out of the job to see that the comparison notices; ``own_seeds`` starts every rank
    from other weights, of which those of the first rank that holds them are wanted; ``rules`` are the user's own,
    ``refused`` matches what applying the plan says instead of training. ``own_loss`` is what the module computes from
    labels. ``routed`` sends every token to the experts that it goes to in the single process; weights are drawn from
    ``seed``. ``dropout`` is that of the residuals of a GPT-2, on
    ranks that were seeded apart.
    """

    name: str
    world: int
    family: str
    strategy: dict[str, Any] = field(default_factory=dict)
    mutation: str | None = None
    tolerance: float = 1e-5
    own_seeds: bool = False
    rules: dict[str, str] | None = None
    refused: str | None = None
    own_loss: bool = False
    routed: bool = False
    seed: int = 1
    dropout: float = 0.0


@dataclass(frozen=True)
class CheckpointCase:
    """A checkpoint of ``family`` saved under one strategy and loaded under another."""

    name: str
    world: int
    family: str
    saved: dict[str, Any]
    loaded: dict[str, Any]


AXES: dict[str, dict[str, Any]] = {
    "dp": {"dp_replicate": 2},
    "fsdp": {"dp_shard": 2, "zero": 3},
    "tp": {"tp": 2},
    "cp": {"cp": 2},
    "pp": {"pp": 2},
    "ep": {"dp_shard": 2, "ep": 2, "zero": 1},
}
"""One strategy of two ranks an axis."""

FAMILIES = ("llama", "gpt2", "bert", "vit", "t5", "moe", "mixtral", "convolutions")
"""Hand-written: ``moe`` (experts in a loop; ``deep`` is the same with more layers) and ``convolutions``; the others are
transformers' own modules."""

DO_NOT_APPLY = {
    ("vit", "cp"): "keeps no sequence",
    ("t5", "pp"): "one module each",
    ("t5", "cp"): "one module each",
    ("t5", "tp"): "is wrong: on 2 ranks",
    ("convolutions", "tp"): "no rule splits any module",
    ("convolutions", "cp"): "keeps no sequence",
}
"""Axes that a family refuses, with a part of the reason; besides, ``ep`` where there are no experts."""

EXPERTS = ("moe", "mixtral")


def applies(family: str, axis: str) -> bool:
    """Whether ``family`` can be split along ``axis``."""
    return (family, axis) not in DO_NOT_APPLY and (axis != "ep" or family in EXPERTS)


def _twos(**fields: Any) -> dict[str, Any]:
    return {"micro_batch": 2, "micro_batches": 2} | fields


def _pair(one: str, other: str) -> dict[str, Any]:
    """Both axes; two kinds of data parallelism side by side become replicas of shards."""
    return _twos(**(AXES[one] | AXES[other]))


def _tolerance(family: str, axes: set[str]) -> float:
    """Of fp32: 2e-6 at most was seen; but ViT's keys have a bias without a gradient, of which tp leaves other rounding
    (2e-5 of the hundredth part of its weight's)."""
    return 3e-5 if family == "vit" and "tp" in axes else 1e-5


def _matrix() -> list[ModuleCase]:
    """Every axis of every family on two ranks, and every pair of them on four."""
    found = []
    for family in FAMILIES:
        axes = [axis for axis in AXES if applies(family, axis)]
        found += [
            ModuleCase(f"{family}: {axis}", 2, family, _twos(**AXES[axis]), tolerance=_tolerance(family, {axis}))
            for axis in axes
        ]
        for one, other in itertools.combinations(axes, 2):
            if {one, other} == {"fsdp", "ep"}:
                strategy = _twos(dp_shard=4, ep=2, zero=3)
            elif {one, other} == {"dp", "ep"}:
                strategy = _twos(dp_replicate=4, ep=2)
            else:
                strategy = _pair(one, other)
            tolerance = _tolerance(family, {one, other})
            found.append(ModuleCase(f"{family}: {one} x {other}", 4, family, strategy, tolerance=tolerance))
    return found


UNEVEN: dict[str, Any] = {"virtual_stages": 2, "layers_per_stage": [1, 2, 1, 1]}
"""Two virtual stages a rank of the five layers of ``deep``."""

TWO_STAGES: dict[str, Any] = {"pp": 2, "layers_per_stage": [2, 3]}
"""The same layers, one stage a rank."""
ROUNDED = 0.03
"""Of bf16 where ranks add up parts that one process adds in another order: 0.021 at most over ten seeds, as much as
one process in bf16 is from itself in fp32. Elsewhere it is exact."""

# fmt: off
MATRIX = [
    *_matrix(),
    ModuleCase("vit: fsdp, full", 2, "vit", _twos(dp_shard=2, zero=3, recompute="full")),
    ModuleCase("llama: tp, selective", 2, "llama", _twos(tp=2, recompute="selective")),
    ModuleCase("mixtral: ep, zero 3", 2, "mixtral", _twos(dp_shard=2, zero=3, ep=2)),
    ModuleCase("mixtral: ep x replicas, zero 2", 4, "mixtral", _twos(dp_replicate=2, dp_shard=2, ep=2, zero=2)),
    ModuleCase("mixtral: etp, zero 3, full", 2, "mixtral", _twos(dp_shard=2, etp=2, zero=3, recompute="full")),
    ModuleCase("mixtral: tp, etp", 2, "mixtral", _twos(tp=2, etp=2)),
    ModuleCase("mixtral: ep, etp, zero 1", 4, "mixtral", _twos(dp_shard=4, ep=2, etp=2, zero=1)),
    ModuleCase("mixtral: etp x pp", 4, "mixtral", _twos(dp_replicate=2, pp=2, etp=2)),
    ModuleCase("moe: tp, ep, etp, zero 1", 4, "moe", _twos(tp=2, dp_shard=2, ep=2, etp=2, zero=1)),
    ModuleCase("moe: etp x fsdp", 4, "moe", _twos(dp_shard=4, etp=2, zero=3)),
    ModuleCase("moe: tp, etp x cp", 4, "moe", _twos(tp=2, etp=2, cp=2)),
    ModuleCase("deep: tp, etp x zbv", 4, "deep", _twos(tp=2, etp=2, pp=2, **UNEVEN, schedule="zbv")),
    *(ModuleCase(f"{family}: tp", 2, family, _twos(tp=2)) for family in ("qwen3", "gemma2", "olmo2")),
    ModuleCase("qwen3, one KV head: tp x fsdp, full", 4, "qwen3, one KV head",
               _twos(tp=2, dp_shard=2, zero=3, recompute="full")),
    ModuleCase("qwen3, one KV head: tp x cp, selective", 4, "qwen3, one KV head",
               _twos(tp=2, cp=2, recompute="selective")),
    ModuleCase("qwen3, one KV head: tp x pp, zb-h1", 4, "qwen3, one KV head", _twos(tp=2, pp=2, schedule="zb-h1")),
    ModuleCase("qwen3, one KV head: tp, bf16", 2, "qwen3, one KV head", _twos(tp=2, precision="bf16"),
               tolerance=ROUNDED),
    ModuleCase("deepseek_v3: tp x pp, full", 4, "deepseek_v3", _twos(tp=2, pp=2, recompute="full")),
    ModuleCase("deepseek_v3: tp x fsdp", 4, "deepseek_v3", _twos(tp=2, dp_shard=2, zero=3)),
    ModuleCase("phi3, one KV head: tp", 2, "phi3, one KV head", _twos(tp=2)),
    *(ModuleCase(f"{family}: tp above the KV heads", 4, family, _twos(tp=4)) for family in ("llama", "mixtral")),
    ModuleCase("qwen3: tp x pp, zb-h1", 4, "qwen3", _twos(tp=2, pp=2, schedule="zb-h1")),
    ModuleCase("qwen3: tp x dp, bf16", 4, "qwen3", _twos(tp=2, dp_replicate=2, precision="bf16"), tolerance=ROUNDED),
    ModuleCase("deep: zb-h1", 2, "deep", _twos(**TWO_STAGES, schedule="zb-h1")),
    ModuleCase("deep: zb-h1, bf16", 2, "deep", _twos(**TWO_STAGES, schedule="zb-h1", precision="bf16")),
    ModuleCase("llama: zb-h1, bf16", 2, "llama", _twos(pp=2, schedule="zb-h1", precision="bf16")),
    *(ModuleCase(f"mixtral: {axis}, bf16", 2, "mixtral", _twos(**AXES[axis], precision="bf16"), tolerance=ROUNDED)
      for axis in ("tp", "cp", "ep")),
    *(ModuleCase(f"moe: tp, bf16, to the same experts, seed {seed}", 2, "moe", _twos(tp=2, precision="bf16"),
                 tolerance=ROUNDED, routed=True, seed=seed) for seed in (4, 5, 9)),
    *(ModuleCase(f"t5: {axis}, bf16", 2, "t5", _twos(**AXES[axis], precision="bf16")) for axis in ("dp", "fsdp")),
    ModuleCase("deep: dualpipev x ep", 4, "deep", _twos(pp=2, **UNEVEN, schedule="dualpipev", micro_batches=4,
                                                        dp_shard=2, zero=1, ep=2)),
    ModuleCase("deep: v-half x ep", 4, "deep", _twos(pp=2, **UNEVEN, schedule="v-half", dp_shard=2, zero=1, ep=2)),
    ModuleCase("deep: zbv x tp", 4, "deep", _twos(pp=2, **UNEVEN, schedule="zbv", tp=2)),
    ModuleCase("deep: virtual stages x cp", 4, "deep", _twos(pp=2, **UNEVEN, cp=2)),
    ModuleCase("deep: virtual stages x fsdp, full", 4, "deep", _twos(pp=2, **UNEVEN, dp_shard=2, zero=3,
                                                                     recompute="full")),
    ModuleCase("mixtral: eager-1f1b x ep", 4, "mixtral", _twos(pp=2, schedule="eager-1f1b", in_flight=3, dp_shard=2,
                                                               zero=1, ep=2)),
]
MODULE_CASES = [
    ModuleCase("llama: cp, zero 2", 2, "llama", _twos(cp=2, zero=2, recompute="full")),
    ModuleCase("llama: dp, its own loss", 2, "llama", _twos(dp_replicate=2), own_loss=True),
    ModuleCase("llama: tp, its own loss", 2, "llama", _twos(tp=2), own_loss=True),
    ModuleCase("gpt2: tp, dropout", 2, "gpt2", _twos(tp=2), dropout=0.2),
    ModuleCase("classes: tp, as many as token types", 2, "classes", _twos(tp=2)),
    ModuleCase("convolutions: pp, full", 2, "convolutions", _twos(pp=2, recompute="full")),
    ModuleCase("moe: dp", 2, "moe", _twos(dp_replicate=2), own_seeds=True),
    ModuleCase("moe: tp, etp", 2, "moe", _twos(tp=2, etp=2)),
    ModuleCase("moe: dp, etp", 2, "moe", _twos(dp_replicate=2, etp=2)),
    ModuleCase("moe: cp", 2, "moe", _twos(cp=2)),
    ModuleCase("deep: pp, uneven virtual stages", 2, "deep", _twos(pp=2, **UNEVEN)),
    ModuleCase("deep: dualpipev", 2, "deep", _twos(pp=2, **UNEVEN, schedule="dualpipev", micro_batches=4)),
    ModuleCase("moe: ep, full", 2, "moe", _twos(dp_replicate=2, ep=2, recompute="full")),
    ModuleCase("moe: bf16", 2, "moe", _twos(dp_shard=2, zero=3, precision="bf16")),
    ModuleCase("gpt2: pp, tied head, bf16", 2, "gpt2", _twos(pp=2, precision="bf16"), tolerance=ROUNDED),
    ModuleCase("gpt2: pp, tied head, ranks seeded apart", 2, "gpt2", _twos(pp=2), own_seeds=True),
    ModuleCase("bert: tp x pp, tied head", 4, "bert", _twos(tp=2, pp=2)),
    ModuleCase("shared: pp x fsdp, one table at both ends", 4, "shared", _twos(pp=2, dp_shard=2, zero=2)),
    ModuleCase("convolutions: pp, bf16", 2, "convolutions", _twos(pp=2, precision="bf16")),
    *(ModuleCase(f"{it.name}", 4, "moe", it.strategy) for it in _matrix() if it.family == "moe" and it.world == 4),
    ModuleCase("deep: zbv x fsdp", 4, "deep", _twos(pp=2, **UNEVEN, schedule="zbv", dp_shard=2, zero=2)),
    ModuleCase("llama: tp x pp, full", 4, "llama", _twos(tp=2, pp=2, recompute="full")),
    ModuleCase("vit: tp x zero 1", 4, "vit", _twos(tp=2, dp_shard=2, zero=1), tolerance=_tolerance("vit", {"tp"})),
    ModuleCase("mixtral: tp, ep, etp x fsdp", 4, "mixtral", _twos(tp=2, dp_shard=2, ep=2, etp=2, zero=2)),
    ModuleCase("phi3: tp, fused columns gathered", 2, "phi3", _twos(tp=2)),
    ModuleCase("qwen3: tp x fsdp, norms of heads, full", 4, "qwen3", _twos(tp=2, dp_shard=2, zero=3, recompute="full")),
    *(ModuleCase(f"{family}: tp", 2, family, _twos(tp=2)) for family in ("llama, one KV head", "qwen3, one KV head")),
    ModuleCase("deepseek_v3: tp, latents and one rotated key", 2, "deepseek_v3", _twos(tp=2)),
    ModuleCase("grouped: tp above the KV heads, full", 4, "grouped", _twos(tp=4, recompute="full")),
    ModuleCase("moe: a wrong rule", 2, "moe", _twos(tp=2), rules={"blocks.*.attention.o": "replicated"},
               refused=r"^rule 'blocks\.0\.attention\..* is wrong: on 2 ranks"),
    ModuleCase("moe: rules that cannot be checked", 2, "moe", _twos(tp=2), mutation="the check raises a TypeError",
               refused=r"^rules of Decoder cannot be checked: TypeError: forward\(\) takes no such thing; pin tp=1"),
    ModuleCase("moe: samples that cannot be checked", 2, "moe", _twos(dp_replicate=2),
               mutation="the check raises a TypeError",
               refused=r"^samples of Decoder cannot be checked: TypeError: .*; pin dp=1 and micro_batch=8"),
    ModuleCase("centred: dp", 2, "centred", _twos(dp_replicate=2),
               refused="Centred mixes the samples of a batch: its output 0 changes with the others in it"),
    ModuleCase("mutation: padding of ranks", 2, "moe", _twos(dp_shard=2, zero=1),
               mutation="each rank counts its own targets"),
    ModuleCase("mutation: padding of micro-batches", 2, "moe", _twos(tp=2),
               mutation="each micro-batch counts its own targets"),
    ModuleCase("mutation: tp sums", 2, "moe", _twos(tp=2), mutation="no sum of rows"),
    ModuleCase("mutation: tp gradients", 2, "moe", _twos(tp=2), mutation="no sum of gradients before columns"),
    ModuleCase("mutation: vocabulary", 2, "moe", _twos(tp=2), mutation="no sum over the vocabulary"),
    ModuleCase("mutation: tp gradients of norms of heads", 2, "qwen3", _twos(tp=2),
               mutation="no sum of gradients over heads"),
    ModuleCase("mutation: tp gradients of one KV head", 2, "qwen3, one KV head", _twos(tp=2),
               mutation="no sum of gradients of shared heads"),
    ModuleCase("mutation: tp norms of one KV head", 2, "qwen3, one KV head", _twos(tp=2),
               mutation="no sum of gradients over heads"),
    ModuleCase("mutation: tp gradients of the rotated key", 2, "deepseek_v3", _twos(tp=2),
               mutation="no sum of gradients of a key that all heads read"),
    ModuleCase("mutation: tp heads", 4, "grouped", _twos(tp=4), mutation="the first head for all"),
    ModuleCase("mutation: cp", 2, "moe", _twos(cp=2), mutation="no sum of gradients of keys"),
    ModuleCase("mutation: cp mean", 2, "moe", _twos(cp=2, zero=1), mutation="no division by dp and cp"),
    ModuleCase("mutation: pp", 2, "moe", _twos(pp=2), mutation="no hidden states from the stage before"),
    ModuleCase("mutation: pp, tied head", 2, "gpt2", _twos(pp=2), mutation="no sum of the ends' gradients"),
    ModuleCase("mutation: pp, tied head, ranks seeded apart", 2, "gpt2", _twos(pp=2), own_seeds=True,
               mutation="no first weights of the ends"),
    ModuleCase("mutation: ep", 2, "moe", _twos(dp_shard=2, zero=1, ep=2), mutation="no division by ep"),
    ModuleCase("mutation: etp", 2, "moe", _twos(tp=2, etp=2), mutation="no sum of gradients over slices"),
    ModuleCase("mutation: ep there", 2, "moe", _twos(dp_shard=2, zero=1, ep=2), mutation="no return of gradients"),
]
# fmt: on
"""What runs on every change: every axis and pair on one family, one composite on others, and what must be noticed."""

_FSDP, _FSDP4 = _twos(dp_shard=2, zero=3), _twos(dp_shard=4, zero=3, micro_batch=1)
_TP, _TP_FSDP, _DP4 = _twos(tp=2, micro_batch=4), _twos(tp=2, dp_shard=2, zero=3), _twos(dp_replicate=4, micro_batch=1)
CHECKPOINTS = [
    CheckpointCase("moe: ep to tp", 2, "moe", _twos(dp_shard=2, ep=2, zero=1), _TP),
    CheckpointCase("moe: pp to fsdp", 2, "moe", _twos(pp=2, micro_batch=4), _FSDP),
    CheckpointCase("gpt2: fsdp to tp", 2, "gpt2", _FSDP, _TP),
    CheckpointCase("gpt2: tp to pp, tied head", 2, "gpt2", _TP, _twos(pp=2, micro_batch=4)),
]
# fmt: off
CHECKPOINT_MATRIX = [
    CheckpointCase("gpt2: pp to tp", 2, "gpt2", _twos(pp=2, micro_batch=4), _TP),
    CheckpointCase("gpt2: tp to fsdp", 2, "gpt2", _TP, _FSDP),
    CheckpointCase("gpt2: tp x fsdp to dp", 4, "gpt2", _TP_FSDP, _DP4),
    CheckpointCase("gpt2: dp to tp x fsdp", 4, "gpt2", _DP4, _TP_FSDP),
    CheckpointCase("mixtral: ep x pp to tp x ep", 4, "mixtral", _twos(dp_shard=2, ep=2, pp=2),
                   _twos(tp=2, dp_shard=2, ep=2)),
    CheckpointCase("llama: tp x cp to fsdp", 4, "llama", _twos(tp=2, cp=2, micro_batch=4), _FSDP4),
]
# fmt: on
"""What the command checks as well."""
