"""Inside a host, for people and for programs: PCIe ports, NUMA nodes, and memory beside the devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cost_models.tiers import rates_of
from topologies.cluster import Cluster
from topologies.inside import RootPort, device_rates
from topologies.tiers import Tier
from topologies.units import quantity_text

PORTS = ("inside a host", "devices", "NICs", "one way", "through")
TIERS = ("memory tier", "capacity", "reads", "writes", "a device alone", "all devices at once")


def port_rows(cluster: Cluster) -> list[tuple[str, ...]]:
    """One row a PCIe port, as :data:`PORTS` names them; none where no source shows them."""
    return [
        (f"NUMA node {port.numa}", ranges(port.devices), ranges(port.nics),
         "" if carried is None else quantity_text(carried, "B/s"), port.through)
        for port, carried in _ports(cluster)
    ]  # fmt: skip


def _ports(cluster: Cluster) -> Iterator[tuple[RootPort, float | None]]:
    """Every PCIe port with the bytes a second it carries one way, as a device's link does where it does not say."""
    inside, link = cluster.host.inside, cluster.host.figures.device_link
    for port in inside.ports if inside else ():
        carried = port.bandwidth or (link.value if link is not None else None)
        yield port, None if carried is None else carried * cluster.rate_scale


def tier_rows(cluster: Cluster) -> list[tuple[str, ...]]:
    """One row a memory tier, as :data:`TIERS` names them."""
    return [
        (f"{tier.name}{f' ({tier.pools} shared)' if tier.pools else ''}", quantity_text(tier.capacity_bytes, "B"),
         *(quantity_text(rate, "B/s") for rate in (tier.read_bytes_per_s, tier.write_bytes_per_s, alone, together)))
        for tier, alone, together in _with_rates(cluster)
    ]  # fmt: skip


def _with_rates(cluster: Cluster) -> Iterator[tuple[Tier, float, float]]:
    """Every tier with the bytes a second that a device reads: alone, and with all of all hosts reading."""
    import numpy as np

    tiers = cluster.present_tiers
    rates = rates_of(tiers, np.array([1.0, cluster.host.devices]), np.array([1.0, cluster.hosts]))
    alone, together = 1 / np.maximum.reduce([rates.link, rates.read, rates.pool])
    return zip(tiers, alone.tolist(), together.tolist(), strict=True)


def inside_json(cluster: Cluster) -> dict[str, Any]:
    """``ports`` with their devices and NICs, ``device_bytes_per_s`` of 1, 2, ... devices together, and ``tiers``."""
    ports = [
        {"numa": port.numa, "devices": list(port.devices), "nics": list(port.nics), "through": port.through,
         "bandwidth_bytes_per_s": carried}
        for port, carried in _ports(cluster)
    ]  # fmt: skip
    tiers = [
        {"name": tier.name, "kind": tier.kind, "capacity_bytes": tier.capacity_bytes, "pools": tier.pools,
         "read_bytes_per_s": tier.read_bytes_per_s, "write_bytes_per_s": tier.write_bytes_per_s,
         "device_bytes_per_s": alone, "device_bytes_per_s_with_all": together}
        for tier, alone, together in _with_rates(cluster)
    ]  # fmt: skip
    rates = [rate * cluster.rate_scale for rate in device_rates(cluster.host)]
    return {"ports": ports, "device_bytes_per_s": rates, "tiers": tiers}


def ranges(numbers: tuple[int, ...]) -> str:
    """``(0, 1, 2, 5)`` as ``"0-2,5"``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
