"""A cluster with more of one thing: memory, bandwidth inside or between scale-up domains, hosts.

What is changed is changed in the records too, so that the cluster's digest tells it from the one it was made of and
its figures say that nobody published them. Power and prices stay: what more would draw or cost, no catalogue knows.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from topologies.catalogue import Part
from topologies.cluster import Cluster, Level
from topologies.errors import BadInput
from topologies.resized import resized

P = TypeVar("P", bound=Part)


def with_more_memory(cluster: Cluster, factor: float) -> Cluster:
    """The cluster with ``factor`` times the bytes on every device, capacity and usable alike."""
    accelerator = _times(cluster.accelerator, factor, "memory_capacity", "memory_usable")
    return dataclasses.replace(cluster, accelerator=accelerator)


def with_more_scale_up_bandwidth(cluster: Cluster, factor: float) -> Cluster:
    """The cluster with ``factor`` times the bandwidth inside every scale-up domain; packages and latencies stay."""
    inside, packed = cluster.domain_levels, int(cluster.accelerator.partitions > 1)
    accelerator = _times(cluster.accelerator, factor, "scale_up_bandwidth")
    wider = (_wider(level, factor) for level in cluster.levels[packed:inside])
    levels = (*cluster.levels[:packed], *wider, *cluster.levels[inside:])
    return dataclasses.replace(cluster, accelerator=accelerator, levels=levels)


def with_more_scale_out_bandwidth(cluster: Cluster, factor: float) -> Cluster:
    """The cluster with ``factor`` times the bandwidth of NICs and fabric ports, latencies as they were.

    Raises ``BadInput`` where all devices are in one scale-up domain, which has no network to widen.
    """
    inner, outer = cluster.levels[: cluster.domain_levels], cluster.levels[cluster.domain_levels :]
    if not outer:
        raise BadInput(
            f"{cluster.name!r} is one scale-up domain of {cluster.devices} devices: there is no scale-out bandwidth"
        )
    return dataclasses.replace(
        cluster,
        host=_times(cluster.host, factor, "nic_bandwidth"),
        fabric=_times(cluster.fabric, factor, "port_bandwidth"),
        levels=(*inner, *(_wider(level, factor) for level in outer)),
    )


def host_step(cluster: Cluster) -> int:
    """Hosts that are added at a time: those of a whole scale-up domain, once there is one."""
    domain = max(1, cluster.host.scale_up_devices // cluster.devices_per_host)
    return 1 if cluster.hosts < domain else domain


def with_one_more_host(cluster: Cluster) -> Cluster:
    """The cluster with :func:`host_step` more hosts. Raises ``BadInput`` past the most devices a cluster may have."""
    return resized(cluster, cluster.hosts + host_step(cluster))


def _wider(level: Level, factor: float) -> Level:
    return dataclasses.replace(level, bandwidth_bytes_per_s=level.bandwidth_bytes_per_s * factor)


def _times(part: P, factor: float, *names: str) -> P:
    """The part with ``factor`` times these figures; those that it does not have stay away."""
    changed = {}
    for name in names:
        figure = getattr(part.figures, name)
        if figure is not None:
            note = f"{factor:g} times the {figure.kind} figure, to see what it would buy"
            update = {"value": figure.value * factor, "kind": "assumed", "note": note}
            changed[name] = figure.model_copy(update=update)
    return part.model_copy(update={"figures": part.figures.model_copy(update=changed)})
