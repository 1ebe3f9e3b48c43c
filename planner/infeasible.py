"""When nothing fits: the arithmetic, and the smallest changes that make something fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cost_models.calibration import Calibration
from cost_models.price import Ticks, price
from cost_models.rows import Rows
from planner.candidates import Space, degree_table, legal_space, relaxed_rows
from planner.errors import BadInput, InfeasiblePlan
from planner.options import Options
from planner.search.bounds import fits_somehow, objective_of
from planner.search.expand import with_experts, with_placement, with_sharding
from topologies.cluster import Cluster
from topologies.units import quantity_text

MOST_ROWS = 4000


@dataclass(frozen=True)
class Need:
    """The least device memory any plan of a space needs, in bytes; infinite when no degrees are legal at all."""

    bytes: float
    text: str


def infeasible(space: Space, options: Options, fits: Calibration, ticks: Ticks) -> InfeasiblePlan:
    """The error for a space without a plan, its repairs ranked by how little they change."""
    cluster, limit = space.cluster, space.cluster.memory_bytes * (1 - options.headroom)
    if cap := _cap_below_idle(space, options):
        return InfeasiblePlan(cap[0], [cap[1]], space.described())
    need = least_need(space, options, fits, ticks)
    repairs = list(_repairs(space, options, fits, ticks, limit))
    if not np.isfinite(need.bytes):
        message = f"no plan: no legal degrees fit the {cluster.devices} devices of {cluster.name!r} with pins {space.pins}"
    else:
        message = (
            f"no plan fits: the smallest needs {need.bytes / 1e9:.1f} GB a device ({need.text}), "
            f"{cluster.accelerator.name} leaves {limit / 1e9:.1f} GB "
            f"({cluster.memory_bytes / 1e9:.1f} GB less {options.headroom:.0%} headroom)"
        )
    if repairs:
        message += ". Any one of: " + "; ".join(r["change"] for r in repairs)
    return InfeasiblePlan(message, repairs, space.described())


def least_need(space: Space, options: Options, fits: Calibration, ticks: Ticks) -> Need:
    """The least memory limit under which some row of the space may fit, by bisection over one priced table."""
    table = degree_table(space)
    if not len(table):
        return Need(np.inf, "no legal degrees")
    rows = _smallest_rows(space, relaxed_rows(space, table))
    if not len(rows):
        return Need(np.inf, "no placement")
    prices = price(space.model, space.cluster, space.workload, rows, fits, ticks)
    recompute = options.pins.get("recompute", "full")
    low, high = 0.0, 2.0**50
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits_somehow(prices, space.model, middle, recompute, buffers=True).any() else (middle, high)
    at = int(np.argmax(fits_somehow(prices, space.model, high, recompute, buffers=True)))
    return Need(high, _degrees_text(rows, at, recompute))


def _smallest_rows(space: Space, rows: Rows) -> Rows:
    """Complete rows of the degrees most likely to need least: most devices, smallest micro-batch."""
    order = np.lexsort((rows.micro_batch, -rows.world_size))
    placed = with_placement(space, with_experts(space, rows.take(order[:MOST_ROWS])))
    return with_sharding(space, placed.take(np.arange(min(len(placed), 4 * MOST_ROWS))))


def _degrees_text(rows: Rows, at: int, recompute: str) -> str:
    names = ("tp", "cp", "pp", "dp_shard", "dp_replicate", "ep", "zero", "micro_batch")
    parts = [f"{name} {int(getattr(rows, name)[at])}" for name in names if int(getattr(rows, name)[at]) > 1]
    return ", ".join([*parts, f"{recompute} recompute"])


def _cap_below_idle(space: Space, options: Options) -> tuple[str, dict[str, Any]] | None:
    """The arithmetic when the power cap is below what the fewest hosts draw at idle."""
    table = degree_table(space)
    if options.power_cap_w is None or not len(table):
        return None
    rows = with_sharding(space, with_placement(space, with_experts(space, relaxed_rows(space, table).take(_fewest(space, table)))))
    if not len(rows):
        return None
    idle = float(objective_of(rows, space.cluster, options).static.facility_w.min())
    if idle < options.power_cap_w:
        return None
    asked, least = quantity_text(options.power_cap_w, "W"), quantity_text(idle, "W")
    message = (
        f"no plan: the power cap of {asked} is below the {least} that the fewest legal hosts of "
        f"{space.cluster.name!r} draw at idle, cooling included; raise --power-cap above {least}"
    )
    return message, {"change": f"power cap {asked} -> above {least}", "knob": "power_cap_w", "to": idle}


def _fewest(space: Space, table) -> np.ndarray:
    world = table.tp * table.cp * table.pp * table.dp
    return np.flatnonzero(world == world.min())[:64]


def _repairs(space: Space, options: Options, fits: Calibration, ticks: Ticks, limit: float) -> Iterator[dict[str, Any]]:
    """Single changes that bring the least need under the limit, the smallest change first."""
    for change in (_unpinned(space), _more_headroom(space, options), _more_hosts(space), _shorter(space)):
        for text, knob, to, other, room in change:
            need = _need_of(other, options, fits, ticks)
            if need is not None and need.bytes <= (limit if room is None else room):
                yield {"change": f"{text} ({need.bytes / 1e9:.1f} GB)", "knob": knob, "to": to, "need_bytes": need.bytes,
                       "limit_bytes": limit if room is None else room}  # fmt: skip
                if knob in ("hosts", "seq_len"):
                    break


def _need_of(space: Space | None, options: Options, fits: Calibration, ticks: Ticks) -> Need | None:
    if space is None:
        return None
    pins = {k: v for k, v in options.pins.items() if k in space.pins}
    return least_need(space, options.model_copy(update={"pins": pins}), fits, ticks)


def _unpinned(space: Space):
    for name, value in space.pins.items():
        rest = {k: v for k, v in space.pins.items() if k != name}
        yield f"{name} {value} unpinned", name, None, legal_space(space.model, space.cluster, space.workload, rest), None


def _more_headroom(space: Space, options: Options):
    if options.headroom > 0:
        yield "headroom 0 %", "headroom", 0.0, space, space.cluster.memory_bytes


def _more_hosts(space: Space):
    hosts = space.cluster.hosts
    for factor in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256):
        cluster = _with_hosts(space.cluster, hosts * factor)
        yield f"hosts {hosts} -> {hosts * factor}", "hosts", hosts * factor, _legal(space, cluster), None


def _legal(space: Space, cluster: Cluster) -> Space | None:
    try:
        return legal_space(space.model, cluster, space.workload, space.pins)
    except BadInput:
        return None


def _with_hosts(cluster: Cluster, hosts: int) -> Cluster:
    from topologies.ready import resized

    return resized(cluster, hosts)


def _shorter(space: Space):
    seq_len = space.workload.seq_len
    while seq_len % 2 == 0 and seq_len > 512:
        seq_len //= 2
        workload = space.workload.model_copy(update={"seq_len": seq_len})
        try:
            shorter = legal_space(space.model, space.cluster, workload, space.pins)
        except BadInput:
            continue
        yield f"seq_len {space.workload.seq_len} -> {seq_len}", "seq_len", seq_len, replace(shorter, workload=workload), None
