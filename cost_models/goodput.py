"""Goodput of one strategy: what failures leave of its step time, and what a run of N tokens then takes.

    time of N tokens      N / (tokens a step / step_s x goodput)
    money, energy         what a step takes, over its seconds, for all of that time; spare hosts come on top

``range`` is for a rate of failures that is :func:`~cost_models.reliability.rate_factor` times lower or higher. Spare
hosts are counted apart from those in use; with fewer than are needed the job stands while a host is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.checkpoints import Checkpoint, bandwidth_bytes_per_s, best_steps, checkpoint
from cost_models.model_graph import ModelGraph
from cost_models.power import hosts_used
from cost_models.reliability import (
    best_interval_s,
    enough_spares,
    failures_per_s,
    goodput_fraction,
    host_ports,
    hosts_away,
    mean_time_between_failures_s,
    outages,
    rate_factor,
    replicas_hit,
    restarting_fraction,
    spares_needed,
    states_survive,
)
from cost_models.rows import Rows
from cost_models.workload import Training
from topologies.cluster import Cluster
from topologies.domains import hosts_per_domain, hosts_per_switch
from topologies.ready import fleet_of, store_of

Floats = NDArray[np.float64]
DAY_S = 86400.0
SHARED = {"rack": "rack", "switch": "leaf switch", "feed": "power feed"}
"""What takes several hosts along when it fails, by kind of :mod:`topologies.domains`."""
LEAST_KEPT = 1e-30
"""Goodput that counts as this much at least, so that what never gets anywhere is worse than all else, but a number."""


@dataclass(frozen=True, slots=True)
class Care:
    """How a job is kept going: checkpoints behind the steps or not, every how many steps (``None``: the best), spares.

    ``spares`` of ``None`` are as many as are needed.
    """

    asynchronous: bool = True
    interval_steps: int | None = None
    spares: int | None = None


USUAL_CARE = Care()


@dataclass(frozen=True, slots=True)
class Blast:
    """What one failing unit takes: devices that are gone, replicas of the model that lose a rank, of how many.

    Every other device of the job waits. ``survives`` says that each shard lost has a copy on another device.
    """

    unit: str
    failures_per_day: float | None
    devices: int
    replicas: int
    of_replicas: int
    survives: bool


@dataclass(frozen=True, slots=True)
class Goodput:
    """What failures leave.

    ``effective_step_s`` is the step times :func:`longer_by_failures`; ``lost`` are the parts of the time that are not
    kept work: with ``fraction``, 1.
    """

    fraction: float
    range: tuple[float, float]
    effective_step_s: float
    effective_tokens_per_s: float
    mtbf_s: float
    failures_per_day: dict[str, float]
    lost: dict[str, float]
    fleet: str
    store: str
    checkpoint: Checkpoint
    asynchronous: bool
    interval_steps: int
    interval_s: float
    restart_s: float
    spares: int
    spares_needed: int
    blasts: tuple[Blast, ...]

    def seconds(self, tokens: float) -> float:
        """Seconds to train on so many tokens, failures included; infinite where nothing is ever kept."""
        return tokens / self.effective_tokens_per_s if self.effective_tokens_per_s > 0 else np.inf


def goodput(
    model: ModelGraph, cluster: Cluster, workload: Training, rows: Rows, step_s: float, care: Care = USUAL_CARE
) -> Goodput:
    """Goodput of the one row of ``rows`` with that step."""
    fleet, hosts, devices = fleet_of(cluster), int(hosts_used(rows, cluster)[0]), int(rows.world_size[0])
    sizes = hosts_together(cluster)
    rates = {cause: float(rate) for cause, rate in _rates(cluster, devices, hosts).items()}
    each = checkpoint(model, cluster, workload, devices, hosts, asynchronous=care.asynchronous)
    restart_s, mtbf_s = fleet.figures.restart_time.value + each.read_s, float(mean_time_between_failures_s(rates))
    steps = care.interval_steps or best_steps(each, step_s, restart_s, mtbf_s)
    away = float(hosts_away(rates, fleet))
    together = outages(rates, fleet, sizes, hosts)
    needed = spares_needed(away, together=together)
    ready = 1.0 if care.spares is None else enough_spares(away, care.spares, together)
    times = (steps * step_s, each.blocked_s, each.behind_s, restart_s)
    kept = ready * float(goodput_fraction(*times, mtbf_s))
    factor = rate_factor()
    return Goodput(
        fraction=kept,
        range=tuple(ready * float(goodput_fraction(*times, mtbf_s * change)) for change in (1 / factor, factor)),
        effective_step_s=step_s * float(longer_by_failures(rows, cluster, each.size_bytes)[0]),
        effective_tokens_per_s=kept * workload.tokens / step_s,
        mtbf_s=mtbf_s,
        failures_per_day={cause: rate * DAY_S for cause, rate in rates.items()},
        lost=_lost(kept, ready, steps * step_s, each, restart_s, mtbf_s),
        fleet=fleet.name, store=store_of(cluster).name, checkpoint=each, asynchronous=care.asynchronous,
        interval_steps=steps, interval_s=steps * step_s, restart_s=restart_s,
        spares=needed if care.spares is None else care.spares, spares_needed=needed,
        blasts=_blasts(rows, cluster, rates),
    )  # fmt: skip


def longer_by_failures(rows: Rows, cluster: Cluster, size_bytes: float, *, placed: bool = True) -> Floats:
    """How many seconds a second of steps comes to with failures, at the best interval, ``[rows]``.

        1 / goodput        tau = the best interval, or as long as a checkpoint of ``size_bytes`` takes to write

    For any length of the steps: the interval need not be whole steps, which makes it a little better than what a
    plan can have. Checkpoints go behind the steps, spares are enough. Rows that are not ``placed`` stand side by side;
    theirs is no more than that of any placement: the fewest hosts to fail, the most to write and read with.
    """
    fleet, few, packages = fleet_of(cluster), hosts_used(rows, cluster), cluster.packages(rows.world_size)
    many = few if placed else np.minimum(rows.world_size, cluster.hosts)
    rates = failures_per_s(fleet, packages, few, few * host_ports(cluster), hosts_together(cluster))
    mtbf_s = mean_time_between_failures_s(rates)
    store = store_of(cluster)
    write_s = store.copies * size_bytes / bandwidth_bytes_per_s(cluster, "write", many)
    blocked_s = np.minimum(write_s, size_bytes / (packages * store.figures.snapshot_bandwidth.value))
    restart_s = fleet.figures.restart_time.value + size_bytes / bandwidth_bytes_per_s(cluster, "read", many)
    interval_s = np.maximum(best_interval_s(blocked_s, mtbf_s), write_s - blocked_s)
    kept = goodput_fraction(interval_s, blocked_s, write_s, restart_s, mtbf_s)
    return 1.0 / np.maximum(kept, LEAST_KEPT)


def _rates(cluster: Cluster, devices: int, hosts: int) -> dict[str, float]:
    ports, sizes = hosts * host_ports(cluster), hosts_together(cluster)
    return failures_per_s(fleet_of(cluster), cluster.packages(devices), hosts, ports, sizes)


def _lost(
    kept: float, ready: float, interval_s: float, each: Checkpoint, restart_s: float, mtbf_s: float
) -> dict[str, float]:  # fmt: skip
    """Parts of the time that are not kept work; what is neither of the others is work done again."""
    parts = {
        "checkpoints": kept * each.blocked_s / interval_s,
        "restarts": ready * float(restarting_fraction(restart_s, mtbf_s)),
        "waiting for hosts": 1 - ready,
    }
    again = 1 - kept - sum(parts.values())
    return {"work done again": max(0.0, again), **parts}


def _blasts(rows: Rows, cluster: Cluster, rates: dict[str, float]) -> tuple[Blast, ...]:
    """What a failing device, host, network port, scale-up domain, rack, leaf switch and power feed take.

    Nobody has counted how often a scale-up domain fails, and of the last three only a fleet's own figures say; where
    they do not, jobs that such a failure ended are among those that were counted by another cause.
    """
    shape, used, levels = cluster.host_shape, rows.used()[0], cluster.domain_levels
    inside, per_day = int(shape.devices_a_domain(used)), {cause: rate * DAY_S for cause, rate in rates.items()}
    device = min(inside, cluster.accelerator.partitions)
    units: list[tuple[str, float | None, int]] = [
        ("device", per_day["device"], device), ("host", per_day["host"], int(shape.devices_a_host(used))),
    ]  # fmt: skip
    if per_day["network"]:
        units.append(("network port", per_day["network"], 1))
    if inside > cluster.devices_per_host:
        units.append(("scale-up domain", None, inside))
    units += [(SHARED[kind], per_day.get(kind), lost) for kind, lost in _shared(rows, cluster).items()]
    return tuple(
        Blast(
            unit,
            rate,
            lost,
            int(replicas_hit(rows, lost, levels if lost <= inside else len(cluster.levels))[0]),
            int(rows.dp[0]),
            bool(states_survive(rows, lost, levels if lost <= inside else len(cluster.levels))[0]),
        )
        for unit, rate, lost in units
    )


def _shared(rows: Rows, cluster: Cluster) -> dict[str, int]:
    """Devices in use that go when a rack, leaf switch or power feed fails, by kind."""
    here, several = int(cluster.host_shape.devices_a_host(rows.used())[0]), int(hosts_used(rows, cluster)[0])
    return {kind: here * min(hosts, several) for kind, hosts in hosts_together(cluster).items()}


def hosts_together(cluster: Cluster) -> dict[str, int]:
    """Hosts of one rack, leaf switch and power feed, where the cluster says; nothing where hosts differ.

    Which hosts of those stand together, their packing decides.
    """
    if cluster.irregular is not None:
        return {}
    sizes, below = hosts_per_domain(cluster), hosts_per_switch(cluster)
    if below is not None:
        sizes.setdefault("switch", below)
    return {kind: hosts for kind, hosts in sizes.items() if kind in SHARED}
