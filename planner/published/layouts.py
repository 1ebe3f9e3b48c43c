"""A published run's strategy: sharding, recompute, schedule, stages, and where each axis lies on the machine.

Ranks are numbered as Megatron-LM does: tp innermost, then cp, dp and pp; experts use etp, ep, edp within the
same stage. On a level with ``room`` for more members an axis takes gcd(degree, room), innermost axis first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cost_models.schedules import may_run, virtual_stages_of
from cost_models.strategy import (
    DENSE_ORDER,
    EXPERT_ORDER,
    ParallelDegrees,
    PipelineSchedule,
    Placement,
    Recompute,
    Strategy,
    TrainingSchedule,
    filled_stages,
    full_stages,
    stages_by_cost,
    uniform_stages,
)
from planner.published import machines
from planner.published.csv_rows import Row
from planner.published.recipes import Recipe
from planner.published.sizes import Sizes
from planner.published.switches import BEHIND_QKV, MODULES, whole_layers
from planner.published.wording import OFF, mentions, said, without_what_is_off
from topologies.cluster import Cluster
from topologies.errors import BadInput

ENDS = 2
"""Embedding and head, which Megatron's recipes count as a layer each: 126 layers in 128 chunks."""
PUBLISHED_SHARD = 128
"""Shard group of "FSDP+DP" rows that state no split: the largest of those that do, in the same documents."""

DISTRIBUTED_OPTIMIZER = r"dist(?:ributed)?[ _-]?opt(?:imi[sz]er)?"
SHARDING = (
    (r"SHARD_GRAD_OP|(?:ZeRO|stage)[ :=_-]*2|^z?2(?:\.0)?$|^(?:P_?)?os ?\+ ?g$|"
     r"optimi[sz]er states?(?: and|\s*\+) gradients?", 2),
    (r"FSDP|FULL[ _-]?SHARD|fully[ _-]shard(?:ed)?|(?:ZeRO|stage)[ :=_-]*3|ZeRO\+\+|ZeRO[ _-]?Infinity|MiCS|"
     r"^z?3(?:\.0)?$|^(?:P_?)?os ?\+ ?g ?\+ ?p$|"
     r"(?:weights?|param(?:eter)?s) sharded|sharded (?:weights?|param(?:eter)?s)", 3),
    (rf"(?:ZeRO|stage)[ :=_-]*1|{DISTRIBUTED_OPTIMIZER}|optimi[sz]er[ _-](?:states? )?shard|"
     r"sharded[ _-](?:optimi[sz]er|Adam)|^z?1(?:\.0)?$", 1),
    (r"ZeRO[ _-]?Offload", 2),
    (r"none|single (?:device|GPU)|(?:ZeRO|stage)[ :=_-]*0|ZS=0|^no$|NO_SHARD|^z?0(?:\.0)?$|"
     r"^(?:un|not[ _-]|non[ _-]?)sharded$|^(?:off|false|disabled|replicated)$|"
     r"^(?:pure |plain )?(?:DP|data[ _-]parallel(?:ism)?)(?:[ =_-]?\d+)?$", 0),
)  # fmt: skip
"""ZeRO stages by the words that stand for them; the first that is found wins."""
WHOLE_WEIGHTS = (
    r"^(?:(?:Py)?torch[ ._-]*|(?:native|plain|pure|vanilla)[ _-])?(?:DDP|Distributed[ _-]?Data[ _-]?Parallel)|FSDP=0"
)
"""Data parallelism that keeps whole weights; whether its optimiser is sharded is the stack's habit."""
SHARDED = (
    rf"(?:--)?(?:use[ _-])?(?:[FH]SDP\d?|ZeRO[ _-]?(?:stage[ _-]?)?\d?(?:\+\+)?|stage[ _-]?\d|{DISTRIBUTED_OPTIMIZER}|"
    r"(?:optimi[sz]er[ _-](?:states? )?)?sharding)(?![A-Za-z])"
)
"""A way of sharding, which a row may say is not used."""
RESHARD = r"reshard(?:ing|ed|s)?(?:[ _-]after[ _-](?:forward|fwd))?"
"""Giving back the gathered weights after the forward pass, without which ZeRO-3 keeps them as ZeRO-2 does."""
RECOMPUTING = (
    r"(?:(?:activation|gradient)s?[ _-]+)?"
    r"(?:re-?comput\w*|remat(?:eriali[sz]\w*)?(?![A-Za-z])|check-?point\w*|S?AC(?![A-Za-z]))"
    r"(?:[ _-]+(?:activations?|granularity|method|mode))*"
)
"""The name of the setting, which may stand between a mode of it and its value: ``full recompute: off``."""
RECOMPUTED = (
    (rf"(?:full(?![a-z])|every layer|all layers)(?:[ _-]+{RECOMPUTING})?", "full"),
    (rf"(?:select\w*|partial(?:ly)?)(?:[ _-]+{RECOMPUTING})?", "selective"),
    (r"uniform|block", "full"),
    (r"every (?:other|second|2nd|third|3rd|\d+th) layer|\d+ of \d+ layers", "selective"),
    (rf"minimal\w*|{BEHIND_QKV}|recompute[-_]activations|\bSAC\b|{'|'.join(MODULES.values())}", "selective"),
    (RECOMPUTING, "full"),
)
"""Recompute by the words that stand for it; the first that is on wins."""
_BARE = re.compile(
    r"(?:(y|yes|true|on|1|enabled?|activated|(?:turned|switched) on|used)|"
    rf"(?:{OFF}|nothing|n|w/o|without|not used))(?:\s*[(,;].*)?",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Sharding:
    """ZeRO stage and the group it shards over; ``shard`` is ``None`` for all copies of the batch."""

    zero: int
    shard: int | None = None


def sharding(text: str, recipe: Recipe, host_devices: int) -> tuple[Sharding, tuple[str, ...]]:
    """The sharding that a row's text means, by the recipe where it says nothing, and what was assumed."""
    gathered = 2 if said(text, RESHARD) is False else 3
    text = _without_what_is_off(without_what_is_off(text, RESHARD)[0].strip())
    shard = _shard_group(text, host_devices)
    whole_weights = re.search(WHOLE_WEIGHTS, text, re.IGNORECASE)
    if whole_weights or re.search(r"^(yes|true|on)?$", text, re.IGNORECASE):
        usual = Sharding(min(int(recipe.value("zero", 0)), gathered), recipe.value("dp_shard"))
        return (Sharding(0), ()) if whole_weights and usual.zero > 1 else (usual, ("zero",))
    if re.search(r"HSDP|HYBRID[ _-]?SHARD", text, re.IGNORECASE):
        return Sharding(gathered, shard or host_devices), () if shard else ("dp_shard",)
    if re.search(r"split not stated", text, re.IGNORECASE):
        return Sharding(gathered, PUBLISHED_SHARD), ("dp_shard",)
    for pattern, stage in SHARDING:
        if re.search(pattern, text, re.IGNORECASE):
            return Sharding(min(stage, gathered), shard if stage else None), ()
    raise BadInput(f"sharding {text[:60]!r} is not understood; write a ZeRO stage, FSDP or none")


def _shard_group(text: str, host_devices: int) -> int | None:
    """Devices that a group of shards has: ``FSDP=16 x DP=4``, ``shard=8``, ``zero1=8``; -1 and a flag's 1 are all.

    ``FSDP=1`` beside no other degree says that it is on.
    """
    found = re.search(
        r"(?:shard(?:s|ing)?|FSDP\d?|zero1|ZeRO-1)(?:[ _-](?:degree|size|group))?\s*[=(:]\s*(-?\d+)\s*(nodes?|hosts?)?",
        text, re.IGNORECASE,
    )  # fmt: skip
    if found is None or int(found[1]) <= 0:
        return None
    flag = int(found[1]) == 1 and re.search(r"FSDP\s*[=:]\s*1\b", text, re.IGNORECASE)
    if flag and not re.search(r"DP\s*[=:]\s*\d|x\s*\d", text.replace(flag[0], ""), re.IGNORECASE):
        return None
    return int(found[1]) * (host_devices if found[2] else 1)


def _without_what_is_off(text: str) -> str:
    """The text without the ways of sharding that it says are off; where that is all: DDP if one was FSDP, else none."""
    if re.search(r"FSDP\s*[=:]\s*\d", text, re.IGNORECASE):
        return text
    rest, times = without_what_is_off(text, SHARDED)
    rest = rest.strip(" ;,()|+x*&")
    if times and re.fullmatch(r"(?:DP(?:[ =_-]?\d+)?)?", rest, re.IGNORECASE):
        return "DDP" if "SDP" in text.upper() else "none"
    return rest if times else text


def recompute_choice(
    text: str, recipe: Recipe, memory_bytes: float = math.inf, *, works: Sequence[str] = ()
) -> tuple[Recompute, str, tuple[str, ...]]:
    """``(choice of every layer, the words behind it, what was assumed)``; ``works`` may have cells of their own.

    The recipe may say ``"least"``: the least recompute that fits in memory, which only a prediction can tell;
    the layers then keep everything, as they do for now where only some of a stage are recomputed whole.
    """
    assumed = () if text else ("recompute",)
    names = (*(f"{work}_recompute" for work in works), "recompute")
    own = next((name for name in names if name in recipe.cells), "recompute")
    words = text or str(recipe.by_memory(own, memory_bytes, "none"))
    if words.split()[:1] == ["least"] or whole_layers(words):
        return "none", words, assumed
    choice = _recompute(words)
    if choice is None:
        raise BadInput(f"recompute {words[:60]!r} is not understood; write full, selective or none")
    in_blocks = recipe.value("selective_blocks") and re.search(r"select", words, re.IGNORECASE)
    return ("full" if in_blocks and choice != "none" else choice), words, assumed


def _recompute(words: str) -> Recompute | None:
    """What is recomputed: the first of :data:`RECOMPUTED` that is on, nothing where all that are named are off."""
    bare = _BARE.fullmatch(words)
    if bare:
        return "full" if bare[1] else "none"
    found = {choice: one.on for pattern, choice in reversed(RECOMPUTED) for one in mentions(words, pattern)}
    on = next((choice for pattern, choice in RECOMPUTED if any(m.on for m in mentions(words, pattern))), None)
    return on if on else "none" if found else None


SPLIT_WORDS: dict[str, PipelineSchedule] = {
    "zbb": "zb-h1", "zbh1": "zb-h1", "zerobubble": "zb-h1", "zbv": "zbv", "vhalf": "v-half", "vmin": "v-min",
    "dualpipev": "dualpipev", "dualpipe": "dualpipe",
}  # fmt: skip
"""Schedules that split the backward pass, by the word that a row begins with, without what joins its parts."""
INTERLEAVED = re.compile(r"(?<!non)(?<!non.)interleaved")
PLAIN = re.compile(r"1f1b|one[ -]?f[a-z]*[ -]?one|(?:non.?)?interleaved(?!.?zero)")
"""How the names of the schedules begin that a number of chunks tells apart."""
NAMED_SCHEDULE = (
    r"(?<![\w-])(?:dual[ _-]?pipe(?:[ _-]?v)?|zero[ _-]?bubble|zb[ _-]?(?:b|h1|v)|v-(?:half|min)|"
    r"interleaved(?: pipeline|[ _-]1F1B|[ _-]schedule|(?=\s*(?:[;,|]|$)))|1F1B(?:[ _-]interleaved)?)(?!\w)"
)
"""A schedule's name in a row's flags without ``schedule=`` before it."""


def schedule_words(row: Row, recipe: Recipe) -> str:
    """The schedule's name as the row or the recipe spells it, lower case, "" where neither does."""
    flags = row.get("other_flags", "")
    found = re.search(r"schedule\s*[=:]\s*([^;,|]+)", flags, re.IGNORECASE)
    if found:
        return found[1].strip().lower()
    named = (flags[one.start : one.end] for one in mentions(flags, NAMED_SCHEDULE) if one.on)
    return next(named, str(recipe.value("schedule", ""))).lower()


def known_schedule(words: str) -> str:
    """``words``, where they name a schedule or nothing. Raises ``BadInput`` for others."""
    if words and not PLAIN.match(words) and not splits_backward(words):
        names = ", ".join(dict.fromkeys(["1f1b", "interleaved", *SPLIT_WORDS.values()]))
        raise BadInput(f"schedule {words[:40]!r} is not understood; write one of {names}")
    return words


def splits_backward(words: str) -> bool:
    """Whether ``words`` name a schedule that splits the backward pass."""
    return _splits(words) is not None


def _splits(words: str) -> PipelineSchedule | None:
    """The schedule of that name, ``None`` where it does not split the backward pass."""
    joined = re.sub(r"[ _-]", "", words)
    return next((known for word, known in SPLIT_WORDS.items() if joined.startswith(word)), None)


def schedule_kind(words: str, sizes: Sizes, layers: int) -> tuple[PipelineSchedule, int, tuple[str, ...]]:
    """``(kind, virtual stages a device, what was assumed)``: interleaved only where that is legal.

    A schedule called interleaved without a number of chunks has two; one that splits the backward pass has its own.
    Raises ``BadInput`` for one that cannot run so.
    """
    split = _split_schedule(words, sizes, layers) if sizes.pp > 1 and words else None
    if split is not None:
        return split, virtual_stages_of(split), ()
    chunks = 2 if INTERLEAVED.search(words) and "vpp" in sizes.assumed else sizes.vpp
    assumed = ("vpp",) if chunks != sizes.vpp else ()
    if sizes.pp == 1 or chunks == 1:
        return "1f1b", 1, ()
    if sizes.micro_batches % sizes.pp:
        return "1f1b", 1, (*assumed, "vpp")
    fewer = min(chunks, max(1, (layers + ENDS) // sizes.pp))
    return ("interleaved" if fewer > 1 else "1f1b"), fewer, assumed if fewer == chunks else (*assumed, "vpp")


def _split_schedule(words: str, sizes: Sizes, layers: int) -> PipelineSchedule | None:
    """The schedule that splits the backward pass, else ``None``. Raises ``BadInput`` for one that cannot run so."""
    kind = _splits(words)
    if kind is None:
        return None
    runs = may_run(kind, np.array(sizes.pp), np.array(sizes.micro_batches))
    if not runs or sizes.pp * virtual_stages_of(kind) > layers:
        raise BadInput(
            f"schedule {words[:40]!r} cannot run {sizes.micro_batches} micro-batches of {layers} layers in "
            f"pp={sizes.pp} stages; dualpipe needs an even pp from 4 and an even number of micro-batches from 2 pp, "
            "dualpipev 2 pp micro-batches, and V-shaped ones two layers a device"
        )
    return kind


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
    sizes: Sizes, layers: int, group: Sharding, recompute: Recompute, words: str, cluster: Cluster,
    *, longer_last: bool = False, filled: bool = False, full: bool = False, predictions: int = 0,
    costs: Sequence[float] = (),
) -> tuple[Strategy, tuple[str, ...]]:  # fmt: skip
    """The strategy on that machine and what was assumed; the last ``predictions`` of ``layers`` predict further tokens.

    ``full`` stages are all as long but for those at the ends, ``filled`` ones but for the last; ``longer_last`` ones
    even, the longer ones last; ``costs`` of all layers and the head cut stages where they are given.
    Raises ``BadInput`` where the layers are too few.
    """
    if sizes.pp > layers:
        raise BadInput(f"pp={sizes.pp} is more than the model's {layers} layers")
    split = degrees(sizes, group)
    kind, chunks, assumed = schedule_kind(words, sizes, layers)
    zero = group.zero if split.dp_shard * split.cp > 1 else 0
    schedule = TrainingSchedule(kind, chunks, sizes.micro_batch, sizes.micro_batches)
    if costs:
        stages = stages_by_cost(costs, sizes.pp * chunks, recompute)
    elif full:
        stages = full_stages(layers - predictions, sizes.pp * chunks, recompute, behind=predictions)
    elif filled:
        stages = filled_stages(layers, sizes.pp * chunks, recompute)
    else:
        stages = uniform_stages(layers, sizes.pp * chunks, recompute, longer_last=longer_last)
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
