"""A strategy from the few words a user types: ``tp=8,pp=4,recompute=full``."""

from __future__ import annotations

import math

from cost_models.model_graph import ModelGraph
from cost_models.schedules import EAGER, FURTHER, virtual_stages_of
from cost_models.strategy import (
    LayerChoice,
    LayerRun,
    ParallelDegrees,
    Placement,
    Stage,
    Strategy,
    TrainingSchedule,
    uniform_stages,
)
from cost_models.workload import Training
from planner.candidates import placements
from planner.errors import BadInput
from topologies.cluster import Cluster

WORDS = (
    "tp", "cp", "pp", "dp", "dp_shard", "dp_replicate", "ep", "etp", "vocab_tp", "zero", "micro_batch",
    "virtual_stages", "schedule", "in_flight", "recompute", "layers_per_stage",
)  # fmt: skip


def named_strategy(model: ModelGraph, cluster: Cluster, workload: Training, words: dict[str, int | str]) -> Strategy:
    """The strategy those words mean; what they leave open takes the usual value.

    ``dp`` fills the cluster, states are sharded over it (``zero=1``), axes nest as tp, cp, dp, pp from the
    inside, layers are cut evenly, nothing is recomputed, micro-batches have one sequence.
    Raises ``BadInput`` for words that do not exist or degrees whose arithmetic does not close.
    """
    unknown = sorted(set(words) - set(WORDS))
    if unknown:
        raise BadInput(f"strategy has no {_shown(unknown[0])!r}; its words are {', '.join(WORDS)}")
    count = {
        name: _positive(name, words.get(name, 1))
        for name in ("tp", "cp", "pp", "ep", "etp", "micro_batch", "virtual_stages")
    }
    replicate, shard = _data_parallel(cluster, words, count)
    ends = _positive("vocab_tp", words["vocab_tp"]) if "vocab_tp" in words else 0
    degrees = ParallelDegrees(replicate, shard, count["cp"], count["tp"], count["pp"], count["ep"], count["etp"], ends)
    zero = _zero(words.get("zero", 1 if shard * degrees.cp > 1 else 0))
    if degrees.world_size > cluster.devices:
        raise BadInput(
            f"dp*cp*tp*pp = {degrees.dp}*{degrees.cp}*{degrees.tp}*{degrees.pp} = {degrees.world_size} devices, but "
            f"{cluster.name!r} has {cluster.devices}; lower a degree or add hosts"
        )
    if degrees.stage_size % (degrees.ep * degrees.etp):
        raise BadInput(
            f"ep*etp = {degrees.ep}*{degrees.etp} does not divide dp*cp*tp = "
            f"{degrees.dp}*{degrees.cp}*{degrees.tp} = {degrees.stage_size}; experts live on the devices of one stage"
        )
    batch = degrees.dp * count["micro_batch"]
    if workload.global_batch % batch:
        raise BadInput(
            f"dp*micro_batch = {degrees.dp}*{count['micro_batch']} = {batch} does not divide the global batch of "
            f"{workload.global_batch}; take a divisor"
        )
    schedule = _schedule(words, count, workload.global_batch // batch)
    virtual = schedule.virtual_stages
    return Strategy(
        degrees, zero, schedule, _stages(model, degrees.pp * virtual, words), nested_placement(cluster, degrees)
    )


def _positive(name: str, value: int | str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**21:
        raise BadInput(f"{name}={_shown(value)} must be a whole number from 1 to 2097152")
    return value


def _zero(value: int | str) -> int:
    if value not in (0, 1, 2, 3) or isinstance(value, bool):
        raise BadInput(f"zero={_shown(value)} is no stage; legal: 0, 1, 2, 3")
    return int(value)


def _shown(value: object) -> str:
    return str(value)[:40]


def _data_parallel(cluster: Cluster, words: dict[str, int | str], count: dict[str, int]) -> tuple[int, int]:
    """``(dp_replicate, dp_shard)`` as named; without either all of ``dp``, which without a name fills the cluster."""
    others = count["tp"] * count["cp"] * count["pp"]
    if named := {n: _positive(n, words[n]) for n in ("dp_shard", "dp_replicate") if n in words}:
        return _both(named, _positive("dp", words["dp"]) if "dp" in words else None)
    if "dp" not in words and cluster.devices % others:
        raise BadInput(
            f"tp*cp*pp = {count['tp']}*{count['cp']}*{count['pp']} = {others} does not divide the {cluster.devices} "
            f"devices of {cluster.name!r}; name dp to use fewer"
        )
    dp = _positive("dp", words.get("dp", cluster.devices // others))
    return (dp, 1) if words.get("zero") == 0 else (1, dp)


def _both(named: dict[str, int], dp: int | None) -> tuple[int, int]:
    """``(dp_replicate, dp_shard)`` of one or both; the one that is not named is what the other leaves of ``dp``."""
    product = math.prod(named.values())
    rest, remainder = divmod(product if dp is None else dp, product)
    if remainder or (len(named) == 2 and rest != 1):
        text, values = "*".join(named), "*".join(map(str, named.values()))
        said = f"{text} = {values} = {product} is not" if len(named) == 2 else f"{text}={values} does not divide"
        raise BadInput(f"{said} dp={dp}; dp = dp_replicate*dp_shard: leave one of them out, or name others")
    return named.get("dp_replicate", rest), named.get("dp_shard", rest)


def _schedule(words: dict[str, int | str], count: dict[str, int], micro_batches: int) -> TrainingSchedule:
    """The schedule that is named, else 1F1B or its interleaved form by the virtual stages."""
    virtual = count["virtual_stages"]
    kind = words.get("schedule", "interleaved" if virtual > 1 else "1f1b")
    if kind not in ("1f1b", "interleaved", *FURTHER):
        raise BadInput(f"schedule={_shown(kind)} is no schedule; legal: 1f1b, interleaved, {', '.join(FURTHER)}")
    if kind in FURTHER and "virtual_stages" not in words:
        virtual = virtual_stages_of(str(kind))
    eager = _positive("in_flight", words.get("in_flight", 2 * count["pp"] - 1)) if kind == EAGER else 0
    return TrainingSchedule(kind, virtual, count["micro_batch"], micro_batches, eager)


def _stages(model: ModelGraph, chunks: int, words: dict[str, int | str]) -> tuple[Stage, ...]:
    recompute = words.get("recompute", "none")
    if recompute not in ("none", "selective", "full"):
        raise BadInput(f"recompute={_shown(recompute)} is no kind of recompute; legal: none, selective, full")
    if chunks > model.layers:
        raise BadInput(f"pp*virtual_stages = {chunks} is more than the {model.layers} layers of {model.name!r}")
    if "layers_per_stage" not in words:
        return uniform_stages(model.layers, chunks, recompute)
    sizes = [int(n) if n.isdecimal() and len(n) < 8 else 0 for n in str(words["layers_per_stage"]).split("-")]
    if len(sizes) != chunks or sum(sizes) != model.layers or min(sizes) < 1:
        raise BadInput(
            f"layers_per_stage={_shown(words['layers_per_stage'])} must be {chunks} counts joined by '-' "
            f"that add up to {model.layers}"
        )
    return tuple(Stage((LayerRun(n, LayerChoice(recompute)),)) for n in sizes)


def nested_placement(cluster: Cluster, degrees: ParallelDegrees) -> Placement:
    """Axes as deep inside as they go in the order tp, cp, dp_shard, dp_replicate, pp; experts in etp, ep, edp.

    Where that nesting leaves no room, the first placement that has some. Raises ``BadInput`` when none has.
    """
    axes = ("tp", "cp", "dp_shard", "dp_replicate", "pp")
    capacity, room = cluster.group_capacity, list(cluster.group_capacity)
    factors = {axis: _take(getattr(degrees, axis), room) for axis in axes}
    if any(f is None for f in factors.values()) or not _whole_hosts(factors, cluster):
        ways = placements(tuple(getattr(degrees, a) for a in axes), capacity, cluster.host_shape)
        if not ways:
            raise BadInput(
                f"dp_replicate*dp_shard*cp*tp*pp = {degrees.world_size} devices have no regular place on "
                f"{cluster.name!r} with levels of {' x '.join(map(str, capacity))}; use degrees whose product fits them"
            )
        factors = dict(zip(axes, ways[0], strict=True))
    stage = [math.prod(factors[a][k] for a in axes[:4]) for k in range(len(capacity))]
    left = list(stage)
    experts = {axis: _divide(getattr(degrees, axis), left) for axis in ("etp", "ep")}
    return {**factors, **experts, "edp": tuple(left)}


def _take(degree: int, room: list[int]) -> tuple[int, ...] | None:
    """Factors of ``degree`` level by level from the inside, using up ``room``; ``None`` when it does not fit."""
    factors, rest = [], degree
    for k in range(len(room)):
        here = max(d for d in range(1, min(rest, room[k]) + 1) if rest % d == 0) if k < len(room) - 1 else rest
        if here > room[k]:
            return None
        factors.append(here)
        room[k] //= here
        rest //= here
    return tuple(factors)


def _divide(degree: int, stage: list[int]) -> tuple[int, ...]:
    """Factors of ``degree`` that divide the stage's own factors, from the inside; divides ``stage`` by them."""
    factors, rest = [], degree
    for k in range(len(stage)):
        here = math.gcd(rest, stage[k])
        factors.append(here)
        stage[k] //= here
        rest //= here
    return tuple(factors)


def _whole_hosts(factors: dict, cluster: Cluster) -> bool:
    return cluster.host_shape.whole([math.prod(way) for way in zip(*factors.values(), strict=True)])
