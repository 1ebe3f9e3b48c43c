"""Pins that contradict each other, the model, the batch or the machine, found before anything is searched.

Every complaint shows the arithmetic that does not close, and values that would. What needs a placement to be
seen is found after the search, by :func:`contradicting`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cost_models.model_graph import ModelGraph
from cost_models.rows import Rows
from cost_models.schedules import BIDIRECTIONAL, FEW_CUTS, FURTHER, MIRRORED, may_run, virtual_stages_of
from cost_models.workload import Training
from planner.candidates import Space, degree_table, legal_space, relaxed_rows
from planner.errors import BadInput
from planner.search.expand import with_experts, with_placement, with_sharding
from planner.search.folded import legal_cuts
from planner.search.interleaved import legal_virtual
from topologies.cluster import Cluster

Pins = dict[str, int | str]
ROWS_AT_ONCE = 256
ENOUGH = 2**40
"""Micro-batches that are enough, and even."""


def check_pins(model: ModelGraph, cluster: Cluster, workload: Training, pins: Pins) -> None:
    """Raises ``BadInput`` with every contradiction that arithmetic on the pins alone shows."""
    complaints = [
        *beyond_devices(cluster, pins), *_pipeline(model, cluster, pins), *_data_parallel(workload, pins), *_zero(pins),
        *_vocabulary(cluster, pins),
        *_batch(workload, pins), *_experts(model, pins), *_schedule(model, cluster, workload, pins),
    ]  # fmt: skip
    if complaints:
        raise BadInput("the pins cannot hold: " + "; ".join(complaints))


def _product(pins: Pins) -> tuple[str, int]:
    """The pinned degrees that devices are counted by, as ``"tp*pp = 8*4 = 32"``, and their product."""
    data = ["dp"] if "dp" in pins else ["dp_shard", "dp_replicate"]
    names = [name for name in ("tp", "cp", "pp", *data) if name in pins]
    product = math.prod(int(pins[name]) for name in names)
    if len(names) < 2:
        return f"{names[0] if names else 'tp'}={product}", product
    return f"{'*'.join(names)} = {'*'.join(str(pins[name]) for name in names)} = {product}", product


def beyond_devices(cluster: Cluster, pins: Pins) -> Iterator[str]:
    """Where the pinned degrees do not go into the cluster's devices, or into those that are pinned."""
    text, product = _product(pins)
    asked = int(pins.get("devices", cluster.devices))
    if asked > cluster.devices:
        yield f"devices={asked}, but {cluster.name!r} has {cluster.devices}; take at most that, or more hosts"
    elif product > asked:
        whose = f"devices={asked} is pinned" if "devices" in pins else f"{cluster.name!r} has {asked} devices"
        yield f"{text} is more than fits: {whose}; lower a degree or add hosts"
    elif "devices" in pins and asked % product:
        near = sorted({asked // product * product, min(cluster.devices // product, -(-asked // product)) * product})
        yield f"devices={asked} is not a multiple of {text}; nearest: {', '.join(map(str, near))}"


def _pipeline(model: ModelGraph, cluster: Cluster, pins: Pins) -> Iterator[str]:
    layers, virtual, pp = model.layers, int(pins.get("virtual_stages", 1)), pins.get("pp")
    if pp is not None and int(pp) > layers:
        yield f"pp={pp} is more stages than the {layers} layers of {model.name!r}; take at most {layers}"
        return
    if virtual == 1 or pins.get("schedule") in FURTHER:
        return
    tried = [int(pp)] if pp is not None else range(2, min(layers, cluster.devices) + 1)
    if any(virtual in legal_virtual(layers, p) for p in tried):
        return
    if pp is None:
        legal = sorted({v for p in tried for v in legal_virtual(layers, p)})
        yield (
            f"virtual_stages={virtual} cuts the {layers} layers evenly for no pp up to {cluster.devices}; "
            f"legal: {_shown([1, *legal])}"
        )
    elif int(pp) == 1:
        yield f"virtual_stages={virtual} without pipeline stages (pp=1); take virtual_stages=1, or pp above 1"
    else:
        legal = [1, *legal_virtual(layers, int(pp))]
        yield (
            f"virtual_stages={virtual} with pp={pp} does not cut {layers} layers into {pp}*{virtual} even parts "
            f"(the embedding and the head may count as one layer each); legal with that pp: {_shown(legal)}"
        )


def _data_parallel(workload: Training, pins: Pins) -> Iterator[str]:
    parts = {name: int(pins[name]) for name in ("dp_shard", "dp_replicate") if name in pins}
    text, product = "*".join(parts), math.prod(parts.values())
    values = f"{text} = {'*'.join(map(str, parts.values()))} = {product}" if len(parts) > 1 else f"{text}={product}"
    if "dp" in pins:
        dp, both = int(pins["dp"]), len(parts) == 2
        if parts and (dp != product if both else dp % product):
            yield f"{values} {'is not' if both else 'does not divide'} dp={dp}; dp = dp_replicate*dp_shard"
    elif workload.global_batch % product:
        yield (
            f"{values} does not divide the global batch of {workload.global_batch}, and dp must, which is a multiple "
            f"of it; legal: {_shown(_divisors(workload.global_batch))}"
        )


def _zero(pins: Pins) -> Iterator[str]:
    zero, shard = pins.get("zero"), pins.get("dp_shard")
    if zero == 0 and shard not in (None, 1):
        yield f"zero=0 shards nothing, but dp_shard={shard}; pin dp_replicate={shard} instead, or zero=1, 2 or 3"
    alone = shard == 1 or pins.get("dp") == 1 or (pins.get("dp") is not None and pins.get("dp_replicate") == pins["dp"])
    if zero not in (None, 0) and alone and pins.get("cp") == 1:
        yield f"zero={zero} shards over dp_shard*cp = 1*1 = 1 device; pin zero=0, or let dp_shard or cp be above 1"


def _vocabulary(cluster: Cluster, pins: Pins) -> Iterator[str]:
    ends, tp, cp = (None if name not in pins else int(pins[name]) for name in ("vocab_tp", "tp", "cp"))
    if ends is None:
        return
    if cluster.irregular is not None:
        yield f"vocab_tp={ends} on {cluster.name!r}, whose hosts differ: there embedding and head have the layers' tp"
    elif tp is not None and ends % tp:
        yield f"vocab_tp={ends} is not a multiple of tp={tp}, whose ranks hold the same tokens; take a multiple"
    elif tp is not None and cp is not None and tp * cp % ends:
        legal = [tp * d for d in _divisors(cp)]
        yield f"vocab_tp={ends} does not divide tp*cp = {tp}*{cp} = {tp * cp}; legal: {_shown(legal)}"


def _batch(workload: Training, pins: Pins) -> Iterator[str]:
    batch, dp, micro = workload.global_batch, pins.get("dp"), pins.get("micro_batch")
    if dp is None and {"dp_shard", "dp_replicate"} <= pins.keys():
        dp = int(pins["dp_shard"]) * int(pins["dp_replicate"])
    if micro is None or dp is None:
        return
    product, pp = int(dp) * int(micro), None if "schedule" in pins else pins.get("pp")
    if batch % product:
        yield f"dp*micro_batch = {dp}*{micro} = {product} does not divide the global batch of {batch}; take a divisor"
    elif pins.get("virtual_stages", 1) != 1 and pp is not None and batch // product % int(pp):
        yield (
            f"virtual_stages={pins['virtual_stages']} needs the micro-batches to be a multiple of pp={pp}, but "
            f"global_batch / (dp*micro_batch) = {batch} / ({dp}*{micro}) = {batch // product}"
        )


def _experts(model: ModelGraph, pins: Pins) -> Iterator[str]:
    ep, etp = (int(pins.get(name, 1)) for name in ("ep", "etp"))
    if model.experts == 0 and ep * etp > 1:
        yield f"ep={ep} and etp={etp}, but {model.name!r} has no experts; both must be 1"
    elif {"tp", "cp", "dp"} <= pins.keys():
        stage = int(pins["tp"]) * int(pins["cp"]) * int(pins["dp"])
        if stage % (ep * etp):
            yield f"ep*etp = {ep}*{etp} does not divide tp*cp*dp = {stage}; experts live on the devices of one stage"


def _schedule(model: ModelGraph, cluster: Cluster, workload: Training, pins: Pins) -> Iterator[str]:
    kind, pp = pins.get("schedule"), pins.get("pp")
    if kind is None:
        return
    if cluster.irregular is not None:
        yield f"schedule={kind} on {cluster.name!r}, whose hosts differ: there 1f1b and interleaved are searched"
    most = min(model.layers, cluster.devices)
    legal = [p for p in range(2, most + 1) if _cuts(model, str(kind), p)]
    if not legal:
        yield f"schedule={kind} needs pipeline stages, and {cluster.name!r} has {cluster.devices} devices; take 1f1b"
    elif pp == 1:
        yield f"schedule={kind} without pipeline stages (pp=1); take schedule=1f1b, or pp above 1"
    elif pp is not None and int(pp) not in legal:
        parts = pp if kind == MIRRORED else f"2*{pp}"
        rule = " (pp even, from 4)" if kind == MIRRORED else ""
        yield (
            f"schedule={kind} with pp={pp} does not cut {model.layers} layers into {parts} stages alike but for the "
            f"ends{rule}; legal: {_shown(legal)}"
        )
    else:
        yield from _short_of_micro_batches(workload, pins)


def _cuts(model: ModelGraph, kind: str, pp: int) -> bool:
    """Whether a schedule can cut the layers into so many devices' stages, given micro-batches enough."""
    some = bool(may_run(kind, np.array(pp), np.array(ENOUGH)))
    return some and (kind not in FEW_CUTS or legal_cuts(model.layers, pp * virtual_stages_of(kind)).size > 0)


def _short_of_micro_batches(workload: Training, pins: Pins) -> Iterator[str]:
    """A pipeline that has no micro-batches enough for its schedule even one sequence at a time."""
    kind, pp = str(pins["schedule"]), int(pins.get("pp", 2))
    each = workload.global_batch // (int(pins.get("dp", 1)) * int(pins.get("micro_batch", 1)))
    pp = max(pp, 4) if kind == MIRRORED else pp
    if kind in BIDIRECTIONAL and each < 2 * pp:
        yield (
            f"schedule={kind} with pp={pp} needs 2*pp = {2 * pp} micro-batches, but global_batch / (dp*micro_batch) = "
            f"{each}; lower pp, dp or micro_batch"
        )
    elif kind == MIRRORED and each % 2 and {"dp", "micro_batch"} <= pins.keys():
        yield f"schedule={kind} sends half of the micro-batches each way, and {each} of them is odd; change dp"


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _shown(values: list[int]) -> str:
    return ", ".join(map(str, values[:24])) + (f", ... {values[-1]}" if len(values) > 24 else "")


def has_strategy(space: Space) -> bool:
    """Whether the space holds any strategy at all, memory and power left aside."""
    table = degree_table(space)
    order = np.argsort(table.tp * table.cp * table.pp * table.dp, kind="stable")
    for start in range(0, len(order), ROWS_AT_ONCE):
        rows = relaxed_rows(space, table.take(order[start : start + ROWS_AT_ONCE]))
        if _any_complete(space, rows.take(_schedulable(space, rows))):
            return True
    return False


def _schedulable(space: Space, rows: Rows) -> np.ndarray:
    """Whether a row can have the virtual stages that are pinned."""
    virtual, kind = int(space.pins.get("virtual_stages", 1)), space.pins.get("schedule")
    if kind is not None:
        cuts = np.array([_cuts(space.model, str(kind), pp) for pp in rows.pp.tolist()], dtype=bool)
        return cuts & may_run(str(kind), rows.pp, rows.micro_batches)
    if virtual == 1:
        return np.ones(len(rows), dtype=bool)
    even = np.array([virtual in legal_virtual(space.model.layers, int(pp)) for pp in rows.pp], dtype=bool)
    return even & (rows.micro_batches % rows.pp == 0)


def _any_complete(space: Space, rows: Rows) -> bool:
    for step in (with_experts, with_placement, with_sharding):
        if not len(rows):
            return False
        rows = step(space, rows)
    return len(rows) > 0


def contradicting(space: Space) -> Pins:
    """Pins of a space without any strategy such that taking any one of them away leaves some."""
    pins = dict(space.pins)
    for name in space.pins:
        rest = {k: v for k, v in pins.items() if k != name}
        if not has_strategy(legal_space(space.model, space.cluster, space.workload, rest)):
            pins = rest
    return pins
