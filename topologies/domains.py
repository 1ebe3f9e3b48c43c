"""Which power and which failures reach a device: its host, rack, row and site; its switch and power feed.

    power       device < host < rack < row < site        what a limit on watts is set on
    failure     host, rack, switch, feed                 what takes all of its hosts along when it fails

Racks are runs of ``hosts_per_rack`` neighbouring host numbers, the first at 0, leaf switches of ``hosts_per_leaf``,
feeds of ``hosts_per_feed``; rows of ``racks_per_row`` racks. A level that the cluster's file says nothing of is not
named, but for the switch, which is then the one that the host hangs on: a narrow one, or an innermost of those that
the file gives as ``switches``. Groups of a dragonfly and optical pods are no one switch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx

    from topologies.cluster import Cluster

SITE = "site"
FIELDS = {"host": "", "rack": "hosts_per_rack", "switch": "hosts_per_leaf", "feed": "hosts_per_feed"}
"""What fails together, and what of a cluster says how many hosts that is."""
NAMES = {"switch": "leaf"}
"""Kinds whose domains are called otherwise."""


@dataclass(frozen=True, slots=True)
class Domains:
    """Names of the domains of one host, by level."""

    power: dict[str, str]
    failure: dict[str, str]


def hosts_per_domain(cluster: Cluster) -> dict[str, int]:
    """Neighbouring host numbers of one domain, by kind of :data:`FIELDS`; without those that the file does not say."""
    said = {kind: getattr(cluster, field) if field else 1 for kind, field in FIELDS.items()}
    return {kind: hosts for kind, hosts in said.items() if hosts is not None}


def hosts_per_switch(cluster: Cluster) -> int | None:
    """Hosts below one of the innermost switches that the file gives; ``None`` where it gives none."""
    between = cluster.levels[cluster.domain_levels : -1]
    if cluster.irregular is not None or not between or between[0].several_switches:
        return None
    return max(1, math.prod(cluster.group_capacity[: cluster.domain_levels + 1]) // cluster.devices_per_host)


def domains_of_host(cluster: Cluster, host: int, switch: str = "") -> Domains:
    """The domains of the host at that position; ``switch`` is the one that it hangs on, where there is one."""
    number = cluster.irregular.numbers[host] if cluster.irregular else host
    found = {kind: number // hosts for kind, hosts in hosts_per_domain(cluster).items()}
    failure = {kind: f"{NAMES.get(kind, kind)}-{at}" for kind, at in found.items()} | {"host": f"host-{host}"}
    if switch:
        failure.setdefault("switch", switch)
    power = {kind: failure[kind] for kind in ("host", "rack") if kind in failure}
    if "rack" in found and cluster.racks_per_row is not None:
        power["row"] = f"row-{found['rack'] // cluster.racks_per_row}"
    return Domains(power | {"site": SITE}, failure)


def add_domains(graph: networkx.Graph, cluster: Cluster, switches: list[str]) -> None:
    """Writes domains on hosts and devices of a graph, and adds racks, rows, feeds and the site as nodes."""
    from topologies.graph import hosts_of_devices

    each = [domains_of_host(cluster, host, _switch(graph, cluster, above)) for host, above in enumerate(switches)]
    for host, found in enumerate(each):
        _write(graph, f"host-{host}", found.power, found.failure)
    for device, host in enumerate(hosts_of_devices(cluster)):
        name = f"device-{device}"
        _write(graph, name, {"device": name, **each[host].power}, each[host].failure)
    graph.add_node(SITE, kind="site", title=cluster.facility.title)
    for found in each:
        for kind, name in (found.power | found.failure).items():
            if name not in graph:
                graph.add_node(name, kind=NAMES.get(kind, kind), title=name)


def _switch(graph: networkx.Graph, cluster: Cluster, above: str) -> str:
    """What a host hangs on, if that is one switch."""
    several = any(level.several_switches for level in cluster.levels)
    return above if graph.nodes[above]["kind"] == "switch" and not several else ""


def _write(graph: networkx.Graph, node: str, power: dict[str, str], failure: dict[str, str]) -> None:
    graph.nodes[node].update(power_domains=power, failure_domains=failure)
