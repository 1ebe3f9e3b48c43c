"""What a second of steps comes to with failures, one plan at a time and by trying intervals: for the oracle."""

from __future__ import annotations

import dataclasses
import math

from cost_models.model_graph import ModelGraph
from cost_models.workload import Training
from topologies.catalogue import load
from topologies.cluster import Cluster

CAUSES = {"device": "devices", "host": "hosts", "network": "ports", "software": "hosts"}


def failing(cluster: Cluster, factor: float) -> Cluster:
    """The cluster with ``factor`` times as many failures of every kind."""
    fleet = load("fleets", "llama-3")
    counts = {f"{cause}_failures": getattr(fleet.figures, f"{cause}_failures") for cause in CAUSES}
    more = {name: figure.model_copy(update={"value": factor * figure.value}) for name, figure in counts.items()}
    fleet = fleet.model_copy(update={"figures": fleet.figures.model_copy(update=more)})
    return dataclasses.replace(cluster, fleet=fleet)


def longer(model: ModelGraph, cluster: Cluster, workload: Training, devices: float, hosts: int) -> float:
    """Seconds for each second of steps, of a job on so many devices and hosts, at the best of all intervals.

    A partition of a package counts as its part of a device that fails and that is saved.
    """
    devices = devices / cluster.accelerator.partitions
    fleet, store = cluster.fleet or load("fleets", "llama-3"), cluster.store or load("stores", "superpod")
    units = {"devices": devices, "hosts": hosts, "ports": hosts * cluster.host.nics * (len(cluster.levels) > 1)}
    rate = sum(
        units[unit] * getattr(fleet.figures, f"{cause}_failures").value
        / (getattr(fleet, unit) * fleet.figures.observed.value)
        for cause, unit in CAUSES.items()
    )  # fmt: skip
    size = model.parameters * (workload.recipe.weight_bytes + workload.optimizer_bytes)
    parts = math.ceil(cluster.hosts / store.unit_hosts) if store.unit_hosts else 1
    figures = store.figures
    into, out = (
        min(hosts * each.value, math.inf if whole is None else parts * whole.value)
        for each, whole in (
            (figures.host_write_bandwidth, figures.write_bandwidth),
            (figures.host_read_bandwidth, figures.read_bandwidth),
        )
    )
    write, blocked = store.copies * size / into, size / devices / figures.snapshot_bandwidth.value
    blocked, restart = min(blocked, write), fleet.figures.restart_time.value + size / out

    def cost(interval: float) -> float:
        cycle, behind = (interval + blocked) * rate, (restart + write) * rate
        return math.inf if cycle + behind > 700 else math.expm1(cycle) * math.exp(behind) / (interval * rate)

    low, high = math.log(max(write - blocked, 1e-9)), math.log(max(write - blocked, 1e-9) + 20 / rate)
    return min(_least(cost, low, high), 1e30)


def _least(cost, low: float, high: float) -> float:
    """The least cost between two intervals' logarithms; it falls and then rises: thirds, again and again."""

    def at(x: float) -> float:
        x = math.exp(x)
        return cost(x) if x < 1e300 else math.inf

    best = min(at(low), at(high))
    for _ in range(120):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        best = min(best, at(left), at(right))
        low, high = (low, right) if at(left) < at(right) else (left, high)
    return best
