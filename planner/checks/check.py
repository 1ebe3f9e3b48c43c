"""Legality of one strategy, from its own rules: nothing here is shared with the search that chose it.

Every complaint names the rule, the value, the limit and a way out. Rules follow in the order of the strategy:

    degrees     widths, KV heads, sequence, layers, batch, experts; both meshes the same size; enough devices
    vocabulary  ranks of embedding and head: whole tp groups, of one cp group
    zero        nothing sharded exactly at stage 0
    batch       micro_batch * micro_batches * dp = global batch
    placement   products are the degrees; both meshes alike on every level; room; hosts whole or equally used
    clocks      above 0, up to the full one; one a device
    stages      every layer once, in order; full, then selective, then none
    schedule    what each allows (:mod:`planner.checks.check_schedule`)
    offloads    tensor classes and memory tiers that exist, shares that add up (:mod:`planner.checks.check_offloads`)
    replicas    no more of them in a host, rack, switch or feed than limits allow (:mod:`planner.apart`)
    limits      bytes on every pipeline rank and in every tier; watts of every level; time, money and energy of a step
                and of training
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from cost_models.calibration import Calibration, calibrate
from cost_models.chain import Chain
from cost_models.estimate import estimate, memory_classes, tier_uses
from cost_models.model_graph import ModelGraph
from cost_models.power import static_power
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.schedules import FURTHER
from cost_models.side_by_side import partly_offloaded
from cost_models.strategy import AXES, RECOMPUTE, Stage, Strategy, TrainingSchedule, level_ranks
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.apart import asked, broken_domains
from planner.checks.check_hosts import broken_host_rules
from planner.checks.check_offloads import broken_offloads, broken_room
from planner.checks.check_schedule import broken_clocks, broken_schedule
from planner.errors import BadInput
from planner.limits import broken_limits, power_limits
from planner.options import Options
from topologies.cluster import Cluster

DENSE = ("tp", "cp", "dp_shard", "dp_replicate")
EXPERT = ("etp", "ep", "edp")
RUN_ORDER = ("full", "selective", "none")


def check_strategy(
    model: ModelGraph,
    cluster: Cluster,
    workload: Training,
    strategy: Strategy,
    *,
    headroom: float = 0.0,
    power_cap_w: float | None = None,
    fits: Calibration | None = None,
    options: Options | None = None,
) -> list[str]:
    """Every rule and limit that ``strategy`` breaks, in words; empty when it is legal and fits.

    ``headroom`` is the part of device memory to leave free; ``options`` hold the limits on power, time, money and
    energy. Limits are only asked of strategies whose form is right.
    """
    complaints = broken_rules(model, cluster, workload, strategy)
    if complaints:
        return complaints
    fits = fits or calibrate(cluster, workload.stack)
    if options is not None and asked(options):
        complaints = list(broken_domains(cluster, strategy, options))
    limits = [*_memory(model, cluster, workload, strategy, headroom, fits), *_power(cluster, strategy, power_cap_w)]
    limits += complaints
    if options is not None and (options.limits or options.power_cap_w):
        found = estimate(model, cluster, workload, strategy, fits=fits, limits=power_limits(options))
        limits += broken_limits(found, options, workload)
    return limits


def broken_rules(model: ModelGraph, cluster: Cluster, workload: Training, strategy: Strategy) -> list[str]:
    """Every rule of form that ``strategy`` breaks, in words; whether it fits the devices is not asked."""
    if not isinstance(strategy.schedule, TrainingSchedule):
        return [f"the schedule is a {type(strategy.schedule).__name__}; only training schedules are planned"]
    return list(_at_least_one(strategy)) or [
        *_dense_degrees(model, cluster, workload, strategy),
        *_expert_degrees(model, strategy),
        *_world(cluster, strategy),
        *_vocabulary(strategy),
        *_zero(strategy),
        *_batch(workload, strategy),
        *_placement(cluster, strategy),
        *_stages(model, strategy),
        *broken_schedule(model, strategy),
        *broken_clocks(strategy),
        *broken_offloads(cluster, strategy),
    ]


def broken_pins(pins: dict[str, int | str], strategy: Strategy) -> Iterator[str]:
    """Every pin that ``strategy`` does not hold, in words."""
    degrees, schedule = strategy.degrees, strategy.schedule
    names = ("tp", "cp", "pp", "dp", "dp_shard", "dp_replicate", "ep", "etp")
    values: dict[str, int | str] = {name: getattr(degrees, name) for name in names}
    values |= {"zero": strategy.zero, "devices": degrees.world_size}
    values |= {name: getattr(schedule, name) for name in ("micro_batch", "virtual_stages")}
    kinds = {run.choice.recompute for stage in strategy.stages for run in stage.runs}
    values["schedule"] = schedule.kind
    values["recompute"] = next(iter(kinds)) if len(kinds) == 1 else "mixed"
    values["vocab_tp"] = degrees.vocab_tp or degrees.tp
    for name, pin in pins.items():
        if values[name] != pin:
            yield f"{name} is pinned to {pin}, but the strategy has {values[name]}"


def unasked(pins: dict[str, int | str], strategy: Strategy) -> Iterator[str]:
    """What ``strategy`` has that is only searched where it is pinned, and is not, in words."""
    kind, ends = strategy.schedule.kind, strategy.degrees.vocab_tp
    if kind in FURTHER and "schedule" not in pins:
        yield f"the strategy has schedule={kind}, which is searched where it is pinned only; pin schedule={kind}"
    if ends and "vocab_tp" not in pins:
        yield f"the strategy has vocab_tp={ends}, which is searched where it is pinned only; pin vocab_tp={ends}"


def require_legal(
    model: ModelGraph,
    cluster: Cluster,
    workload: Training,
    strategy: Strategy,
    *,
    headroom: float = 0.0,
    power_cap_w: float | None = None,
    fits: Calibration | None = None,
) -> None:
    """Raises ``BadInput`` with every complaint of :func:`check_strategy`."""
    complaints = check_strategy(
        model, cluster, workload, strategy, headroom=headroom, power_cap_w=power_cap_w, fits=fits
    )
    if complaints:
        raise BadInput("not a legal strategy: " + "; ".join(complaints))


def _shown(values: list[int]) -> str:
    return ", ".join(map(str, values[:16])) + (f", ... {values[-1]}" if len(values) > 16 else "")


def _dividing(number: int, most: int) -> str:
    return _shown([d for d in range(1, min(number, most) + 1) if number % d == 0])


def _at_least_one(it: Strategy) -> Iterator[str]:
    d, s = it.degrees, it.schedule
    values = {axis: getattr(d, axis) for axis in (*DENSE, "pp", "etp", "ep")}
    values |= {name: getattr(s, name) for name in ("virtual_stages", "micro_batch", "micro_batches")}
    for name, value in values.items():
        if value < 1:
            yield f"{name}={value} must be a whole number from 1; 1 switches it off"


def _dense_degrees(model: ModelGraph, cluster: Cluster, workload: Training, it: Strategy) -> Iterator[str]:
    d, kv, most = it.degrees, model.kv_heads, cluster.devices
    legal = [t for t in range(1, most + 1) if _tp_is_legal(model, t)]
    for name, width in model.widths:
        if width % d.tp:
            yield (
                f"tp={d.tp} does not divide {width} {name} of {model.name!r}; "
                f"legal up to {most} devices: {_shown(legal)}"
            )
    if kv % d.tp and d.tp % kv:
        yield f"tp={d.tp} neither divides nor is a multiple of {kv} KV heads; legal: {_shown(legal)}"
    if d.cp > 1 and workload.seq_len % (2 * d.cp):
        yield (
            f"cp={d.cp} needs sequences of a multiple of {2 * d.cp} tokens, but seq_len={workload.seq_len}; "
            f"cp=1 is always legal"
        )
    if d.pp > model.layers:
        yield f"pp={d.pp} is more stages than the {model.layers} layers of {model.name!r}; take at most {model.layers}"
    if workload.global_batch % d.dp:
        yield (
            f"dp={d.dp} (dp_replicate {d.dp_replicate} x dp_shard {d.dp_shard}) does not divide the global batch of "
            f"{workload.global_batch}; legal: {_dividing(workload.global_batch, most)}"
        )


def _tp_is_legal(model: ModelGraph, tp: int) -> bool:
    with_kv = model.kv_heads % tp == 0 or tp % model.kv_heads == 0
    return with_kv and all(width % tp == 0 for _, width in model.widths)


def _expert_degrees(model: ModelGraph, it: Strategy) -> Iterator[str]:
    d = it.degrees
    if model.experts == 0 and d.ep * d.etp > 1:
        yield f"ep={d.ep} and etp={d.etp}, but {model.name!r} has no experts; both must be 1"
        return
    if max(1, model.experts) % d.ep:
        yield f"ep={d.ep} does not divide {model.experts} experts; legal: {_dividing(model.experts, model.experts)}"
    for name, width in model.expert_widths:
        if width % d.etp:
            yield f"etp={d.etp} does not divide {width} {name}; legal: {_dividing(width, width)}"
    if d.stage_size % (d.ep * d.etp):
        yield (
            f"ep x etp = {d.ep * d.etp} does not divide the {d.stage_size} devices of a stage "
            f"(dp {d.dp} x cp {d.cp} x tp {d.tp}); experts use the same devices as dense layers"
        )
    away = d.ep if d.tp % d.etp == 0 else d.ep * d.etp
    if model.modules and d.dp * d.cp % away:
        yield (
            f"ep={d.ep} and etp={d.etp} put {away} parts of the experts on dp*cp = {d.dp}*{d.cp} ranks with different "
            "tokens; of a module it must divide them"
        )


def _world(cluster: Cluster, it: Strategy) -> Iterator[str]:
    world = it.degrees.world_size
    if world > cluster.devices:
        yield (
            f"the degrees need {world} devices (dp {it.degrees.dp} x cp {it.degrees.cp} x tp {it.degrees.tp} x "
            f"pp {it.degrees.pp}), but {cluster.name!r} has {cluster.devices}; lower a degree or add hosts"
        )


def _vocabulary(it: Strategy) -> Iterator[str]:
    d, legal = it.degrees, [d for d in range(1, it.degrees.cp + 1) if it.degrees.cp % d == 0]
    if d.vocab_tp and (d.vocab_tp % d.tp or d.tp * d.cp % d.vocab_tp):
        yield (
            f"vocab_tp={d.vocab_tp} must be a multiple of tp={d.tp} that divides tp*cp = {d.tp}*{d.cp}; "
            f"legal: {_shown([d.tp * n for n in legal])}"
        )


def _zero(it: Strategy) -> Iterator[str]:
    d, group = it.degrees, it.degrees.dp_shard * it.degrees.cp
    if it.zero not in (0, 1, 2, 3):
        yield f"zero={it.zero} is no stage; legal: 0, 1, 2, 3"
    elif it.zero == 0 and d.dp_shard > 1:
        yield f"zero=0 shards nothing, but dp_shard={d.dp_shard}; make it dp_replicate, or take zero 1 to 3"
    elif it.zero > 0 and group == 1:
        yield f"zero={it.zero} shards over dp_shard x cp = 1 device; take zero=0, or dp_shard above 1"


def _batch(workload: Training, it: Strategy) -> Iterator[str]:
    s, dp = it.schedule, it.degrees.dp
    product = s.micro_batch * s.micro_batches * dp
    if product != workload.global_batch:
        yield (
            f"micro_batch {s.micro_batch} x micro_batches {s.micro_batches} x dp {dp} = {product} sequences, but the "
            f"global batch is {workload.global_batch}; make the product equal to it"
        )


def _placement(cluster: Cluster, it: Strategy) -> Iterator[str]:
    form = list(_placement_form(cluster, it))
    if form:
        yield from form
        return
    for axis, factors in it.placement.items():
        degree = getattr(it.degrees, axis)
        if math.prod(factors) != degree:
            yield f"placement of {axis} multiplies to {math.prod(factors)} ({list(factors)}), but {axis}={degree}"
    for k, level in enumerate(cluster.levels):
        dense, expert = (level_ranks(it.placement, mesh, k) for mesh in (DENSE, EXPERT))
        used = dense * it.placement["pp"][k]
        if dense != expert:
            yield (
                f"on level {level.name!r} a stage has {dense} dense but {expert} expert ranks; both meshes use the "
                f"same devices, so make tp cp dp_shard dp_replicate = etp ep edp there"
            )
        if used > level.fanout:
            yield (
                f"level {level.name!r} holds {used} members of a group, but has room for {level.fanout}; "
                f"move an axis outwards"
            )
    yield from _whole_hosts(cluster, it)
    yield from broken_host_rules(cluster, it)


def _placement_form(cluster: Cluster, it: Strategy) -> Iterator[str]:
    wanted = {axis.name for axis in AXES}
    if set(it.placement) != wanted:
        yield f"placement has the axes {sorted(it.placement)}; it must place {sorted(wanted)}"
    for axis, factors in it.placement.items():
        if len(factors) != len(cluster.levels) or any(f < 1 for f in factors):
            names = ", ".join(level.name for level in cluster.levels)
            yield f"placement of {axis} is {list(factors)}; it must be one whole number from 1 for each of {names}"


def _whole_hosts(cluster: Cluster, it: Strategy) -> Iterator[str]:
    used = [level_ranks(it.placement, (*DENSE, "pp"), k) for k in range(len(cluster.levels))]
    if broken := cluster.host_shape.broken_rule(used):
        yield broken


def _stages(model: ModelGraph, it: Strategy) -> Iterator[str]:
    count, layers = it.degrees.pp * it.schedule.virtual_stages, sum(stage.layers for stage in it.stages)
    if len(it.stages) != count:
        yield (
            f"there are {len(it.stages)} stages, but pp {it.degrees.pp} x virtual_stages {it.schedule.virtual_stages} "
            f"asks for {count}"
        )
    if layers != model.layers:
        yield (
            f"the stages hold {layers} layers, but {model.name!r} has {model.layers}; every layer belongs to one stage"
        )
    for s, stage in enumerate(it.stages):
        yield from _runs(s, stage)


def _runs(s: int, stage: Stage) -> Iterator[str]:
    kinds = [run.choice.recompute for run in stage.runs]
    if not stage.runs or any(run.count < 1 for run in stage.runs):
        yield f"stage {s} has an empty run of layers ({[run.count for run in stage.runs]}); every run needs a layer"
    if any(kind not in RECOMPUTE for kind in kinds):
        yield f"stage {s} recomputes {kinds}; legal: {', '.join(RECOMPUTE)}"
    elif [kind for kind in RUN_ORDER if kind in (rest := _behind_sent(stage, kinds))] != rest:
        yield f"stage {s} recomputes {kinds} in that order; each kind may occur once: full, then selective, then none"


def _behind_sent(stage: Stage, kinds: list[str]) -> list[str]:
    """The kinds but for that of first layers which recompute nothing, as their activations are not on the device."""
    sent = stage.activations_offloaded or 0
    return kinds[1:] if kinds[:1] == ["none"] and stage.runs[0].count <= sent else kinds


def _memory(
    model: ModelGraph, cluster: Cluster, workload: Training, it: Strategy, headroom: float, fits: Calibration
) -> Iterator[str]:
    # Bytes do not depend on the grain of time.
    prices = price(model, cluster, workload, Rows.of(it), fits, Ticks(1.0))
    chain = partly_offloaded(Chain(model, prices, 0), it.layers_per_stage, [stage.leaving for stage in it.stages])
    limit = int(cluster.memory_bytes * (1 - headroom))
    runs = chain.runs(it.stages)
    yield from broken_room(cluster, it, tier_uses(chain, runs))
    for rank, classes in enumerate(memory_classes(chain, runs)):
        need, largest = sum(classes.values()), max(classes, key=lambda name: classes[name])
        if need > limit:
            yield (
                f"pipeline rank {rank} needs {need / 2**30:.4g} GiB, but {limit / 2**30:.4g} GiB are free of "
                f"{cluster.memory_bytes / 2**30:.4g} GiB (headroom {headroom:g}); most is {largest} "
                f"({classes[largest] / 2**30:.4g} GiB): recompute more, shard further or use more devices"
            )


def _power(cluster: Cluster, it: Strategy, power_cap_w: float | None) -> Iterator[str]:
    idle_w = float(static_power(Rows.of(it), cluster).facility_w[0])
    if power_cap_w is not None and power_cap_w <= idle_w:
        yield (
            f"a power cap of {power_cap_w:.6g} W is not above the {idle_w:.6g} W that the hosts in use draw idling; "
            f"raise the cap or use fewer hosts"
        )
