"""The plans that ``gradient_worker.py`` applies, without torch: the tests are collected from this list."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plans import TINY_LLAMA, make_mixed_plan, make_part, make_plan, make_stage

from planner.mixed.launch import job_of
from planner.mixed.one_mesh import MixedJob
from planner.mixed.uneven import UnevenJob
from planner.result import Plan


@dataclass(frozen=True)
class Case:
    """One plan to apply, and what is taken out of the job to see that the comparison notices.

    ``own_seeds`` starts every rank from other weights, ``own_loss`` gives a loss that wants whole logits;
    ``exchanges`` counts what rank 0 does in the last of ``steps`` steps. ``mixed`` are the stages on hosts of different
    kinds, by their layers alone or by what :func:`plans.make_stage` takes.
    """

    name: str
    world: int
    strategy: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    mutation: str | None = None
    hugging_face: bool = False
    own_seeds: bool = False
    own_loss: bool = False
    steps: int = 1
    tolerance: float = 1e-5
    exchanges: dict[str, int] | None = None
    mixed: tuple[int | dict[str, Any], ...] = ()

    def plan(self) -> Plan | MixedJob | UnevenJob:
        """The plan of this case."""
        if self.mixed:
            each = [it if isinstance(it, dict) else {"layers": it, "micro_batch": 2} for it in self.mixed]
            parts = [make_part(f"part{k}", devices=4) for k in range(len(each))]
            stages = [make_stage(part, **it) for part, it in enumerate(each)]
            return job_of(make_mixed_plan(stages, parts, micro_batches=4))
        return make_plan(config=TINY_LLAMA | self.config, **self.strategy)


def _twos(**fields: Any) -> dict[str, Any]:
    """A strategy with several micro-batches of two sequences."""
    return {"micro_batch": 2, "micro_batches": 2} | fields


def _exchanges(gather: int = 0, scatter: int = 0, all_reduce: int = 0) -> dict[str, int]:
    """Counts by hand: a group is a layer, or the ends of the model; 4 layers and the ends make 5 groups, a stage of
    two layers with one end 3, two virtual stages of a layer and an end 4. Zero 1 exchanges each once a step; zero 2
    scatters and zero 3 also gathers, forward and backward, in every micro-batch. The last
    stage reduces its number of targets over each kind of data parallelism."""
    counts = {"all_gather_single": gather, "reduce_scatter_single": scatter, "all_reduce": all_reduce}
    return {name: count for name, count in counts.items() if count}


PP2 = {"pp": 2, "micro_batch": 2, "micro_batches": 4}
ZBV = PP2 | {"virtual_stages": 2, "schedule": "zbv"}
PP4 = {"pp": 4, "micro_batches": 5}
EIGHT = {"num_hidden_layers": 8}
UNEVEN = ({"layers": 1, "tp": 2, "micro_batch": 2}, {"layers": 3, "dp": 2, "zero": 2})

WORLD_2 = [
    Case("dp2 zero 0, from ranks that start apart", 2, _twos(dp_replicate=2), own_seeds=True,
         exchanges=_exchanges(all_reduce=5 + 1)),
    Case("dp2 zero 1", 2, _twos(dp_shard=2, zero=1), exchanges=_exchanges(gather=5, scatter=5, all_reduce=1)),
    Case("dp2 zero 2", 2, _twos(dp_shard=2, zero=2), steps=2,
         exchanges=_exchanges(gather=5, scatter=2 * 5, all_reduce=1)),
    Case("dp2 zero 3", 2, _twos(dp_shard=2, zero=3), steps=2,
         exchanges=_exchanges(gather=2 * 2 * 5, scatter=2 * 5, all_reduce=1)),
    # The loss reduces three numbers a token in each micro-batch; q, k, v and gate, up each read a gathered input.
    Case("tp2", 2, _twos(tp=2), exchanges={"all_reduce": 2 * 3, "not kept": 2 * 4 * 5}),
    Case("tp2, odd vocabulary, biases", 2, _twos(tp=2),
         {"vocab_size": 67, "attention_bias": True, "mlp_bias": True}),
    Case("tp2, selective", 2, _twos(tp=2, recompute="selective"), exchanges={"all_reduce": 2 * 3}),
    Case("tp2, tied head, full", 2, _twos(tp=2, recompute="full"), {"tie_word_embeddings": True}),
    Case("tp2, one KV head, biases", 2, _twos(tp=2), {"num_key_value_heads": 1, "attention_bias": True},
         exchanges={"all_reduce": 2 * 3, "not kept": 2 * 4 * 5, "reduce_scatter_single": 2 * 4 * 2}),
    Case("transformers, tp2, one KV head, selective", 2, _twos(tp=2, recompute="selective"),
         {"num_key_value_heads": 1}, hugging_face=True),
    Case("dp2 zero 2, mixed recompute", 2, _twos(
        dp_shard=2, zero=2, recompute=[[(1, "full"), (2, "selective"), (1, "none")]])),
    Case("dp2 zero 3, bf16", 2, _twos(dp_shard=2, zero=3, precision="bf16")),
    Case("pp2, bf16", 2, PP2 | {"precision": "bf16"}),
    Case("pp2, two kinds of hosts", 2, mixed=(1, 3), steps=2),
    Case("pp2, uneven, zb-h1", 2, PP2 | {"layers_per_stage": [1, 3], "schedule": "zb-h1"}, steps=2),
    Case("pp2, 2 virtual stages", 2, PP2 | {"virtual_stages": 2}),
    Case("pp2, dualpipev", 2, ZBV | {"schedule": "dualpipev"}, steps=2),
    Case("pp2, fewer micro-batches than stages", 2, PP2 | {"micro_batches": 1}),
    Case("transformers, tp2, own loss", 2, _twos(tp=2), hugging_face=True, own_loss=True),
    Case("transformers, dp2 zero 3, full", 2, _twos(dp_shard=2, zero=3, recompute="full"), hugging_face=True),
    Case("transformers, pp2", 2, PP2, hugging_face=True),
    Case("mutation: dp2", 2, _twos(dp_replicate=2), mutation="no all_reduce of gradients"),
    Case("mutation: dp2 sum", 2, _twos(dp_shard=2, zero=1), mutation="no division by dp"),
    Case("mutation: tp2", 2, _twos(tp=2), mutation="no reduce_scatter over tp"),
    Case("mutation: tp2 norms", 2, _twos(tp=2), mutation="norm gradients not summed over tp"),
    Case("mutation: tp2, one KV head", 2, _twos(tp=2), {"num_key_value_heads": 1},
         mutation="gradients of shared heads not summed"),
    Case("mutation: accumulation", 2, _twos(dp_replicate=2), mutation="no division by the micro-batches"),
]  # fmt: skip

WORLD_4 = [
    Case("tp2 x dp2 zero 3, selective", 4, _twos(tp=2, dp_shard=2, zero=3, recompute="selective")),
    Case("tp2 x dp2 zero 2, dp inside", 4, _twos(tp=2, dp_shard=2, zero=2, placement={
        "tp": [1, 2], "cp": [1, 1], "dp_shard": [2, 1], "dp_replicate": [1, 1], "pp": [1, 1]})),
    Case("dp_replicate 2 x dp_shard 2 zero 3", 4, _twos(dp_replicate=2, dp_shard=2, zero=3),
         exchanges=_exchanges(gather=2 * 2 * 5, scatter=2 * 5, all_reduce=5 + 2)),
    Case("dp_replicate 2 x dp_shard 2 zero 0, crossed", 4, _twos(dp_replicate=2, dp_shard=2, placement={
        "tp": [1, 1], "cp": [1, 1], "dp_shard": [1, 2], "dp_replicate": [2, 1], "pp": [1, 1]})),
    Case("pp2 x dp2 zero 0", 4, PP2 | {"dp_replicate": 2}, exchanges=_exchanges(all_reduce=3)),
    Case("pp2 x dp2 zero 1", 4, PP2 | {"dp_shard": 2, "zero": 1}, steps=2, exchanges=_exchanges(gather=3, scatter=3)),
    Case("pp2 x dp2 zero 3", 4, PP2 | {"dp_shard": 2, "zero": 3}, steps=2,
         exchanges=_exchanges(gather=2 * 4 * 3, scatter=4 * 3)),
    Case("pp2 x dp2 zero 2, zbv", 4, ZBV | {"dp_shard": 2, "zero": 2}, steps=2,
         exchanges=_exchanges(gather=4, scatter=4 * 4, all_reduce=1)),
    Case("tp4, 2 KV heads", 4, _twos(tp=4)),
    Case("pp4", 4, {"pp": 4, "micro_batches": 6}),
    Case("stages of tp2 and dp2 zero 2", 4, mixed=UNEVEN, steps=2),
    Case("transformers, pp2 x tp2, pp inside", 4, PP2 | {"tp": 2, "placement": {
        "tp": [1, 2], "cp": [1, 1], "dp_shard": [1, 1], "dp_replicate": [1, 1], "pp": [2, 1]}}, hugging_face=True),
    Case("mutation: stages of tp2 and dp2", 4, mixed=UNEVEN, mutation="gradients of hops not scaled"),
    Case("mutation: tp4, 2 KV heads", 4, _twos(tp=4), mutation="the first head for all"),
    Case("mutation: pp2 x dp2", 4, PP2 | {"dp_replicate": 2}, mutation="no all_reduce of gradients"),
]  # fmt: skip

CASES = WORLD_2 + WORLD_4
"""What runs on every change: each exchange, kind and option once, several of them in one case where they meet."""

MATRIX_CASES = [
    Case("tp2, own loss", 2, _twos(tp=2), own_loss=True),
    Case("tp2, tied head", 2, _twos(tp=2), {"tie_word_embeddings": True}),
    Case("pp2, tied head", 2, PP2, {"tie_word_embeddings": True}),
    Case("pp2, tied head, virtual stages", 2, PP2 | {"virtual_stages": 2}, {"tie_word_embeddings": True}, steps=2),
    Case("tp2, odd vocabulary", 2, _twos(tp=2), {"vocab_size": 67}),
    Case("tp2, biases", 2, _twos(tp=2), {"attention_bias": True, "mlp_bias": True}),
    Case("tp2, full", 2, _twos(tp=2, recompute="full")),
    Case("tp2, bf16", 2, _twos(tp=2, precision="bf16"), tolerance=0.05),
    Case("tp2, one KV head, full", 2, _twos(tp=2, recompute="full"), {"num_key_value_heads": 1}),
    Case("tp2 x dp2 zero 3, one KV head", 4, _twos(tp=2, dp_shard=2, zero=3), {"num_key_value_heads": 1}),
    Case("pp2 x tp2, zbv, one KV head", 4, ZBV | {"tp": 2}, {"num_key_value_heads": 1}),
    Case("dp2 zero 3, full", 2, _twos(dp_shard=2, zero=3, recompute="full")),
    Case("pp2, full", 2, PP2 | {"recompute": "full"}),
    Case("tp2 x dp2 zero 0", 4, _twos(tp=2, dp_replicate=2)),
    Case("pp2 x tp2, uneven, full", 4, PP2 | {"tp": 2, "layers_per_stage": [3, 1], "recompute": "full"}),
    Case("pp2 x tp2, pp inside", 4, PP2 | {"tp": 2, "placement": {
        "tp": [1, 2], "cp": [1, 1], "dp_shard": [1, 1], "dp_replicate": [1, 1], "pp": [2, 1]}}),
    Case("pp2, zbv, full", 2, ZBV | {"recompute": "full"}, steps=2),
    Case("pp2, v-half, bf16", 2, ZBV | {"schedule": "v-half", "precision": "bf16"}, steps=2),
    Case("pp2, 1 micro-batch, v-min", 2, ZBV | {"schedule": "v-min", "micro_batches": 1}),
    Case("pp2 x dp2 zero 0, zbv", 4, ZBV | {"dp_replicate": 2}, steps=2, exchanges=_exchanges(all_reduce=4)),
    Case("pp2 x dp2 zero 1, v-half", 4, ZBV | {"dp_shard": 2, "zero": 1, "schedule": "v-half"}, steps=2,
         exchanges=_exchanges(gather=4, scatter=4)),
    Case("pp2 x dp2 zero 3, zbv", 4, ZBV | {"dp_shard": 2, "zero": 3}, steps=2,
         exchanges=_exchanges(gather=2 * 4 * 4, scatter=4 * 4)),
    Case("pp2 x tp2, zbv", 4, ZBV | {"tp": 2}, exchanges={"all_reduce": 4 * 3, "not kept": 4 * 2 * 5}),
    Case("stages of dp2 zero 3 and tp2, full", 4, steps=2, mixed=(
        {"layers": 2, "dp": 2, "micro_batch": 2, "zero": 3},
        {"layers": 2, "tp": 2, "micro_batch": 4, "recompute": [(2, "full")]})),
    Case("three stages of 1, dp2 and 1", 4, steps=2, mixed=(
        {"layers": 1, "micro_batch": 2}, {"layers": 1, "dp": 2, "zero": 1}, {"layers": 2, "micro_batch": 2})),
    Case("stages of 1 and dp3", 4, mixed=({"layers": 3, "micro_batch": 3}, {"layers": 1, "dp": 3})),
    Case("pp4, zbv", 4, PP4 | {"virtual_stages": 2, "schedule": "zbv"}, EIGHT),
    Case("pp4, v-min", 4, PP4 | {"virtual_stages": 2, "schedule": "v-min"}, EIGHT),
    Case("pp4, zb-h1", 4, PP4 | {"schedule": "zb-h1"}),
    Case("pp4, eager-1f1b", 4, PP4 | {"schedule": "eager-1f1b", "in_flight": 6}),
]  # fmt: skip
"""What the command checks as well."""
