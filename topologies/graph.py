"""A cluster as a graph, for drawing and for tools that want one; pricing uses the levels.

    die    --- device               where the accelerator is several dies that software sees as one
    device --- package              where it is one of several partitions: half a hop between them each
    device --- scale-up switch      half a scale-up hop each, so a hop between two devices
    device --- device               on a torus instead: neighbours on an axis, one direction of the link
    device --- host                 the device's share of the host's NICs, no latency
    nic, dram, nvme --- host        what the host has; the edges above it carry all its NICs
    device, nic --- PCIe port --- NUMA node --- host    where a source shows them (:mod:`topologies.inside`)
    pool   --- host                 memory that hosts share
    host   --- fabric switch        all NICs over the oversubscription, half the fabric's latency each
    host   --- leaf --- ... ---     half the leaf's latency where the cluster has switches between hosts; above a switch
                                    what all devices below it may send up, and half of what the next level takes more

Where hosts differ, a host hangs on the innermost of its narrow switches, and each of these on the next:

    host   --- switch               as above, times what works of its NICs; so is each device's share
    switch --- switch               its hosts' regular NICs times what its uplinks leave of them, no latency

On the path between two devices the narrowest edge is the level's bandwidth and the latencies add up to its own; so do
the joules a bit, where somebody published them.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from topologies.domains import add_domains
from topologies.errors import BadInput
from topologies.inside_graph import add_inside, add_pools
from topologies.shapes import nic_share_bytes_per_s

if TYPE_CHECKING:
    import networkx

    from topologies.cluster import Cluster, Level
    from topologies.irregular import Irregular

MOST_DEVICES = 2**17
Edge = dict[str, Any]


def cluster_graph(cluster: Cluster) -> networkx.Graph:
    """Dies, devices, packages, hosts with NICs and memory, scale-up and fabric switches, racks, rows and the site.

    Nodes are ``device-3``, ``host-0``, ``scale-up-0``, ``fabric``, ...; each has ``kind`` and ``title``, and devices
    and hosts the names of their ``power_domains`` and ``failure_domains`` (:mod:`topologies.domains`). Edges carry
    ``kind``, ``bandwidth_bytes_per_s`` (one direction), ``latency_s`` and ``energy_j_per_bit`` (``None`` where nobody
    published it, as may be a PCIe link's bandwidth). Racks, rows and the site have no edges: no traffic passes them.

    Raises ``BadInput`` above 131072 devices: levels describe such a cluster, a drawing does not.
    """
    import networkx

    if cluster.devices > MOST_DEVICES:
        raise BadInput(f"a whole graph is limited to {MOST_DEVICES} devices; {cluster.name} has {cluster.devices}")
    graph, collecting = networkx.Graph(name=cluster.name), gc.isenabled()
    gc.disable()  # nothing of what is made here becomes garbage, and looking for it takes as long again
    try:
        graph.add_node("fabric", kind="fabric switch", title=cluster.fabric.title)
        above = _add_hosts(graph, cluster)
        _add_parts(graph, cluster)
        add_inside(graph, cluster)
        add_pools(graph, cluster)
        _add_scale_up(graph, cluster)
        add_domains(graph, cluster, above)
    finally:
        if collecting:
            gc.enable()
    return graph


def _add_hosts(graph: networkx.Graph, cluster: Cluster) -> list[str]:
    """Hosts with their devices, and the switches above them; what every host hangs on."""
    share = nic_share_bytes_per_s(cluster.host, cluster.fabric) * cluster.rate_scale / cluster.fabric.oversubscription
    it, full, outermost = cluster.irregular, cluster.host.devices, len(cluster.levels)
    above = _add_switches(graph, cluster, it, share * full) if it else _add_levels(graph, cluster)
    between = cluster.levels[cluster.domain_levels :]
    latency_s = (between[0].latency_s if between else cluster.fabric.figures.latency.value / cluster.rate_scale) / 2
    parts = it.nic if it else (1.0,) * cluster.hosts
    graph.add_nodes_from(
        (f"host-{h}", {"kind": "host", "title": it.name(h) if it else cluster.host.title}) for h in range(cluster.hosts)
    )
    graph.add_edges_from(
        (f"host-{h}", above[h], _edge(cluster, outermost, cluster.fabric.kind, share * full * parts[h], latency_s))
        for h in range(cluster.hosts)
    )
    title = cluster.accelerator.title
    graph.add_nodes_from((f"device-{d}", {"kind": "device", "title": title}) for d in range(cluster.devices))
    shares = {part: _edge(cluster, None, "NIC share", share * part, 0.0) for part in set(parts)}
    hosts = enumerate(hosts_of_devices(cluster))
    graph.add_edges_from((f"device-{d}", f"host-{h}", shares[parts[h]]) for d, h in hosts)
    return above


def hosts_of_devices(cluster: Cluster) -> Iterator[int]:
    """The host of every device in turn."""
    counts = cluster.irregular.devices if cluster.irregular else (cluster.host.devices,) * cluster.hosts
    return itertools.chain.from_iterable(itertools.repeat(host, count) for host, count in enumerate(counts))


def _add_parts(graph: networkx.Graph, cluster: Cluster) -> None:
    """NICs and memory of every host; dies of every device that has several behind one face."""
    figures, scale = cluster.host.figures, cluster.rate_scale
    nic = _edge(cluster, None, "NIC", figures.nic_bandwidth.value * scale, 0.0)
    below = {n for port in (cluster.host.inside.ports if cluster.host.inside else ()) for n in port.nics}
    kinds = [("nic", "NIC", str(n), nic) for n in range(cluster.host.nics) if n not in below]
    for tier in cluster.present_tiers:
        if not tier.pools:
            edge = _edge(cluster, None, tier.kind, tier.read_bytes_per_s, tier.latency_s)
            kinds.append((tier.name, "memory tier", "", edge))
    _hang(graph, "host", cluster.hosts, kinds)
    package = cluster.accelerator.package
    if package is not None and cluster.accelerator.partitions == 1:
        it = package.figures
        edge = _edge(cluster, None, package.link, it.bandwidth.value * scale, it.latency.value / scale / 2)
        edge["energy_j_per_bit"] = None if it.energy is None else it.energy.value / 2
        dies = [("die", "die", str(n), edge) for n in range(cluster.accelerator.dies)]
        _hang(graph, "device", cluster.devices, dies)


def _hang(graph: networkx.Graph, on: str, count: int, kinds: Iterable[tuple[str, str, str, Edge]]) -> None:
    """Nodes ``nic-3-0`` on each of so many nodes ``host-3``: name, kind, number of each and its edge."""
    for name, kind, number, edge in kinds:
        tail = f"-{number}" if number else ""
        names = [f"{name}-{n}{tail}" for n in range(count)]
        graph.add_nodes_from(names, kind=kind, title=edge["kind"])
        graph.add_edges_from(zip(names, (f"{on}-{n}" for n in range(count)), strict=True), **edge)


def _add_switches(graph: networkx.Graph, cluster: Cluster, it: Irregular, host_bytes_per_s: float) -> list[str]:
    """Narrow switches, the largest first; what every host hangs on."""
    above = ["fabric"] * len(it.numbers)
    for switch in sorted(it.switches, key=lambda s: -len(s.hosts)):
        up = _edge(cluster, None, "uplinks", host_bytes_per_s * len(switch.hosts) * switch.uplink, 0.0)
        graph.add_node(switch.name, kind="switch", title=switch.name)
        graph.add_edge(switch.name, above[switch.hosts[0]], **up)
        for host in switch.hosts:
            above[host] = switch.name
    return above


def _add_levels(graph: networkx.Graph, cluster: Cluster) -> list[str]:
    """The switches between hosts and the whole fabric, groups and pods among them; what every host hangs on."""
    above, below, levels, inside = ["fabric"] * cluster.hosts, cluster.devices, cluster.levels, cluster.domain_levels
    for k in range(len(levels) - 2, inside - 1, -1):
        wider = below
        below = math.prod(level.fanout for level in levels[: k + 1])
        depth, up_bytes_per_s = k - inside + 1, levels[k + 1].bandwidth_bytes_per_s * below
        edge = _edge(
            cluster, None, cluster.fabric.kind, up_bytes_per_s, (levels[k + 1].latency_s - levels[k].latency_s) / 2
        )
        for switch in range(cluster.devices // below):
            name = f"switch-{depth}-{switch}"
            graph.add_node(name, kind="switch", title=levels[k].name)
            up = f"switch-{depth + 1}-{switch * below // wider}" if k + 2 < len(levels) else "fabric"
            graph.add_edge(name, up, **edge)
        numbers = [host * cluster.host.devices // below for host in range(cluster.hosts)]
        above = [f"switch-{depth}-{n}" if n < cluster.devices // below else "fabric" for n in numbers]
    return above


def _add_scale_up(graph: networkx.Graph, cluster: Cluster) -> None:
    if cluster.host.torus is not None:
        _add_torus(graph, cluster)
        return
    if cluster.accelerator.partitions > 1:
        groups = (device // cluster.accelerator.partitions for device in range(cluster.devices))
        _add_group(graph, cluster, 0, "package", "package", groups)
    domains: Iterable[int] = (device // cluster.domain_devices for device in range(cluster.devices))
    if cluster.irregular:
        domains = hosts_of_devices(cluster)
    _add_group(graph, cluster, cluster.domain_levels - 1, "scale-up", "scale-up switch", domains)


def _add_group(graph: networkx.Graph, cluster: Cluster, k: int, name: str, kind: str, groups: Iterable[int]) -> None:
    """What joins the devices of a level: one node a group, half a hop to each device."""
    level = cluster.levels[k]
    edge = _edge(cluster, k, level.link, level.bandwidth_bytes_per_s, level.latency_s / 2)
    of = list(groups)
    graph.add_nodes_from((f"{name}-{group}", {"kind": kind, "title": level.link}) for group in dict.fromkeys(of))
    graph.add_edges_from((f"device-{device}", f"{name}-{group}", edge) for device, group in enumerate(of))


def _add_torus(graph: networkx.Graph, cluster: Cluster) -> None:
    """Rings along every axis of every domain; two devices on an axis have one link."""
    weight, whole = 1, cluster.devices - cluster.devices % cluster.domain_devices
    for k, level in enumerate(cluster.levels[: cluster.domain_levels]):
        edge = _edge(cluster, None, level.link, level.bandwidth_bytes_per_s / 2, level.latency_s)
        edge["energy_j_per_bit"] = cluster.energy_j_per_bit(k)
        graph.add_edges_from(_ring_edges(whole, weight, level, edge))
        weight *= level.fanout


def _ring_edges(devices: int, weight: int, level: Level, edge: Edge) -> Iterator[tuple[str, str, Edge]]:
    for device in range(devices):
        at = device // weight % level.fanout
        ahead = device + weight if at + 1 < level.fanout else device - at * weight
        yield f"device-{device}", f"device-{ahead}", edge


def _edge(cluster: Cluster, level: int | None, kind: str, bandwidth_bytes_per_s: float, latency_s: float) -> Edge:
    """An edge with half the joules a bit of a level; ``None`` for one that is no half of a level's hop."""
    energy = None if level is None else cluster.energy_j_per_bit(level)
    return {
        "kind": kind, "bandwidth_bytes_per_s": bandwidth_bytes_per_s, "latency_s": latency_s,
        "energy_j_per_bit": None if energy is None else energy / 2,
    }  # fmt: skip
