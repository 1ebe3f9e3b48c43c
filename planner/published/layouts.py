"""A published run's strategy: sharding, recompute, schedule, stages, and where each axis lies on the machine.

Ranks are numbered as Megatron-LM does: tp innermost, then cp, dp and pp; experts use etp, ep, edp within the
same stage. On a level with ``room`` for more members an axis takes gcd(degree, room), innermost axis first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cost_models.estimate import uniform_stages
from cost_models.schedules import virtual_stages_of
from cost_models.strategy import (
    DENSE_ORDER,
    EXPERT_ORDER,
    ParallelDegrees,
    PipelineSchedule,
    Placement,
    Recompute,
    Strategy,
    TrainingSchedule,
)
from planner.published import machines
from planner.published.csv_rows import Row, says_off
from planner.published.recipes import Recipe
from planner.published.sizes import Sizes
from topologies.cluster import Cluster
from topologies.errors import BadInput

ENDS = 2
"""Embedding and head, which Megatron's recipes count as a layer each: 126 layers in 128 chunks."""
PUBLISHED_SHARD = 128
"""Shard group of "FSDP+DP" rows that state no split: the largest of those that do, in the same documents."""


SHARDING = (
    (r"SHARD_GRAD_OP|(?:ZeRO|stage)[ _-]?2|^2$", 2),
    (r"FSDP|FULL_SHARD|(?:ZeRO|stage)[ _-]?3|ZeRO\+\+|MiCS|^3$|weights? sharded|sharded weights?", 3),
    (r"(?:ZeRO|stage)[ _-]?1|dist(?:ributed)?[ _-]opt|optimi[sz]er[ _-](?:states? )?shard|^1$", 1),
    (r"none|single device|(?:ZeRO|stage)[ _-]?0|ZS=0|^no$|^DP$|NO_SHARD|^(?:0|off|false|disabled)$", 0),
)
"""ZeRO stages by the words that stand for them; the first that is found wins."""
_SHARDED = (
    r"(?:--)?(?:use[ _-])?(?:[FH]SDP\d?|(?:ZeRO|stage)[ _-]?\d?(?:\+\+)?|dist(?:ributed)?[ _-]opt(?:imi[sz]er)?|"
    r"optimi[sz]er[ _-](?:states? )?sharding)"
)
SHARDING_OFF = re.compile(
    rf"\b(?:no|not|without)[ _-]{_SHARDED}|{_SHARDED}\s*[:=]\s*(?:off|false|none|no|disabled?)\b|"
    rf"{_SHARDED}\s+(?:is |\()?(?:off|false|none|no|disabled?)\)?\s*(?=$|[;,)])",
    re.IGNORECASE,
)
"""A way of sharding that the row says is not used."""
RECOMPUTE_WORDS = (
    (r"full|^(yes|true|on|1|enabled?)$", "full"),
    (r"select|partial", "selective"),
    (r"uniform|block", "full"),
    (r"minimal|\bS?AC\b|core_attn|^attn|^mlp|moe_act|layernorm", "selective"),
    (r"checkpoint|recomput", "full"),
)


@dataclass(frozen=True)
class Sharding:
    """ZeRO stage and the group it shards over; ``shard`` is ``None`` for all copies of the batch."""

    zero: int
    shard: int | None = None


def sharding(text: str, recipe: Recipe, host_devices: int) -> tuple[Sharding, tuple[str, ...]]:
    """The sharding that a row's text means, by the recipe where it says nothing, and what was assumed."""
    text = _without_what_is_off(text)
    group = re.search(r"(?:shard|FSDP\d?|zero1|ZeRO-1)\s*[=(]\s*(-?\d+)", text)
    shard = int(group[1]) if group and int(group[1]) > 0 else None
    whole_weights = re.search(r"^DDP|FSDP=0", text, re.IGNORECASE)
    if whole_weights or re.search(r"^(yes|true|on)?$", text, re.IGNORECASE):
        usual = Sharding(int(recipe.value("zero", 0)), recipe.value("dp_shard"))
        return (Sharding(0), ()) if whole_weights and usual.zero == 3 else (usual, ("zero",))
    if re.search(r"HSDP|HYBRID_SHARD", text):
        return Sharding(3, shard or host_devices), () if shard else ("dp_shard",)
    if re.search(r"split not stated", text):
        return Sharding(3, PUBLISHED_SHARD), ("dp_shard",)
    for pattern, stage in SHARDING:
        if re.search(pattern, text, re.IGNORECASE):
            return Sharding(stage, shard if stage else None), ()
    raise BadInput(f"sharding {text[:60]!r} is not understood; write a ZeRO stage, FSDP or none")


def _without_what_is_off(text: str) -> str:
    """The text without the ways of sharding that it says are off; where that is all: DDP if one was FSDP, else none."""
    rest, times = SHARDING_OFF.subn(" ", text)
    if not times:
        return text
    return rest.strip(" ;,()|+") or ("DDP" if "SDP" in text.upper() else "none")


def recompute_choice(
    text: str, recipe: Recipe, memory_bytes: float = math.inf
) -> tuple[Recompute, str, tuple[str, ...]]:
    """``(choice of every layer, the words behind it, what was assumed)``.

    The recipe may say ``"least"``: the least recompute that fits in memory, which only a prediction can tell;
    the layers then keep everything.
    """
    assumed = () if text else ("recompute",)
    words = text or str(recipe.by_memory("recompute", memory_bytes, "none"))
    if says_off(words) or words.split()[:1] == ["least"]:
        return "none", words, assumed
    if recipe.value("selective_blocks") and re.search(r"select", words, re.IGNORECASE):
        return "full", words, assumed
    for pattern, choice in RECOMPUTE_WORDS:
        if re.search(pattern, words, re.IGNORECASE):
            return choice, words, assumed  # type: ignore[return-value]
    raise BadInput(f"recompute {words[:60]!r} is not understood; write full, selective or none")


SPLIT_WORDS: dict[str, PipelineSchedule] = {
    "zbb": "zb-h1", "zero-bubble": "zb-h1", "zbv": "zbv", "v-half": "v-half", "v-min": "v-min"
}  # fmt: skip
"""Schedules that split the backward pass, by the word that a row begins with."""


def schedule_words(row: Row, recipe: Recipe) -> str:
    """The schedule's name as the row or the recipe spells it, lower case, "" where neither does."""
    found = re.search(r"schedule=([^;]+)", row.get("other_flags", ""))
    return (found[1].strip() if found else str(recipe.value("schedule", ""))).lower()


def schedule_kind(words: str, sizes: Sizes, layers: int) -> tuple[PipelineSchedule, int, tuple[str, ...]]:
    """``(kind, virtual stages a device, what was assumed)``: interleaved only where that is legal.

    A schedule called interleaved without a number of chunks has two; one that splits the backward pass has its own.
    """
    split = next((known for word, known in SPLIT_WORDS.items() if words.startswith(word)), None)
    if split is not None and 1 < sizes.pp <= layers // virtual_stages_of(split):
        return split, virtual_stages_of(split), ()
    chunks = 2 if "interleaved" in words and "vpp" in sizes.assumed else sizes.vpp
    assumed = ("vpp",) if chunks != sizes.vpp else ()
    if sizes.pp == 1 or chunks == 1:
        return "1f1b", 1, ()
    if sizes.micro_batches % sizes.pp:
        return "1f1b", 1, (*assumed, "vpp")
    fewer = min(chunks, max(1, (layers + ENDS) // sizes.pp))
    return ("interleaved" if fewer > 1 else "1f1b"), fewer, assumed if fewer == chunks else (*assumed, "vpp")


def degrees(sizes: Sizes, group: Sharding) -> ParallelDegrees:
    """The degrees, with the copies of the batch split into shard group and replicas."""
    shard = sizes.dp if group.shard is None else math.gcd(sizes.dp, group.shard)
    return ParallelDegrees(
        dp_replicate=sizes.dp // shard,
        dp_shard=shard,
        cp=sizes.cp,
        tp=sizes.tp,
        pp=sizes.pp,
        ep=sizes.ep,
        etp=sizes.etp,
    )


def strategy(
    sizes: Sizes, layers: int, group: Sharding, recompute: Recompute, words: str, cluster: Cluster
) -> tuple[Strategy, tuple[str, ...]]:
    """The strategy on that machine and what was assumed. Raises ``BadInput`` where the layers are too few."""
    if sizes.pp > layers:
        raise BadInput(f"pp={sizes.pp} is more than the model's {layers} layers")
    split = degrees(sizes, group)
    kind, chunks, assumed = schedule_kind(words, sizes, layers)
    zero = group.zero if split.dp_shard * split.cp > 1 else 0
    schedule = TrainingSchedule(kind, chunks, sizes.micro_batch, sizes.micro_batches)
    stages = uniform_stages(layers, sizes.pp * chunks, recompute)
    placement = place(split, tuple(level.fanout for level in cluster.levels))
    if placement is None:
        raise BadInput(f"the degrees of {sizes.n_gpus} devices do not fit levels of {cluster.group_capacity}")
    return Strategy(split, zero, schedule, stages, placement), assumed


def machine(cluster: Cluster, split: ParallelDegrees, link: str) -> Cluster:
    """``cluster`` cut to the degrees' devices, in the largest scale-up domains that the axes can fill."""
    network = machines.host_bytes_per_s(link, cluster.host.devices)
    for domain in machines.domains(cluster, split.world_size):
        found = machines.cut(cluster, split.world_size, domain, network)
        if place(split, found.group_capacity) is not None:
            return found
    raise BadInput(f"{split.world_size} devices cannot be spread evenly over hosts of {cluster.host.name!r}")


def place(split: ParallelDegrees, capacity: tuple[int, ...]) -> Placement | None:
    """Factors of every axis on each level, filling the levels from the inside; ``None`` where they do not fill."""
    dense = _filled({axis: getattr(split, axis) for axis in DENSE_ORDER}, capacity)
    if dense is None:
        return None
    inside = tuple(room // pp for room, pp in zip(capacity, dense["pp"], strict=True))
    experts = _filled({axis: getattr(split, axis) for axis in EXPERT_ORDER if axis != "pp"}, inside)
    return None if experts is None else {**dense, **experts}


def _filled(wanted: dict[str, int], capacity: tuple[int, ...]) -> Placement | None:
    rest, factors = dict(wanted), {axis: [] for axis in wanted}
    for room in capacity:
        for axis in wanted:
            factor = math.gcd(rest[axis], room)
            factors[axis].append(factor)
            rest[axis] //= factor
            room //= factor
        if room != 1:
            return None
    return {axis: tuple(values) for axis, values in factors.items()}
