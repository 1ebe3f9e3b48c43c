"""A cluster as a graph, for drawing and for tools that want one; pricing uses the levels.

    device --- scale-up switch      half a scale-up hop each, so a hop between two devices
    device --- host                 the device's share of the host's NICs, no latency
    host   --- fabric switch        all NICs over the oversubscription, half the fabric's latency each
    host   --- leaf --- ... ---     the same where the cluster has switches between hosts; above a switch what all
                                    devices below it may send up, no latency of its own

Where hosts differ, a host hangs on the innermost of its narrow switches, and each of these on the next:

    host   --- switch               as above, times what works of its NICs; so is each device's share
    switch --- switch               its hosts' regular NICs times what its uplinks leave of them, no latency

On the path between two devices the narrowest edge is the level's bandwidth and the latencies add up to its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from topologies.errors import BadInput
from topologies.shapes import nic_share_bytes_per_s

if TYPE_CHECKING:
    import networkx

    from topologies.cluster import Cluster
    from topologies.irregular import Irregular

MOST_DEVICES = 2**17


def cluster_graph(cluster: Cluster) -> networkx.Graph:
    """Devices, hosts, scale-up switches and one fabric switch, with ``kind`` on nodes and edges.

    Nodes are ``device-3``, ``host-0``, ``scale-up-0`` and ``fabric``; edges carry ``bandwidth_bytes_per_s``
    (one direction) and ``latency_s``.

    Raises ``BadInput`` above 131072 devices: levels describe such a cluster, a drawing does not.
    """
    import networkx

    if cluster.devices > MOST_DEVICES:
        raise BadInput(f"a whole graph is limited to {MOST_DEVICES} devices; {cluster.name} has {cluster.devices}")
    graph = networkx.Graph(name=cluster.name)
    graph.add_node("fabric", kind="fabric switch", title=cluster.fabric.title)
    _add_hosts(graph, cluster)
    _add_scale_up(graph, cluster)
    return graph


def _add_hosts(graph: networkx.Graph, cluster: Cluster) -> None:
    share = nic_share_bytes_per_s(cluster.host, cluster.fabric) * cluster.rate_scale / cluster.fabric.oversubscription
    it, full, first = cluster.irregular, cluster.host.devices, 0
    above = _add_switches(graph, it, share * full) if it else _add_levels(graph, cluster)
    for host in range(cluster.hosts):
        name, part, devices = f"host-{host}", it.nic[host] if it else 1.0, it.devices[host] if it else full
        graph.add_node(name, kind="host", title=it.name(host) if it else cluster.host.title)
        up = _edge(cluster.fabric.kind, share * full * part, _fabric_latency_s(cluster) / 2)
        graph.add_edge(name, above[host], **up)
        for device in range(first, first + devices):
            graph.add_node(f"device-{device}", kind="device", title=cluster.accelerator.title)
            graph.add_edge(f"device-{device}", name, **_edge("NIC share", share * part, 0.0))
        first += devices


def _add_switches(graph: networkx.Graph, it: Irregular, host_bytes_per_s: float) -> list[str]:
    """Narrow switches, the largest first; what every host hangs on."""
    above = ["fabric"] * len(it.numbers)
    for switch in sorted(it.switches, key=lambda s: -len(s.hosts)):
        up = _edge("uplinks", host_bytes_per_s * len(switch.hosts) * switch.uplink, 0.0)
        graph.add_node(switch.name, kind="switch", title=switch.name)
        graph.add_edge(switch.name, above[switch.hosts[0]], **up)
        for host in switch.hosts:
            above[host] = switch.name
    return above


def _add_levels(graph: networkx.Graph, cluster: Cluster) -> list[str]:
    """The switches between hosts and the whole fabric; what every host hangs on."""
    above, below = ["fabric"] * cluster.hosts, cluster.devices
    for k in range(len(cluster.levels) - 2, 0, -1):
        wider = below
        below = math.prod(level.fanout for level in cluster.levels[: k + 1])
        edge = _edge(cluster.fabric.kind, cluster.levels[k + 1].bandwidth_bytes_per_s * below, 0.0)
        for switch in range(cluster.devices // below):
            name = f"switch-{k}-{switch}"
            graph.add_node(name, kind="switch", title=cluster.levels[k].name)
            up = f"switch-{k + 1}-{switch * below // wider}" if k + 2 < len(cluster.levels) else "fabric"
            graph.add_edge(name, up, **edge)
        numbers = [host * cluster.host.devices // below for host in range(cluster.hosts)]
        above = [f"switch-{k}-{n}" if n < cluster.devices // below else "fabric" for n in numbers]
    return above


def _add_scale_up(graph: networkx.Graph, cluster: Cluster) -> None:
    level = cluster.levels[0]
    edge = _edge(level.link, level.bandwidth_bytes_per_s, level.latency_s / 2)
    domains = [device // level.fanout for device in range(cluster.devices)]
    if cluster.irregular:
        domains = [host for host, devices in enumerate(cluster.irregular.devices) for _ in range(devices)]
    for device, domain in enumerate(domains):
        switch = f"scale-up-{domain}"
        graph.add_node(switch, kind="scale-up switch", title=level.link)
        graph.add_edge(f"device-{device}", switch, **edge)


def _fabric_latency_s(cluster: Cluster) -> float:
    return cluster.fabric.figures.latency.value / cluster.rate_scale


def _edge(kind: str, bandwidth_bytes_per_s: float, latency_s: float) -> dict[str, str | float]:
    return {"kind": kind, "bandwidth_bytes_per_s": bandwidth_bytes_per_s, "latency_s": latency_s}
